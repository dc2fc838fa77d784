"""Open databases, and keep PostgreSQL to time limits, as its drivers wait for an answer without end.

A connection in use may be shut from outside: its driver then raises at once. If there is no
connection yet, another thread waits for one, and the caller gives up in time.
"""

from __future__ import annotations

import contextvars
import os
import socket
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import Pool, QueuePool

from ..errors import ConfigurationError

#: Seconds that a SQLite writer queues behind others.
BUSY_TIMEOUT = 5
#: Connections of one process that stay open, and how many more it may have for a moment.
_POOL: dict[str, Any] = {"pool_size": 16, "max_overflow": 48}
#: Execution options that mark our own engines, whose connections commit each statement by default, and
#: those of them whose calls have a time limit: its seconds, or None for the default.
OWN, LIMITED = "flask_byok_own", "flask_byok_limit"
#: Parts of a call's time after which PostgreSQL itself ends the wait for a lock (our pool that for a
#: connection) and a statement: so nothing goes on there that no caller waits for.
_FOR_LOCK, _FOR_STATEMENT = 0.75, 0.875
# Seconds after which a connecting thread that no caller waits for ends; libpq knows no shorter time.
_CONNECT_TIMEOUT = 2
_LIBPQ = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")

_forked_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_parents_pools: list[Pool] = []


def open_engine(engine_or_url: Any, *, limit: float | None = None) -> Engine:
    """Return the host's engine, or make one for a URL.

    A SQLite file and its folder are made as needed, readable for this user only. SQLite in memory
    gets a database of its own: the host's would be another one in each thread, or share the host's
    transactions.

    :param limit: seconds that a call may take on PostgreSQL; None means ``LIMIT``.
    :raises ConfigurationError: neither an engine nor a URL that SQLAlchemy knows.
    """
    host = engine_or_url if isinstance(engine_or_url, Engine) else None
    url = _parse(engine_or_url) if host is None else host.url
    if _in_memory(url):
        # One connection for all threads, which queue for it.
        one: dict[str, Any] = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
        threads = {"check_same_thread": False}
        return _own_engine(url, pool_timeout=BUSY_TIMEOUT, connect_args=threads, **one)
    if url.get_backend_name() == "sqlite":
        # Of the host's file too: hosts often begin transactions in ways of their own, which ours would
        # collide with.
        _make_file(url)
        wait = {"timeout": BUSY_TIMEOUT}
        engine = _own_engine(url, pool_timeout=BUSY_TIMEOUT, connect_args=wait, **_POOL)
        if host is None:
            event.listen(engine, "connect", _prepare_sqlite)
    elif host is not None:
        engine = host
    elif url.drivername in _LIBPQ:
        engine = _limited_engine(url, limit)
    else:
        engine = _own_engine(url)
    _forked_engines.add(engine)
    return engine


def missing_file(engine_or_url: Any) -> Path | None:
    """Return the SQLite file that an engine would make; None if it exists, or if there is no file."""
    url = engine_or_url.url if isinstance(engine_or_url, Engine) else _parse(engine_or_url)
    if url.get_backend_name() != "sqlite" or _in_memory(url):
        return None
    name = url.database or ""
    return None if name.startswith("file:") or Path(name).exists() else Path(name)


def _parse(url: Any) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # Without the URL: it may hold a password.
        raise ConfigurationError(
            "BYOK_DATABASE_URL is not a database URL; use for example "
            "postgresql+psycopg://user@host/name or sqlite:///path/to/file, or a SQLAlchemy engine."
        ) from None
    # A bare postgresql:// means psycopg2 to SQLAlchemy; the extra "postgres" installs psycopg 3.
    bare = parsed.drivername == "postgresql" and find_spec("psycopg2") is None
    return parsed.set(drivername="postgresql+psycopg") if bare else parsed


def _in_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def _limited_engine(url: URL, limit: float | None) -> Engine:
    seconds = limit or LIMIT
    options = _libpq_limits(url, seconds)
    wait = seconds * _FOR_LOCK
    engine = _own_engine(url, {LIMITED: limit}, pool_timeout=wait, connect_args=options, **_POOL)
    event.listen(engine, "do_connect", _connect_in_time)
    return engine


def _libpq_limits(url: URL, seconds: float) -> dict[str, Any]:
    lock, statement = int(seconds * 1000 * _FOR_LOCK), int(seconds * 1000 * _FOR_STATEMENT)
    given = url.normalized_query.get("options", ())
    limits = f"-c lock_timeout={lock} -c statement_timeout={statement}"
    # The options in the address come last and count.
    return {"connect_timeout": _CONNECT_TIMEOUT, "options": " ".join((limits, *given))}


def _connect_in_time(dialect: Any, _record: Any, args: Any, options: dict[str, Any]) -> Any:
    left = time_left()
    connection = within(left, lambda: _connect(dialect, args, options))
    # SQLAlchemy asks a new connection about the server before we get it.
    watch_new(connection)
    return connection


def _connect(dialect: Any, args: Any, options: dict[str, Any]) -> Any:
    try:
        return dialect.connect(*args, **options)
    except dialect.loaded_dbapi.OperationalError as error:
        if "startup parameter" not in str(error):
            raise
    # PgBouncer and its like refuse settings; then the watchdog alone has to do.
    given = options["options"].split(" ", 4)[4:]  # after our two
    return dialect.connect(*args, **options | {"options": "".join(given)})


def _own_engine(url: URL, mark: Mapping[str, Any] | None = None, **options: Any) -> Engine:
    try:
        return create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            execution_options={OWN: True} | dict(mark or {}),
            **options,
        )
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigurationError(
            f"The driver of BYOK_DATABASE_URL ({url.drivername}) is not installed: "
            f"{type(error).__name__}. For PostgreSQL install 'flask-byok[postgres]'."
        ) from None


