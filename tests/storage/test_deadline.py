"""PostgreSQL that does not answer: no call waits for it for long, and it comes back by itself."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, make_url, select, text

from flask_byok.errors import StoreError
from flask_byok.keys.sessions import Sessions
from flask_byok.model.owner import SessionRef
from flask_byok.storage.engine import Watchdog, within
from flask_byok.storage.sql import Database, SqlDocuments
from flask_byok.storage.tables import session_documents
from tests.patience import IN_TIME, everyday_limits, in_time, soon
from tests.services import PostgresServer, wait_until

from .contract import DAY, VISITOR, begin, make_record

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
    pool = engine_of(made).pool
    # A connection that no caller waited for comes back to the pool once the server goes on.
    wait_until(lambda: pool.checkedout() == 0, "pool")  # type: ignore[attr-defined]
    engine_of(made).dispose()


def make_store(engine_or_url: Engine | URL | str) -> Sessions:
    """Make a store with the limits that apps have where it is the server that keeps them."""
    with everyday_limits():
        return Sessions(SqlDocuments(engine_or_url), ttl=DAY, max_age=30 * DAY)


def engine_of(store: Sessions) -> Any:
    """Return the engine of a store."""
    return store.documents.engine  # type: ignore[attr-defined]


def breaker_of(store: Sessions) -> Any:
    """Return the breaker of a store."""
    return store.documents._database.breaker  # type: ignore[attr-defined]


def assert_refused_in_time(call: Callable[..., object], *args: Any) -> None:
    """Fail unless the call ends with StoreError, and soon."""
    with in_time(), pytest.raises(StoreError):
        call(*args)


def assert_recovers(store: Sessions, session: SessionRef) -> None:
    """Fail unless the store answers again by itself, with what it had."""
    wait_until(lambda: store.read(session, VISITOR, READ).records, "store", timeout=5)
    store.write(session, VISITOR, make_record("groq"))
    assert not breaker_of(store).is_open


def test_frozen_before(store: Sessions, server: PostgresServer) -> None:
    """Each call to a frozen server ends in time: a first use, on open connections and on new ones."""
    with server.frozen():
        assert_refused_in_time(store.find, "sid-1")
    wait_until(lambda: store.establish("sid-1"), "store", timeout=5)
    session = begin(store)
    store.write(session, VISITOR, make_record())
    with server.frozen():
        for _ in range(3):
            assert_refused_in_time(store.read, session, VISITOR, READ)
        assert breaker_of(store).is_open
        wait_until(breaker_of(store).allow, "probe")  # it is ours now
        breaker_of(store).success()
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

    event.listen(engine_of(store), "before_cursor_execute", freeze, once=True)
    try:
        assert_refused_in_time(store.write, session, VISITOR, make_record("groq"))
    finally:
        server.cont()
    assert_recovers(store, session)


def test_held_row(store: Sessions, server: PostgresServer) -> None:
    """A held row refuses its session's changes in time, and no reads."""
    session = begin(store)
    store.write(session, VISITOR, make_record())
    other = create_engine(engine_of(store).url)
    with other.begin() as holder:
        mine = session_documents.c.ref == session.ref
        holder.execute(select(session_documents).where(mine).with_for_update())
        assert_refused_in_time(store.write, session, VISITOR, make_record("groq"))
        assert store.read(session, VISITOR, READ).records
    other.dispose()
    assert_recovers(store, session)


def test_held_row_is_an_answer(server: PostgresServer) -> None:
    """Held rows do not open the breaker: PostgreSQL itself ends the wait."""
    store = make_store(server.create_database())
    session = begin(store)
    other = create_engine(engine_of(store).url)
    with other.begin() as holder:
        holder.execute(select(session_documents).with_for_update())
        for _ in range(3):
            with soon(), pytest.raises(StoreError):
                store.end(session)
        assert not breaker_of(store).is_open
        assert _working(other) == 0
    other.dispose()
    engine_of(store).dispose()


def _working(engine: Engine) -> int | None:
    with engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return connection.execute(text(query)).scalar()


def test_a_hosts_engine_keeps_its_limits(server: PostgresServer) -> None:
    """On a host's engine the host's limits count, for its own statements and for ours."""
    engine = create_engine(server.create_database())
    begin(make_store(engine))
    with engine.connect() as host:
        host.execute(text("SELECT pg_sleep(0.8)"))
        assert host.execute(text("SHOW statement_timeout")).scalar() == "0"
    slow = Database(engine, ())
    with everyday_limits():
        slow.run(lambda connection: connection.execute(text("SELECT pg_sleep(0.8)")))
    engine.dispose()


