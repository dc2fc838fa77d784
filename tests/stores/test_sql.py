"""The SQL store, on SQLite and PostgreSQL."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, func, select, text
from sqlalchemy.exc import OperationalError

from flask_byok.errors import ConfigurationError, SessionRequiredError, StoreError
from flask_byok.keys.session_store import SessionStore
from flask_byok.keys.traffic import Traffic
from flask_byok.model.owner import SessionRef
from flask_byok.storage import sql_tables as tables
from flask_byok.storage.sql import SqlSessionStore, metadata
from tests.services import PostgresServer, free_port, wait_until

from .contract import (
    ANN,
    DAY,
    SOME,
    VISITOR,
    Clock,
    MakeStore,
    SessionStoreContract,
    begin,
    make_record,
    use_of,
    verdict_for,
)


def store_on(engine_or_url: Any, **options: Any) -> SqlSessionStore:
    """Make a store with an ordinary lifetime."""
    return SqlSessionStore(engine_or_url, **{"ttl": DAY, "max_age": 30 * DAY, **options})


class SqlContract(SessionStoreContract):
    """How the contract reaches into a database."""

    def overwrite(self, store: SessionStore, session: SessionRef, raw: str) -> None:
        """Change the row past the store."""
        assert isinstance(store, SqlSessionStore)
        mine = (tables.keys.c.ref == session.ref, tables.keys.c.provider == "openai")
        with store.engine.begin() as connection:
            connection.execute(tables.keys.update().where(*mine).values(record=raw))


class TestSqlite(SqlContract):
    """A SQLite file passes the contract."""

    @pytest.fixture
    def make_store(self, sqlite_url: str) -> MakeStore:
        """Make stores from the address."""
        return lambda **options: SqlSessionStore(sqlite_url, **options)


class TestPostgresql(SqlContract):
    """PostgreSQL passes the contract."""

    @pytest.fixture
    def make_store(self, postgres_url: str) -> MakeStore:
        """Make stores from the address."""
        return lambda **options: SqlSessionStore(postgres_url, **options)


class TestOtherDatabase(SqlContract):
    """The statements for databases that we do not know pass the contract."""

    @pytest.fixture
    def make_store(self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> MakeStore:
        """Make stores that know nothing of SQLite's upsert."""
        monkeypatch.setattr(tables, "UPSERT", {})
        return lambda **options: SqlSessionStore(sqlite_url, **options)


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def url(request: pytest.FixtureRequest) -> str:
    """Name an empty database, of each kind in turn."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """Make an engine as a host would."""
    engine = create_engine(postgres_url)
    yield engine
    engine.dispose()


def count_statements(engine: Engine, call: Callable[[], object]) -> int:
    """Return how many statements a call sends."""
    sent: list[str] = []

    def note(_c: object, _u: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    call()
    event.remove(engine, "before_cursor_execute", note)
    return len(sent)


@pytest.mark.parametrize("identity", [VISITOR, ANN])
def test_read_is_one_statement(url: str, identity: str) -> None:
    """Reading any number of providers is one statement."""
    store = store_on(url)
    session = begin(store)
    store.write(session, identity, make_record())
    read = count_statements(store.engine, lambda: store.read(session, identity, SOME))
    assert read == 1


def test_change_is_one_statement_on_postgresql(postgres_url: str) -> None:
    """Writing, checking and clearing are one statement each on PostgreSQL."""
    store, record = store_on(postgres_url), make_record()
    session = begin(store)
    for change in (
        lambda: store.write(session, ANN, record),
        lambda: store.record_verdict(session, "openai", verdict_for(record)),
        lambda: store.clear(session, ANN, ["openai"]),
    ):
        assert count_statements(store.engine, change) == 1


def test_first_use_by_many(url: str) -> None:
    """Eight workers that make the tables at once all succeed."""
    barrier = threading.Barrier(8)

    def first_use(number: int) -> str | None:
        store = store_on(url)
        barrier.wait()
        return store.establish(f"sid-{number}")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(first_use, range(8)))) == 8


def test_tables_that_vanish_are_made_again(url: str) -> None:
    """After the tables were dropped, one call fails and the next one works."""
    store = store_on(url)
    begin(store)
    metadata.drop_all(store.engine)
    with pytest.raises(StoreError):
        store.find("sid-1")
    begin(store)


def test_sqlite_file_is_private(tmp_path: Path) -> None:
    """The folder is made, and the file and its journals are readable for this user only."""
    path = tmp_path / "instance" / "byok.sqlite"
    store = store_on(f"sqlite:///{path}")
    begin(store)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["byok.sqlite", "byok.sqlite-shm", "byok.sqlite-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.engine.dispose()


def test_sqlite_in_memory() -> None:
    """SQLite in memory serves all threads, and is none of the host's."""
    host = create_engine("sqlite://")
    store = store_on(host)
    session = begin(store)
    providers = [f"p{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda p: store.write(session, VISITOR, make_record(p)), providers))
    assert sorted(store.read(session, VISITOR, providers).records) == sorted(providers)
    assert store.engine is not host


def test_host_transaction_is_its_own(engine: Engine) -> None:
    """What the host has not committed stays so while its engine serves us too."""
    store = store_on(engine)
    session = begin(store)
    with engine.connect() as host:
        host.execute(text("CREATE TABLE notes (body TEXT)"))
        store.write(session, VISITOR, make_record())
        host.rollback()
    with engine.connect() as host:
        assert host.execute(text("SELECT to_regclass('notes')")).scalar() is None
    assert store.read(session, VISITOR, SOME).records


def test_host_begins_sqlite_its_own_way(sqlite_url: str) -> None:
    """A host that begins SQLite transactions by hand shares its file, not its engine."""
    host = create_engine(sqlite_url, connect_args={"isolation_level": None})
    event.listen(host, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    store = store_on(host)
    session = begin(store)
    store.write(session, VISITOR, record := make_record())
    store.record_verdict(session, "openai", verdict_for(record))
    with host.connect() as connection:
        assert connection.execute(select(tables.keys.c.verdict)).scalar()
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
    assert store.engine is not host
    host.dispose()


def test_host_isolation_is_its_own(postgres_url: str) -> None:
    """A host that works in serializable transactions keeps them, and ours work beside."""
    engine = create_engine(postgres_url, isolation_level="SERIALIZABLE")
    store = store_on(engine)
    session = begin(store)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.write(session, VISITOR, make_record()), range(40)))
    store.end(session)
    with engine.connect() as host:
        assert host.execute(text("SHOW transaction_isolation")).scalar() == "serializable"
    engine.dispose()


