"""PostgreSQL that does not answer: no call waits for it for long, and it comes back by itself."""

from __future__ import annotations

import gc
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select, text

from flask_byok.errors import StoreError
from flask_byok.keys.sessions import Sessions
from flask_byok.model.owner import SessionRef
from flask_byok.storage import engine
from flask_byok.storage.sql import Database, SqlDocuments
from flask_byok.storage.tables import session_documents
from flask_byok.storage.watchdog import Budget, Watchdog, within
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import KEYS, browser, make_app
from tests.keeper import close
from tests.patience import IN_TIME, in_time, short_limits, soon
from tests.services import PostgresServer, wait_until

from .contract import DAY, VISITOR, begin, inside, make_record

READ = ["openai"]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that may be frozen."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def store(server: PostgresServer) -> Iterator[Sessions]:
    """Make a store from an address."""
    made = make_store(server.create_database())
    yield made
    pool = inside(made).engine.pool
    # A connection that no caller waited for comes back to the pool once the server goes on.
    wait_until(lambda: pool.checkedout() == 0, "pool")
    inside(made).engine.dispose()


def make_store(engine_or_url: Engine | URL | str) -> Sessions:
    """Make a store with short limits where it is the server that keeps them."""
    with short_limits():
        return Sessions(SqlDocuments(engine_or_url), ttl=DAY, max_age=30 * DAY)


def assert_refused_in_time(call: Callable[..., object], *args: Any) -> None:
    """Fail unless the call ends with StoreError, and soon."""
    with in_time(), pytest.raises(StoreError):
        call(*args)


def assert_recovers(store: Sessions, session: SessionRef) -> None:
    """Fail unless the store answers again by itself, with what it had."""
    wait_until(lambda: store.read(session, VISITOR, READ).records, "store")
    store.write(session, VISITOR, make_record("groq"))
    assert not inside(store).database.breaker.is_open


def test_frozen_before(store: Sessions, server: PostgresServer) -> None:
    """Each call to a frozen server ends in time: a first use, on open connections and on new ones."""
    with server.frozen():
        assert_refused_in_time(store.find, "sid-1")
    wait_until(lambda: store.establish("sid-1"), "store")
    session = begin(store)
    store.write(session, VISITOR, make_record())
    with server.frozen():
        for _ in range(3):
            assert_refused_in_time(store.read, session, VISITOR, READ)
        assert inside(store).database.breaker.is_open
        wait_until(inside(store).database.breaker.allow, "probe")  # it is ours now
        inside(store).database.breaker.success()
        assert_refused_in_time(store.write, session, VISITOR, make_record())
    assert_recovers(store, session)


def test_frozen_under_many(store: Sessions, server: PostgresServer) -> None:
    """More callers than connections all end in time, and all of them work again."""
    session = begin(store)
    store.write(session, VISITOR, make_record())
    with server.frozen(), in_time(), ThreadPoolExecutor(40) as pool:
        calls = [pool.submit(store.read, session, VISITOR, READ) for _ in range(40)]
        assert {type(call.exception()) for call in calls} == {StoreError}
    assert_recovers(store, session)


def test_frozen_under_way(store: Sessions, server: PostgresServer) -> None:
    """A statement that waits for its answer when the server freezes ends in time."""
    session = begin(store)
    store.write(session, VISITOR, make_record())

    def freeze(*_: object) -> None:
        server.stop_process()

    event.listen(inside(store).engine, "before_cursor_execute", freeze, once=True)
    try:
        assert_refused_in_time(store.write, session, VISITOR, make_record("groq"))
    finally:
        server.cont()
    assert_recovers(store, session)


def test_held_row(server: PostgresServer) -> None:
    """A held row refuses its session's changes soon, by PostgreSQL itself, and neither reads nor other sessions."""
    store = make_store(server.create_database())
    session = begin(store)
    store.write(session, VISITOR, make_record())
    with create_engine(inside(store).engine.url).begin() as holder:
        mine = session_documents.c.ref == session.ref
        holder.execute(select(session_documents).where(mine).with_for_update())
        for _ in range(3):
            with soon(), pytest.raises(StoreError):
                store.write(session, VISITOR, make_record("groq"))
        assert store.read(session, VISITOR, READ).records
        assert not inside(store).database.breaker.is_open
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        assert holder.execute(text(query)).scalar() == 0
    holder.engine.dispose()
    assert_recovers(store, session)
    inside(store).engine.dispose()


