"""Open databases, and keep PostgreSQL to time limits, as its drivers wait for an answer without end.

A connection in use may be shut from outside: its driver then raises at once. If there is no
connection yet, another thread waits for one, and the caller gives up in time.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import Pool, QueuePool

from ..errors import ConfigurationError

#: Seconds that a call may take, including the wait for a connection.
LIMIT = 0.4
#: Seconds for what takes longer and keeps no request waiting: making tables, batches, reports.
LONG_LIMIT = 30
#: Seconds that a SQLite writer queues behind others.
BUSY_TIMEOUT = 5
#: Connections of one process that stay open, and how many more it may have for a moment.
_POOL: dict[str, Any] = {"pool_size": 16, "max_overflow": 48}
#: Execution option of our own engines, whose connections commit each statement by default: True if their
#: calls have a time limit.
_LIMITED = "flask_byok_limited"
#: Parts of a call's time after which PostgreSQL itself ends the wait for a lock (our pool that for a
#: connection) and a statement: so nothing goes on there that no caller waits for.
_FOR_LOCK, _FOR_STATEMENT = 0.75, 0.875
# Seconds after which a connecting thread that no caller waits for ends; libpq knows no shorter time.
_CONNECT_TIMEOUT = 2
_LIBPQ = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")

_UNWRITABLE = (
    "Keys need a database, and the SQLite file {path} cannot be written ({fault}). Let this user write the file and "
    "its folder, or set BYOK_DATABASE_URL."
)

# For one transaction.
_RAISE_LIMITS = text(
    "SELECT set_config('lock_timeout', :limit, true), set_config('statement_timeout', :limit, true)"
)

T = TypeVar("T")

_logger = logging.getLogger("flask_byok.stores")

_forked_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_parents_pools: list[Pool] = []


def open_engine(engine_or_url: Any, *, own_file: bool = False) -> Engine:
    """Return the host's engine, or make one for a URL.

    A SQLite file and its folder are made as needed, readable for this user only. SQLite in memory
    gets a database of its own: the host's would be another one in each thread, or share the host's
    transactions.

    :param own_file: do not log that there was no SQLite file, as nothing else uses it.
    :raises ConfigurationError: neither an engine nor a URL that SQLAlchemy knows.
    """
    host = engine_or_url if isinstance(engine_or_url, Engine) else None
    url = _parse(engine_or_url) if host is None else host.url
    is_sqlite = url.get_backend_name() == "sqlite"
    # For the host's SQLite too: hosts often begin transactions in ways of their own, which ours would
    # collide with.
    engine = _own_engine(url) if host is None or is_sqlite else host
    if _in_memory(url):
        return engine
    if is_sqlite:
        _make_file(url.database or "", own_file)
        if host is None:
            event.listen(engine, "connect", _prepare_sqlite)
    _forked_engines.add(engine)
    return engine


def _parse(url: Any) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # Without the URL: it may hold a password.
        raise ConfigurationError(
            "BYOK_DATABASE_URL is not a database URL; use for example "
            "postgresql+psycopg://user@host/name or sqlite:///path/to/file, or a SQLAlchemy engine."
        ) from None
    if parsed.drivername.partition("+")[0] == "postgres":  # as Heroku and libpq write it
        parsed = parsed.set(drivername=parsed.drivername.replace("postgres", "postgresql", 1))
    # A bare postgresql:// means psycopg2 to SQLAlchemy; the extra "postgres" installs psycopg 3.
    bare = parsed.drivername == "postgresql" and find_spec("psycopg2") is None
    return parsed.set(drivername="postgresql+psycopg") if bare else parsed


def _in_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def _own_engine(url: URL) -> Engine:
    is_limited = url.drivername in _LIBPQ
    try:
        engine = create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            execution_options={_LIMITED: is_limited},
            **_options(url),
        )
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigurationError(
            f"The driver of BYOK_DATABASE_URL ({url.drivername}) is not installed: "
            f"{type(error).__name__}. For PostgreSQL install 'flask-byok[postgres]'."
        ) from None
    if is_limited:
        event.listen(engine, "do_connect", _connect_in_time)
    return engine


def _options(url: URL) -> dict[str, Any]:
    """Return the options of our own engine: its pool, and how long it waits."""
    if _in_memory(url):
        # One connection for all threads, which queue for it.
        one: dict[str, Any] = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
        threads = {"check_same_thread": False}
        return one | {"pool_timeout": BUSY_TIMEOUT, "connect_args": threads}
    if url.get_backend_name() == "sqlite":
        return _POOL | {"pool_timeout": BUSY_TIMEOUT, "connect_args": {"timeout": BUSY_TIMEOUT}}
    if url.drivername not in _LIBPQ:
        return {}
    lock, statement = (int(LIMIT * 1000 * part) for part in (_FOR_LOCK, _FOR_STATEMENT))
    limits = f"-c lock_timeout={lock} -c statement_timeout={statement}"
    # The options in the address come last and count.
    options = " ".join((limits, *url.normalized_query.get("options", ())))
    connecting = {"connect_timeout": _CONNECT_TIMEOUT, "options": options}
    return _POOL | {"pool_timeout": LIMIT * _FOR_LOCK, "connect_args": connecting}


def _connect_in_time(dialect: Any, _record: Any, args: Any, options: dict[str, Any]) -> Any:
    connection = within(_time_left(), lambda: _connect(dialect, args, options))
    if (until := _until.get()) is not None:
        # SQLAlchemy asks a new connection about the server before we get it.
        watchdog.watch(connection, until)
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


def _make_file(name: str, own_file: bool) -> None:
    if name.startswith("file:"):
        return
    path = Path(name)
    try:
        made = _touch(path)
    except OSError as error:
        raise ConfigurationError(_UNWRITABLE.format(path=path, fault=error.strerror)) from None
    if made and not own_file:
        _logger.warning("There was no SQLite file %s: an empty one was made.", path)


def _touch(path: Path) -> bool:
    """Make a file, and its folder, if there is none; return True if it was made.

    :raises OSError: the file or its folder cannot be made or written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # An existing file is not opened: closing it would end the locks of this process's other connections to it
    # (sqlite.org/howtocorrupt.html, 2.2), and another process might then take the journal away under them.
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    with suppress(FileExistsError):
        # SQLite gives its journal files the permissions of this one.
        os.close(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR))
        return True
    effective = os.access in os.supports_effective_ids
    for place in (path, path.parent):  # the journal is beside the file
        if not os.access(place, os.W_OK, effective_ids=effective):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return False


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Readers and one writer at once; a crash of the machine loses no acknowledged write with the
    # default "full".
    for _ in range(100 * BUSY_TIMEOUT):
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        # The first connections to a new file meet here, and SQLite does not let them wait by itself.
        time.sleep(0.01)