def test_counts_that_fail_keep_no_request_from_the_database(url: str) -> None:
    """However often writing counts fails, keys of sessions are read as ever."""
    store, record = store_on(url), make_record()
    session = begin(store)
    store.write(session, VISITOR, record)

    def fail(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE byok_session_keys SET usage_count"):
            raise store.engine.dialect.loaded_dbapi.OperationalError("out of order")

    event.listen(store.engine, "before_cursor_execute", fail)
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(StoreError):
                store.count(use_of(session, record))
        assert store.read(session, VISITOR, SOME).records == {"openai": record}
    assert not store.breaker.is_open
    assert store._aside.breaker.is_open, "so that counts do not wait for it again and again"
    event.remove(store.engine, "before_cursor_execute", fail)
    store.engine.dispose()


def test_a_count_that_is_held_up_keeps_no_other_waiting(postgres_url: str) -> None:
    """While somebody holds one key's row, the uses of others are written; its own are once it is given back."""
    engine = create_engine(postgres_url, connect_args={"options": "-c lock_timeout=200ms"})
    store = store_on(engine)
    sessions, record = [begin(store, sid) for sid in ("sid-1", "sid-2")], make_record()
    for session in sessions:
        store.write(session, VISITOR, record)
    recorder = Traffic(None, 3600, count=store.count)

    def use_and_flush() -> None:
        for session in sessions:
            recorder.note_in_session(session.ref, "openai", record.version, "used")
        recorder.flush()

    held, _ = sessions
    with engine.begin() as connection:
        query = text("SELECT * FROM byok_session_keys WHERE ref = :ref FOR UPDATE")
        connection.execute(query, {"ref": held.ref})
        for number in range(3):
            with pytest.raises(StoreError):
                use_and_flush()
            assert [_uses(store, session) for session in sessions] == [0, number + 1]
    recorder.flush()
    assert [_uses(store, session) for session in sessions] == [3, 3]
    engine.dispose()


def _uses(store: SqlSessionStore, session: SessionRef) -> int:
    return store.read(session, VISITOR, SOME).records["openai"].usage_count


@pytest.mark.parametrize("change", ["write", "clear", "record_verdict", "count"])
def test_change_waits_for_the_end(engine: Engine, change: str) -> None:
    """A change that meets an end not yet committed waits, and then leaves nothing behind."""
    store, record = store_on(engine), make_record()
    session = begin(store)
    store.write(session, VISITOR, record)
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: store.write(session, VISITOR, make_record("groq")),
        "clear": lambda: store.clear(session, VISITOR, ["openai"]),
        "record_verdict": lambda: store.record_verdict(session, "openai", verdict_for(record)),
        "count": lambda: store.count(use_of(session, record)),
    }
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as ending:
            values = {"session_ref": session.ref, "until": time.time() + 60}
            ending.execute(tables.BURY, values)
            ending.execute(tables.EMPTY, values)
            running = pool.submit(calls[change])
            wait_until(lambda: _waiting(engine), "lock wait")
        if change == "write":
            assert isinstance(running.exception(), SessionRequiredError)
        else:
            assert not running.result()
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(tables.keys)).scalar() == 0