def test_given_options_stay(server: PostgresServer) -> None:
    """Options in the address count beside our limits, and before them."""
    url = make_url(server.create_database())
    options = "-c statement_timeout=5s -c application_name=theirs"
    store = make_store(url.update_query_dict({"options": options}))
    with engine_of(store).connect() as connection:
        names = ("statement_timeout", "application_name", "lock_timeout")
        found = [connection.execute(text(f"SHOW {name}")).scalar() for name in names]
    assert found == ["5s", "theirs", "300ms"]
    engine_of(store).dispose()


class _Pooler(socketserver.BaseRequestHandler):
    """Refuses settings as PgBouncer does, and passes the rest on to the server."""

    target: tuple[str, int]

    def handle(self) -> None:
        first = self.request.recv(4096)
        if first[4:8] == b"\x04\xd2\x16\x2f":  # asks for TLS
            self.request.sendall(b"N")
            first = self.request.recv(4096)
        if b"statement_timeout" in first:
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
    """Behind a pooler that takes no settings the store works, and the watchdog ends its waiting."""
    url = make_url(server.create_database())
    handler = type("Handler", (_Pooler,), {"target": ("127.0.0.1", server.port)})
    with _Pool(("127.0.0.1", 0), handler) as pooler:
        threading.Thread(target=pooler.serve_forever, args=(0.02,), daemon=True).start()
        url = url.set(port=pooler.server_address[1])
        store = Sessions(SqlDocuments(url), ttl=DAY, max_age=30 * DAY)
        session = begin(store)
        store.write(session, VISITOR, make_record())
        with server.frozen():
            assert_refused_in_time(store.read, session, VISITOR, READ)
        assert_recovers(store, session)
        engine_of(store).dispose()
        pooler.shutdown()


class _Line:
    """A connection of a driver, as the watchdog sees it."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.closed = False

    def fileno(self) -> int:
        return self.ours.fileno()

    def close(self) -> None:
        self.closed = True
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def line() -> Iterator[_Line]:
    """Open a connection."""
    line = _Line()
    yield line
    line.close()


def test_late_connection_is_shut(line: _Line) -> None:
    """What is not released in time reads the end of its connection; one closed meanwhile stops nothing."""
    dog, closed = Watchdog(interval=0.01), _Line()
    closed.close()
    dog.watch(closed, time.monotonic())
    dog.watch(line, time.monotonic() + 0.05)
    line.ours.settimeout(1)
    assert line.ours.recv(1) == b""
    assert not dog.release(line)


def test_released_connection_is_left_alone(line: _Line) -> None:
    """What is released in time stays open."""
    dog = Watchdog(interval=0.01)
    dog.watch(line, time.monotonic() + 0.05)
    assert dog.release(line)
    time.sleep(0.1)
    line.theirs.send(b"x")
    assert line.ours.recv(1) == b"x"


def test_watchdog_sleeps_and_wakes(line: _Line) -> None:
    """With nothing to watch the thread sleeps, and the next call wakes it."""
    dog = Watchdog(interval=0.01)
    dog.watch(line, time.monotonic() + 9)
    assert dog._busy.is_set()
    dog.release(line)
    wait_until(lambda: not dog._busy.is_set(), "sleep", timeout=2)
    dog.watch(line, time.monotonic())
    line.ours.settimeout(1)
    assert line.ours.recv(1) == b""


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
                with everyday_limits():
                    store.read(session, VISITOR, READ)
            except StoreError:
                os._exit(0 if time.monotonic() - started < IN_TIME else 3)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    engine_of(store).dispose()


def test_late_result_is_closed() -> None:
    """A connection that comes too late is closed, and what connecting raises, the caller gets."""
    line, go = _Line(), threading.Event()

    def connect() -> _Line:
        go.wait(5)
        return line

    with pytest.raises(Exception, match="in time"):
        within(0.05, connect)
    go.set()
    wait_until(lambda: line.closed, "close", timeout=2)

    def refuse() -> _Line:
        raise OSError("refused")

    with pytest.raises(OSError, match="refused"):
        within(5, refuse)