def _leave_parents_connections() -> None:
    for engine in list(_forked_engines):
        # Kept, since some drivers say goodbye to the server when a connection is collected.
        _parents_pools.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_parents_connections)

_given: ContextVar[float | None] = ContextVar("flask_byok_given", default=None)
#: The end of this thread's call under way, in monotonic seconds.
_until: ContextVar[float | None] = ContextVar("flask_byok_until", default=None)


@contextmanager
def patiently(seconds: float = LONG_LIMIT) -> Iterator[None]:
    """Give every call in a block this many seconds: no request waits for it."""
    before = _given.set(seconds)
    try:
        yield
    finally:
        _given.reset(before)


def seconds() -> float:
    """Return the seconds that a call may take here."""
    return _given.get() or LIMIT


def _time_left() -> float:
    until = _until.get()
    return LIMIT if until is None else until - time.monotonic()


class Transactions:
    """The two ways of using an engine: one statement at a time, and several as one.

    Isolation is set for our own connections only; the host's setting stays. On an engine of our own
    PostgreSQL has ``LIMIT`` to answer, and a connection that did not is closed. A host's engine
    keeps the host's limits.
    """

    def __init__(self, engine: Engine) -> None:
        options = engine.get_execution_options()
        self.dialect = engine.dialect.name
        self._is_limited: bool = options.get(_LIMITED, False)
        self._single: Engine = engine
        if _LIMITED not in options:
            self._single = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._several: Engine = self._single
        if self.dialect != "sqlite":
            # The statements rely on seeing what was committed while they waited for a row.
            self._several = engine.execution_options(isolation_level="READ COMMITTED")

    def call(self, function: Callable[[], T]) -> T:
        """Call a function that uses transactions, all of which together have ``seconds()``.

        A nested call has its own budget, which is not charged to the outer one.
        """
        if not self._is_limited:
            return function()
        started, outer = time.monotonic(), _until.get()
        _until.set(started + seconds())
        try:
            return function()
        finally:
            _until.set(None if outer is None else outer + time.monotonic() - started)

    def in_time(self) -> bool:
        """Return True if the call under way may still ask."""
        return not self._is_limited or _time_left() > 0

    def single(self) -> AbstractContextManager[Connection]:
        """Return a connection, as a context, whose statements each commit by themselves."""
        # Only within a transaction are the server's limits raised.
        return self.several() if self._is_long() else self._watched(self._single)

    @contextmanager
    def several(self) -> Iterator[Connection]:
        """Yield a connection with a transaction; on SQLite no other connection writes meanwhile."""
        with self._watched(self._several) as connection, connection.begin():
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif self._is_long():
                connection.execute(_RAISE_LIMITS, {"limit": f"{seconds():.0f}s"})
            yield connection

    def _is_long(self) -> bool:
        """Return True if the call under way has more time than the server gives by itself."""
        return self._is_limited and seconds() > LIMIT

    @contextmanager
    def _watched(self, engine: Engine) -> Iterator[Connection]:
        """Yield a connection that the watchdog shuts if it is still in use when the call should have ended."""
        with engine.connect() as connection:
            if not self._is_limited:
                yield connection
                return
            driver = connection.connection.dbapi_connection
            watchdog.watch(driver, time.monotonic() + _time_left())
            try:
                yield connection
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
        with self._lock:
            self._watched[id(connection)] = (until, connection)
            self._busy.set()
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="byok-watchdog", daemon=True).start()

    def release(self, connection: Any) -> bool:
        """Stop watching; return False if the connection was shut."""
        # Not while it is being shut: once it is closed, its number would be another's.
        with self._lock:
            return self._watched.pop(id(connection), None) is not None

    def _run(self) -> None:
        while self._busy.wait():
            time.sleep(self._interval)
            with self._lock:
                now = time.monotonic()
                for key, (until, connection) in list(self._watched.items()):
                    if until <= now:
                        del self._watched[key]
                        _shut(connection)
                if not self._watched:
                    self._busy.clear()


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
            outcome.set_result(connect())
        except BaseException as error:
            outcome.set_exception(error)

    # Not of an executor: the process may end, and may still connect while it ends.
    threading.Thread(target=work, name="byok-connect", daemon=True).start()
    try:
        return outcome.result(max(seconds, 0))
    except TimeoutError:
        outcome.add_done_callback(_close)
        raise TimeoutError("The database gave no connection in time.") from None


def _close(late: Future[Any]) -> None:
    # Connecting may have failed, and drivers raise errors of their own.
    with suppress(Exception):
        late.result().close()


#: One for the process.
watchdog = Watchdog()
os.register_at_fork(after_in_child=watchdog.forget)