def _waiting(engine: Engine) -> bool:
    with engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return connection.execute(text(query)).scalar() == 1


def test_write_waits_for_a_busy_sqlite(sqlite_url: str) -> None:
    """A write waits for another process that is writing to the file, and is then done."""
    store, other = store_on(sqlite_url), store_on(sqlite_url)
    session = begin(store)
    with ThreadPoolExecutor(1) as pool, other.engine.connect() as busy:
        busy.exec_driver_sql("BEGIN IMMEDIATE")
        running = pool.submit(store.write, session, VISITOR, make_record())
        time.sleep(0.1)
        assert not running.done()
        busy.rollback()
        running.result()
    assert store.read(session, VISITOR, SOME).records


def expire_sessions(store: SqlSessionStore, clock: Clock, count: int) -> None:
    """Let so many sessions end long ago."""
    for number in range(count):
        store.write(begin(store, f"old-{number}"), VISITOR, make_record())
    clock.forward(DAY + timedelta(hours=2))


def kept_sids(store: SqlSessionStore) -> set[str | None]:
    """Return the session ids that are in the tables."""
    with store.engine.connect() as connection:
        return set(connection.execute(select(tables.sessions.c.sid)).scalars())


@pytest.mark.parametrize("change", ["establish", "write", "end"])
def test_change_purges_once_a_minute(url: str, change: str) -> None:
    """Any change deletes sessions that ended long ago, with their records, but once a minute only."""
    clock = Clock()
    store, other = store_on(url, clock=clock), store_on(url, clock=clock)
    used = begin(store, "used")
    expire_sessions(other, clock, 3)
    used = SessionRef("used", store.establish("used"))  # purges too, and begins the minute
    calls: dict[str, Callable[[], object]] = {
        "establish": lambda: store.establish(f"new-{clock.offset}"),
        "write": lambda: store.write(used, VISITOR, make_record()),
        "end": lambda: store.end(used),
    }
    assert kept_sids(other) == {"used"}
    other.write(begin(other, "late"), VISITOR, make_record())
    with other.engine.begin() as connection:
        late = tables.sessions.c.sid == "late"
        connection.execute(tables.sessions.update().where(late).values(expires_at=0))
    clock.forward(timedelta(seconds=50))
    calls[change]()
    assert "late" in kept_sids(other)
    clock.forward(timedelta(seconds=20))
    calls[change]()
    assert "late" not in kept_sids(other)
    with other.engine.connect() as connection:
        assert set(connection.execute(select(tables.keys.c.ref)).scalars()) <= {used.ref}


def test_reading_purges_nothing(url: str) -> None:
    """A read leaves the clearing away to changes."""
    clock = Clock()
    store = store_on(url, clock=clock)
    expire_sessions(store, clock, 2)
    store.find("old-0")
    store.read(SessionRef("old-0", "none"), VISITOR, ["openai"])
    assert kept_sids(store) == {"old-0", "old-1"}