def test_a_hosts_engine_keeps_its_limits(server: PostgresServer) -> None:
    """On a host's engine the host's limits count, for its own statements and for ours."""
    engine = create_engine(server.create_database())
    begin(make_store(engine))
    with engine.connect() as host:
        host.execute(text("SELECT pg_sleep(0.8)"))
        assert host.execute(text("SHOW statement_timeout")).scalar() == "0"
    slow = Database(engine, ())
    with short_limits():
        slow.run(lambda connection: connection.execute(text("SELECT pg_sleep(0.8)")))
    engine.dispose()


def test_given_options_stay(server: PostgresServer) -> None:
    """Options in the address count beside our limits, and before them."""
    url = make_url(server.create_database())
    options = "-c statement_timeout=5s -c application_name=theirs"
    store = make_store(url.update_query_dict({"options": options}))
    with inside(store).engine.connect() as connection:
        names = ("statement_timeout", "application_name", "lock_timeout")
        found = [connection.execute(text(f"SHOW {name}")).scalar() for name in names]
    assert found == ["5s", "theirs", "300ms"]
    inside(store).engine.dispose()


class _Pooler(socketserver.BaseRequestHandler):
    """Refuses settings as PgBouncer does, and passes the rest on to the server."""

    target: tuple[str, int]
    refused: list[bytes]

    def handle(self) -> None:
        first = self.request.recv(4096)
        if first[4:8] == b"\x04\xd2\x16\x2f":  # asks for TLS
            self.request.sendall(b"N")
            first = self.request.recv(4096)
        if b"statement_timeout" in first:
            self.refused.append(first)
            words = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
            self.request.sendall(b"E" + (len(words) + 4).to_bytes(4, "big") + words)
            return
        with socket.create_connection(self.target) as server:
            server.sendall(first)
            back = threading.Thread(target=_pass, args=(server, self.request))
            back.start()
            _pass(self.request, server)
            back.join()


class _Pool(socketserver.ThreadingTCPServer):
    daemon_threads = True


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # either side may be gone
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_pooler_that_refuses_settings(server: PostgresServer) -> None:
    """Behind a pooler that takes no settings, which is found out once, the watchdog ends the store's waiting."""
    url, refused = make_url(server.create_database()), list[bytes]()
    place = {"target": ("127.0.0.1", server.port), "refused": refused}
    handler = type("Handler", (_Pooler,), place)
    with _Pool(("127.0.0.1", 0), handler) as pooler:
        threading.Thread(target=pooler.serve_forever, args=(0.02,), daemon=True).start()
        url = url.set(port=pooler.server_address[1])
        store = Sessions(SqlDocuments(url), ttl=DAY, max_age=30 * DAY)
        session = begin(store)
        store.write(session, VISITOR, make_record())
        with server.frozen():
            assert_refused_in_time(store.read, session, VISITOR, READ)
        assert_recovers(store, session)
        assert len(refused) == 1
        inside(store).engine.dispose()
        pooler.shutdown()


class _Line:
    """A connection of a driver with a command under way, as the watchdog sees it."""

    info = SimpleNamespace(transaction_status=1)  # libpq's PQTRANS_ACTIVE

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.closed = False

    def fileno(self) -> int:
        return self.ours.fileno()

    def close(self) -> None:
        self.closed = True
        self.ours.close()
        self.theirs.close()


def test_watchdog() -> None:
    """What is not released in time reads the end of its connection; what is, and one closed meanwhile, stop nothing."""
    dog, (late, released, closed) = Watchdog(interval=0.01), (_Line() for _ in range(3))
    closed.close()
    for line, seconds in ((closed, 0.0), (released, 0.05), (late, 0.05)):
        dog.watch(line, Budget(seconds))
    assert dog.release(released)
    late.ours.settimeout(1)
    assert late.ours.recv(1) == b""
    assert not dog.release(late)
    released.theirs.send(b"x")
    assert released.ours.recv(1) == b"x"
    for line in (late, released):
        line.close()


def test_connection_that_was_never_ours(server: PostgresServer) -> None:
    """Nothing keeps a connection whose first questions to the server failed."""
    database, made = Database(server.create_database(), ()), []

    def fail(connection: Any, _record: Any) -> None:
        made.append(weakref.ref(connection))
        raise OSError("no answer")

    event.listen(database.engine, "connect", fail)
    with pytest.raises(OSError, match="no answer"):
        database.run(_backend)
    gc.collect()
    assert [connection() for connection in made] == [None]
    database.engine.dispose()


