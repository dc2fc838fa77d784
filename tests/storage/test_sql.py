"""Sessions in a SQL database, on SQLite and PostgreSQL."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.exc import OperationalError

from flask_byok.errors import ConfigurationError, StoreError
from flask_byok.keys.sessions import Sessions
from flask_byok.storage import sql
from flask_byok.storage.breaker import Breaker
from flask_byok.storage.engine import open_engine
from flask_byok.storage.sql import Database, SqlDocuments
from flask_byok.storage.tables import metadata, session_documents, session_names
from tests.services import PostgresServer, free_port

from .contract import (
    ANN,
    DAY,
    SOME,
    VISITOR,
    Clock,
    MakeDocuments,
    SessionContract,
    begin,
    inside,
    make_record,
    use_of,
    verdict_for,
)


def store_on(
    engine_or_url: Any, *, clock: Callable[[], float] = time.time, **lifetime: timedelta
) -> Sessions:
    """Make a store with an ordinary lifetime."""
    documents = SqlDocuments(engine_or_url, clock=clock)
    return Sessions(documents, clock=clock, **{"ttl": DAY, "max_age": 30 * DAY, **lifetime})


class TestSqlite(SessionContract):
    """A SQLite file passes the contract."""

    @pytest.fixture
    def make_documents(self, sqlite_url: str) -> MakeDocuments:
        """Open it by its address."""
        return lambda: SqlDocuments(sqlite_url)


class TestPostgresql(SessionContract):
    """PostgreSQL passes the contract."""

    @pytest.fixture
    def make_documents(self, postgres_url: str) -> MakeDocuments:
        """Open it by its address."""
        return lambda: SqlDocuments(postgres_url)


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
def test_statements(database_url: str, identity: str) -> None:
    """Reading any number of providers is one statement; a change reads the document and swaps it."""
    store, record = store_on(database_url), make_record()
    session = begin(store)
    for statements, call in (
        (1, lambda: store.read(session, identity, SOME)),
        (2, lambda: store.write(session, identity, record)),
        (2, lambda: store.record_verdict(session, "openai", verdict_for(record))),
        (2, lambda: store.count(use_of(session, record))),
        (2, lambda: store.clear(session, identity, SOME)),
    ):
        store.write(session, identity, record)
        store.count(use_of(session, record))  # looks at the tables the first time
        assert count_statements(inside(store).engine, call) == statements


def test_tables_that_vanish_are_made_again(database_url: str) -> None:
    """After the tables were dropped, one call fails and the next one works."""
    store = store_on(database_url)
    begin(store)
    metadata.drop_all(inside(store).engine)
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
    inside(store).engine.dispose()


def test_sqlite_in_memory() -> None:
    """SQLite in memory serves all threads, and is none of the host's."""
    host = create_engine("sqlite://")
    store = store_on(host)
    session = begin(store)
    providers = [f"p{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda p: store.write(session, VISITOR, make_record(p)), providers))
    assert sorted(store.read(session, VISITOR, providers).records) == sorted(providers)
    assert inside(store).engine is not host


def test_host_begins_sqlite_its_own_way(sqlite_url: str) -> None:
    """A host that begins SQLite transactions by hand shares its file, not its engine."""
    host = create_engine(sqlite_url, connect_args={"isolation_level": None})
    event.listen(host, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    store = store_on(host)
    session = begin(store)
    store.write(session, VISITOR, record := make_record())
    store.record_verdict(session, "openai", verdict_for(record))
    with host.connect() as connection:
        assert connection.execute(select(session_documents.c.body)).scalar()
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
    assert inside(store).engine is not host
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


def test_counts_that_fail_keep_no_request_from_the_database(database_url: str) -> None:
    """However often writing counts fails, keys of sessions are read as ever."""
    store, record = store_on(database_url), make_record()
    session = begin(store)
    store.write(session, VISITOR, record)

    def fail(_cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE byok_session_documents"):
            raise inside(store).engine.dialect.loaded_dbapi.OperationalError("out of order")

    event.listen(inside(store).engine, "do_execute", fail)
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(StoreError):
                store.count(use_of(session, record))
        assert store.read(session, VISITOR, SOME).records == {"openai": record}
    assert not inside(store).database.breaker.is_open
    event.remove(inside(store).engine, "do_execute", fail)
    inside(store).engine.dispose()


def test_write_waits_for_a_busy_sqlite(sqlite_url: str) -> None:
    """A write waits for another process that is writing to the file, and is then done."""
    store, other = store_on(sqlite_url), store_on(sqlite_url)
    session = begin(store)
    with ThreadPoolExecutor(1) as pool, inside(other).engine.connect() as busy:
        busy.exec_driver_sql("BEGIN IMMEDIATE")
        running = pool.submit(store.write, session, VISITOR, make_record())
        time.sleep(0.1)
        assert not running.done()
        busy.rollback()
        running.result()
    assert store.read(session, VISITOR, SOME).records


def expire_sessions(store: Sessions, clock: Clock, count: int) -> None:
    """Let so many sessions expire."""
    for number in range(count):
        store.write(begin(store, f"old-{number}"), VISITOR, make_record())
    clock.forward(DAY * 1.1)


def kept_refs(store: Sessions) -> set[str]:
    """Return the refs in both tables."""
    with inside(store).engine.connect() as connection:
        columns = (session_documents.c.ref, session_names.c.ref)
        return {ref for column in columns for ref in connection.execute(select(column)).scalars()}


@pytest.mark.parametrize("change", ["establish", "write", "end"])
def test_change_purges_once_a_minute(database_url: str, change: str) -> None:
    """Any change deletes sessions that have expired, with their ids, but once a minute only."""
    clock = Clock()
    store, other = store_on(database_url, clock=clock), store_on(database_url, clock=clock)
    expire_sessions(other, clock, 3)
    used = begin(store, "used")  # purges too, and begins the minute
    assert kept_refs(other) == {used.ref}
    calls: dict[str, Callable[[], object]] = {
        "establish": lambda: store.establish(f"new-{clock.offset}"),
        "write": lambda: store.write(used, VISITOR, make_record()),
        "end": lambda: store.end(used),
    }
    late = begin(other, "late")
    with inside(other).engine.begin() as connection:
        for table in (session_documents, session_names):
            this = table.update().where(table.c.ref == late.ref)
            connection.execute(this.values(expires_at=0))
    clock.forward(timedelta(seconds=50))
    calls[change]()
    assert late.ref in kept_refs(other)
    clock.forward(timedelta(seconds=20))
    calls[change]()
    assert late.ref not in kept_refs(other)


def test_backlog_is_purged_faster(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If more has expired than one batch holds, the next one follows after a second."""
    monkeypatch.setattr(sql, "BATCH", 2)
    clock = Clock()
    store = store_on(database_url, clock=clock)
    expire_sessions(store, clock, 5)
    for left in (3, 1, 0):
        store.establish(f"new-{left}")
        with inside(store).engine.connect() as connection:
            expired = session_documents.c.expires_at < clock()
            assert len(connection.execute(select(session_documents).where(expired)).all()) == left
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

    event.listen(inside(store).engine, "before_cursor_execute", fail)
    store.write(session, VISITOR, record := make_record())
    assert store.read(session, VISITOR, ["openai"]).records == {"openai": record}


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        *(
            (value, "Write for example postgresql://user:password@host:5432/name or sqlite:///")
            for value in ("hunter22", 22, None, "nosuch://ann:hunter22@host/name", "op://v/db/url")
        ),
        ("postgresql://ann:hunter22@db:${DB_PORT}/x", "no address of a PostgreSQL or SQLite data"),
        ("postgresql+nosuch://ann:hunter22@db/x", "Write postgresql://, and install 'flask-byok"),
    ],
)
def test_unusable_setting(value: Any, advice: str) -> None:
    """What is no database is refused by the name of its setting and what to write, without its value."""
    with pytest.raises(ConfigurationError, match="BYOK_DATABASE_URL") as caught:
        store_on(value)
    assert advice in str(caught.value)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["POSTGRES", "Postgresql", "postgres"])
def test_schemes_as_people_write_them(postgres_url: str, scheme: str) -> None:
    """The scheme may be in upper case, and PostgreSQL's short one."""
    store = store_on(f"{scheme}:{postgres_url.partition(':')[2]}")
    assert store.read(begin(store), VISITOR, ["openai"]).records == {}


def test_failure_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """A database that cannot be reached is a StoreError of the session tier, and opens the breaker."""
    store = store_on(f"postgresql+psycopg://ann:hunter22@127.0.0.1:{free_port()}/name")
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            store.find("sid-1")
    assert inside(store).database.breaker.is_open
    assert caught.value.tier == "session"
    assert caught.value.__suppress_context__
    assert "hunter22" not in f"{caught.value!r} {caplog.text}"


def test_restarted_postgresql_costs_no_call() -> None:
    """Connections that a restart has closed are replaced unseen."""
    with PostgresServer() as server:
        store = store_on(server.create_database())
        session = begin(store)
        server.restart()
        store.write(session, VISITOR, record := make_record())
        assert store.read(session, VISITOR, SOME).records == {"openai": record}
        inside(store).engine.dispose()


def test_encryption_keys_in_use_are_counted(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of living sessions are counted by the encryption key that sealed them, and nothing else is."""
    clock = Clock()
    store = store_on(database_url, clock=clock)
    for number, key_id in enumerate(("aa", "aa", "bb")):
        record = make_record(ciphertext=f"byok1.{key_id}.f.x", label='"byok1.aa.f.x')
        store.write(begin(store, f"sid-{number}"), VISITOR, record)
    looks_like_it = make_record(label='"ciphertext":"byok1.aa.')
    store.write(begin(store, "sid-3"), VISITOR, looks_like_it)
    monkeypatch.setattr(sql, "BATCH", 2)
    assert [store.count_sealed_with(key_id) for key_id in ("aa", "bb", "cc", "a")] == [2, 1, 0, 0]
    store.end(begin(store, "sid-0"))
    assert store.count_sealed_with("aa") == 1
    clock.forward(DAY)
    assert store.count_sealed_with("aa") == 0
    inside(store).engine.dispose()


def test_a_second_engine_leaves_the_first_its_locks(tmp_path: Path) -> None:
    """Opening a file that the process has open ends no lock: another process takes no journal away."""
    path = tmp_path / "keys.sqlite"
    first = open_engine(f"sqlite:///{path}")
    with first.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        second = open_engine(f"sqlite:///{path}")
        script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM t'); c.close()"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        assert path.with_name("keys.sqlite-wal").exists()
    for engine in (first, second):
        engine.dispose()


def test_an_open_breaker_keeps_calls_away() -> None:
    """While the breaker is open no call and no change reaches the database; afterwards they do."""
    now, reached = [0.0], []
    database = Database("sqlite://", ())
    database.breaker = Breaker(clock=lambda: now[0])
    works = [lambda: database.run(reached.append), lambda: database.change(reached.append)]
    for _ in range(2):
        database.breaker.fault()
    for work in works:
        with pytest.raises(StoreError):
            work()
    assert reached == []
    now[0] += 1.1
    for work in works:
        work()
    assert len(reached) == 2