def test_purge_in_batches(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge deletes as many as it may, in batches, and tells how many there were."""
    monkeypatch.setattr("flask_byok.storage.sql_purge.BATCH", 2)
    clock = Clock()
    store = store_on(url, clock=clock)
    expire_sessions(store, clock, 7)
    assert [store.purge(limit) for limit in (3, 0, 9, 9)] == [3, 0, 4, 0]
    assert kept_sids(store) == set()


def test_backlog_is_purged_faster(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more has ended than one batch holds, the next one follows after a second."""
    monkeypatch.setattr("flask_byok.storage.sql_purge.BATCH", 2)
    clock = Clock()
    store = store_on(url, clock=clock)
    expire_sessions(store, clock, 5)
    for left in (3, 1, 0):
        store.establish(f"new-{left}")
        assert len([sid for sid in kept_sids(store) if "old" in str(sid)]) == left
        clock.forward(timedelta(seconds=1.5))


def test_failed_purge_harms_no_change(postgres_url: str) -> None:
    """A change that was made is acknowledged though the purge after it fails."""
    clock = Clock()
    store = store_on(postgres_url, clock=clock)
    session = begin(store)
    clock.forward(timedelta(minutes=2))

    def fail(_c: object, _u: object, statement: str, *_: object) -> None:
        if "SKIP LOCKED" in statement:
            raise OperationalError("purge", {}, Exception())

    event.listen(store.engine, "before_cursor_execute", fail)
    store.write(session, VISITOR, record := make_record())
    assert store.read(session, VISITOR, ["openai"]).records == {"openai": record}


@pytest.mark.parametrize("value", ["hunter22", "nosuch://ann:hunter22@host/name", 22, None])
def test_unusable_setting(value: Any) -> None:
    """What is no database is refused by the name of its setting, without its value."""
    with pytest.raises(ConfigurationError, match="BYOK_DATABASE_URL") as caught:
        store_on(value)
    assert "hunter22" not in str(caught.value)


def test_failure_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """A database that cannot be reached is a StoreError of the session tier, and opens the breaker."""
    store = store_on(f"postgresql+psycopg://ann:hunter22@127.0.0.1:{free_port()}/name")
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            store.find("sid-1")
    assert store.breaker.is_open
    assert caught.value.tier == "session"
    assert caught.value.__suppress_context__
    assert "hunter22" not in f"{caught.value!r} {caplog.text}"


def test_killed_postgresql() -> None:
    """A killed PostgreSQL is a StoreError, and is used again, with all its data, once it is back."""
    with PostgresServer() as server:
        store = store_on(server.create_database())
        session = begin(store)
        store.write(session, VISITOR, record := make_record())
        server.kill()
        for _ in range(2):
            with pytest.raises(StoreError):
                store.read(session, VISITOR, SOME)
        assert store.breaker.is_open
        server.start()
        wait_until(lambda: store.find(session.sid), "store", timeout=10)
        assert store.read(session, VISITOR, SOME).records == {"openai": record}
        store.engine.dispose()


def test_restarted_postgresql_costs_no_call() -> None:
    """Connections that a restart has closed are replaced unseen."""
    with PostgresServer() as server:
        store = store_on(server.create_database())
        session = begin(store)
        server.restart()
        store.write(session, VISITOR, record := make_record())
        assert store.read(session, VISITOR, SOME).records == {"openai": record}
        store.engine.dispose()


def test_encryption_keys_in_use_are_counted(database_url: str) -> None:
    """Keys of living sessions are counted by the encryption key that sealed them, and nothing else is."""
    clock = Clock()
    store = store_on(database_url, clock=clock)
    for number, key_id in enumerate(("aa", "aa", "bb")):
        record = replace(make_record(ciphertext=f"byok1.{key_id}.f.x"), label='"byok1.aa.f.x')
        store.write(begin(store, f"sid-{number}"), VISITOR, record)
    looks_like_it = replace(make_record(), label='"ciphertext":"byok1.aa.')
    store.write(begin(store, "sid-3"), VISITOR, looks_like_it)
    assert [store.count_sealed_with(key_id) for key_id in ("aa", "bb", "cc", "a")] == [2, 1, 0, 0]
    store.end(begin(store, "sid-0"))
    assert store.count_sealed_with("aa") == 1
    clock.forward(DAY)
    assert store.count_sealed_with("aa") == 0
    store.engine.dispose()