def test_forked_process_has_a_watchdog(server: PostgresServer) -> None:
    """A worker that was forked from a process in use ends its waiting too."""
    store = make_store(server.create_database())
    session = begin(store)
    store.write(session, VISITOR, make_record())
    with server.frozen():
        pid = os.fork()
        if pid == 0:
            started = time.monotonic()
            try:
                with short_limits():
                    store.read(session, VISITOR, READ)
            except StoreError:
                os._exit(0 if time.monotonic() - started < IN_TIME else 3)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    inside(store).engine.dispose()


def test_late_result_is_closed() -> None:
    """A connection that comes too late is closed, and what connecting raises, the caller gets."""
    line, go = _Line(), threading.Event()

    def connect() -> _Line:
        go.wait(5)
        return line

    with pytest.raises(Exception, match="in time"):
        within(Budget(0.05), connect)
    go.set()
    wait_until(lambda: line.closed, "close")

    def refuse() -> _Line:
        raise OSError("refused")

    with pytest.raises(OSError, match="refused"):
        within(Budget(5), refuse)


def _backend(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def test_own_slowness_is_no_fault(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dawdles or lets no thread run for longer than the limit blames no server."""
    monkeypatch.setattr(engine, "LIMIT", 1.0)
    database = Database(server.create_database(), ())
    before = database.run(_backend)

    def dawdle(connection: Connection) -> int:
        connection.execute(text("SELECT 1"))
        time.sleep(1.3)
        return _backend(connection)

    assert database.change(dawdle) == before

    def hold_the_lock() -> None:
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            sum(range(20_000_000))  # one call of the interpreter, within which no other thread runs

    holder = threading.Thread(target=hold_the_lock)
    holder.start()
    while holder.is_alive():
        assert database.run(_backend) == before
    assert not database.breaker.is_open
    database.engine.dispose()


_ASKS = """
import sys, time
from sqlalchemy import text
from flask_byok.storage import engine, redis
from flask_byok.storage.sql import Database
engine.LIMIT = redis.TIMEOUT = 1.0
database, documents = Database(sys.argv[1], ()), redis.RedisDocuments(sys.argv[2])
backends = set()
ends = time.monotonic() + float(sys.argv[3])
print("ready", flush=True)
while time.monotonic() < ends:
    backends.add(database.run(lambda one: one.execute(text("SELECT pg_backend_pid(), pg_sleep(0.02)")).scalar()))
    documents.find("sid")
print(len(backends))
"""


def test_stopped_process_blames_no_store(server: PostgresServer, redis_url: str) -> None:
    """A worker that was stopped for longer than the limit, with a question under way, goes on where it was."""
    command = [sys.executable, "-c", _ASKS, server.create_database(), redis_url, "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        for _ in range(2):
            time.sleep(0.3)
            worker.send_signal(signal.SIGSTOP)
            time.sleep(1.4)
            worker.send_signal(signal.SIGCONT)
        out, err = worker.communicate()
    assert (out, worker.returncode) == (b"1\n", 0), err


@pytest.mark.stress
def test_busy_machine_makes_no_store_error(
    server: PostgresServer, redis_url: str, tmp_path: Path, fake: FakeProviders
) -> None:
    """On a machine at three times its capacity 1,000 requests of an app with the limits of apps find their stores."""
    count = 3 * (os.cpu_count() or 1)
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        app = make_app(
            tmp_path,
            fake,
            byok_redis_url=redis_url,
            BYOK_DATABASE_URL=server.create_database(),
            BYOK_VALIDATE_ON_SET="off",
            BYOK_DATABASE_TIMEOUT=2.0,
            BYOK_REDIS_TIMEOUT=0.5,
        )

        def work(number: int) -> list[int]:
            person = browser(app)
            person.post(f"/sign-in/person-{number}")
            answers = []
            for _ in range(25):
                answers.append(person.get(KEYS).status_code)
                person.load()
                api_key = fake.api_key("openai")
                saved = person.call("set", provider="openai", api_key=api_key, persist=True)
                answers.append(saved.status_code)
                answers.append(person.get("/used/openai").status_code)
                answers.append(person.call("clear", provider="openai").status_code)
            return answers

        with ThreadPoolExecutor(10) as pool:
            answers = [status for each in pool.map(work, range(10)) for status in each]
        assert answers == [200] * 1000
        close(app)
        get_state(app).service.accounts.store.engine.dispose()  # type: ignore[attr-defined]
    finally:
        for process in spinning:
            process.kill()
            process.wait()