def _make_file(url: URL) -> None:
    if url.database is None or url.database.startswith("file:"):
        return
    path = Path(url.database)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # An existing file is not opened: closing it would end the locks of this process's other connections to it
    # (sqlite.org/howtocorrupt.html, 2.2), and another process might then take the journal away under them.
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    with suppress(FileExistsError):
        # SQLite gives its journal files the permissions of this one.
        os.close(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Readers and one writer at once; a crash of the machine loses no acknowledged write with the
    # default "full".
    until = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError:
            # The first connections to a new file meet here, and SQLite does not let them wait by itself.
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _leave_parents_connections() -> None:
    for engine in list(_forked_engines):
        # Kept, since some drivers say goodbye to the server when a connection is collected.
        _parents_pools.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_parents_connections)


#: Seconds that a call may take, including the wait for a connection.
LIMIT = 0.4
#: Seconds for what takes longer and keeps no request waiting: making tables, batches, reports.
LONG_LIMIT = 30

T = TypeVar("T")

_patient = contextvars.ContextVar("flask_byok_patient", default=False)


@contextmanager
def patiently() -> Iterator[None]:
    """Give every call the long time, as an operator's command can wait."""
    before = _patient.set(True)
    try:
        yield
    finally:
        _patient.reset(before)


class _Call(threading.local):
    """This thread's call under way: its seconds, and its end in monotonic seconds."""

    seconds: float | None = None
    until: float | None = None


_call = _Call()


def within_call(limit: float | None, function: Callable[..., T], *args: Any) -> T:
    """Call a function with a limit in seconds; None means ``LIMIT``, or ``LONG_LIMIT`` for a command.

    A nested call has its own budget, which is not charged to the outer one.
    """
    started, outer = time.monotonic(), (_call.seconds, _call.until)
    _call.seconds = limit or (LONG_LIMIT if _patient.get() else LIMIT)
    _call.until = started + _call.seconds
    try:
        return function(*args)
    finally:
        _call.seconds, until = outer
        _call.until = None if until is None else until + time.monotonic() - started


def seconds() -> float:
    """Return the seconds of the call under way."""
    return _call.seconds or LIMIT


def is_long(limit: float | None) -> bool:
    """Return True if the call under way has more time than a server with this limit gives by itself."""
    return seconds() > (limit or LIMIT)


def time_left() -> float:
    """Return the seconds that are left of the call under way."""
    return LIMIT if _call.until is None else _call.until - time.monotonic()


def watch_new(connection: Any) -> None:
    """Let the watchdog shut a driver's connection that is not in use yet when the call should have ended."""
    if _call.until is not None:
        watchdog.watch(connection, _call.until)


@contextmanager
def watched(connection: Connection) -> Iterator[None]:
    """Let the watchdog shut a connection that is still in use when the call should have ended."""
    driver = connection.connection.dbapi_connection
    watchdog.watch(driver, time.monotonic() + time_left())
    try:
        yield
    finally:
        if not watchdog.release(driver):
            connection.invalidate()


class Watchdog:
    """Shuts the sockets of connections that are in use past their deadline.

    :param interval: seconds between two looks.
    """

    def __init__(self, interval: float = 0.05) -> None:
        self._interval = interval
        self.forget()

    def forget(self) -> None:
        """Watch nothing, as in a forked process, which has none of its parent's threads."""
        self._watched: dict[int, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._runs = False

    def watch(self, connection: Any, until: float) -> None:
        """Shut this driver's connection unless it is released until then (monotonic seconds)."""
        self._watched[id(connection)] = (until, connection)
        if not self._busy.is_set():
            self._wake()

    def release(self, connection: Any) -> bool:
        """Stop watching; return False if the connection was shut."""
        # Taking the entry out is one step and decides, so a connection that has gone on to the next
        # caller is not shut.
        if self._watched.pop(id(connection), None) is not None:
            return True
        with self._lock:  # not while it is being shut: its number would be another's once closed
            return False

    def _wake(self) -> None:
        with self._lock:
            self._busy.set()
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="byok-watchdog", daemon=True).start()

    def _run(self) -> None:
        while self._busy.wait():
            time.sleep(self._interval)
            self._look(time.monotonic())
            if not self._watched:
                self._busy.clear()
                # A connection that has come meanwhile is seen here, or its caller wakes this thread.
                if self._watched:
                    self._busy.set()

    def _look(self, now: float) -> None:
        for key, (until, connection) in list(self._watched.items()):
            if until <= now:
                with self._lock:
                    if self._watched.pop(key, None) is not None:
                        _shut(connection)


def _shut(connection: Any) -> None:
    # Drivers raise errors of their own for a connection that is closed by now.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def within(seconds: float, connect: Callable[[], Any]) -> Any:
    """Return the connection that a function makes, on another thread.

    :raises TimeoutError: it takes longer; a connection that it makes later is closed.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            made = connect()
        except BaseException as error:
            with suppress(InvalidStateError):
                outcome.set_exception(error)
            return
        try:
            outcome.set_result(made)
        except InvalidStateError:  # the caller has given up
            with suppress(Exception):
                made.close()

    threading.Thread(target=work, name="byok-connect", daemon=True).start()
    try:
        return outcome.result(max(seconds, 0))
    except TimeoutError:
        if outcome.cancel():
            raise TimeoutError("The database gave no connection in time.") from None
        return outcome.result()


#: One for the process.
watchdog = Watchdog()
os.register_at_fork(after_in_child=watchdog.forget)
