"""Open databases, and keep PostgreSQL to time limits, as its drivers wait for an answer without end.

A connection in use may be shut from outside: its driver then raises at once. If there is no
connection yet, another thread waits for one, and the caller gives up in time: see ``storage.watchdog``.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import sqlite3
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import Pool, QueuePool

from ..errors import ConfigurationError
from .watchdog import Budget, budget_of_call, watchdog, within

#: Seconds that a call may wait for the server, connecting included, where the settings do not say it. A serverless
#: PostgreSQL wakes up in 1.5.
LIMIT = 2.0
#: Seconds for what takes longer and keeps no request waiting: making tables, batches, reports.
LONG_LIMIT = 30
#: Seconds that a SQLite writer queues behind others.
BUSY_TIMEOUT = 5
#: Connections of one process to a server, where the settings do not say it; PostgreSQL has 100 for all.
CONNECTIONS = 16
#: Connections of one process to a SQLite file that stay open, and how many more it may have for a moment.
_FILE_POOL: dict[str, Any] = {"pool_size": 16, "max_overflow": 48}
#: In memory all threads queue for one.
_ONE_CONNECTION: dict[str, Any] = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
#: Execution option of our own engines, whose connections commit each statement by default: the seconds of
#: their calls, 0 for ``LIMIT``; None if their calls have no limit.
_LIMITED = "flask_byok_limited"
#: Parts of a call's time after which PostgreSQL itself ends the wait for a lock (our pool that for a
#: connection) and a statement: so nothing goes on there that no caller waits for.
_FOR_LOCK, _FOR_STATEMENT = 0.75, 0.875
# Seconds after which a connecting thread that no caller waits for ends; libpq knows no shorter time.
_CONNECT_TIMEOUT = 2
#: Parameters that people write into an address, but that are not libpq's: psycopg's own, which it wants as other
#: types than text, and what other languages' drivers want to know of a pooler.
_NOT_LIBPQ = (
    *("prepare_threshold", "autocommit", "row_factory", "cursor_factory", "context"),
    *("pgbouncer", "connection_limit", "pool_timeout"),
)
_LIBPQ = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")

# Without the address: it may hold a password.
_NO_ADDRESS = (
    "BYOK_DATABASE_URL is no address of a PostgreSQL or SQLite database. Write for example "
    "postgresql://user:password@host:5432/name or sqlite:////path/to/file, or give a SQLAlchemy engine."
)
_NO_DRIVER = (
    "The driver of BYOK_DATABASE_URL ({}) is not installed. Write postgresql://, and install 'flask-byok[postgres]'; "
    "or install that driver."
)
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


def open_engine(
    engine_or_url: Any,
    *,
    own_file: bool = False,
    timeout: float | None = None,
    connections: int | None = None,
) -> Engine:
    """Return the host's engine, or make one for a URL.

    A SQLite file and its folder are made as needed, readable for this user only. SQLite in memory
    gets a database of its own: the host's would be another one in each thread, or share the host's
    transactions.

    :param own_file: do not log that there was no SQLite file, as nothing else uses it.
    :param timeout: seconds that a call may wait for a server of our own address; by default ``LIMIT``.
    :param connections: how many there may be to it; by default ``CONNECTIONS``.
    :raises ConfigurationError: neither an engine nor a URL that SQLAlchemy knows.
    """
    host = engine_or_url if isinstance(engine_or_url, Engine) else None
    url = _parse(engine_or_url) if host is None else host.url
    is_sqlite = url.get_backend_name() == "sqlite"
    # For the host's SQLite too: hosts often begin transactions in ways of their own, which ours would
    # collide with.
    engine = host if host and not is_sqlite else _own_engine(url, timeout, connections)
    if in_memory(url):
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
    except (ArgumentError, ValueError):  # of a port that is no number
        raise ConfigurationError(_NO_ADDRESS) from None
    parsed = parsed.set(drivername=parsed.drivername.lower())
    if parsed.drivername.partition("+")[0] == "postgres":  # as Heroku and libpq write it
        parsed = parsed.set(drivername=parsed.drivername.replace("postgres", "postgresql", 1))
    # A bare postgresql:// means psycopg2 to SQLAlchemy; the extra "postgres" installs psycopg 3.
    bare = parsed.drivername == "postgresql" and find_spec("psycopg2") is None
    return parsed.set(drivername="postgresql+psycopg") if bare else parsed


def in_memory(url: URL) -> bool:
    """Return True if it is SQLite without a file."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def _own_engine(url: URL, timeout: float | None, connections: int | None) -> Engine:
    is_limited = url.drivername in _LIBPQ
    if is_limited:
        url = url.difference_update_query(_NOT_LIBPQ)
    try:
        engine = create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            execution_options={_LIMITED: (timeout or 0) if is_limited else None},
            **_options(url, timeout or LIMIT, connections or CONNECTIONS),
        )
    except (NoSuchModuleError, ModuleNotFoundError):
        is_known = url.get_backend_name() in ("postgresql", "sqlite")
        fault = _NO_DRIVER.format(url.drivername) if is_known else _NO_ADDRESS
        raise ConfigurationError(fault) from None
    if is_limited:
        event.listen(engine, "do_connect", _Connector())
    return engine


def _options(url: URL, timeout: float, connections: int) -> dict[str, Any]:
    """Return the options of our own engine: its pool, and how long it waits."""
    if url.get_backend_name() == "sqlite":
        arguments = {"timeout": BUSY_TIMEOUT, "check_same_thread": False}
        pool = _ONE_CONNECTION if in_memory(url) else _FILE_POOL
        return pool | {"pool_timeout": BUSY_TIMEOUT, "connect_args": arguments}
    if url.drivername not in _LIBPQ:
        return {}
    lock, statement = (int(timeout * 1000 * part) for part in (_FOR_LOCK, _FOR_STATEMENT))
    limits = f"-c lock_timeout={lock} -c statement_timeout={statement}"
    # The options in the address come last and count.
    options = " ".join((limits, *url.normalized_query.get("options", ())))
    longest = max(_CONNECT_TIMEOUT, math.ceil(timeout))
    connecting = {"connect_timeout": longest, "options": options}
    if url.drivername == "postgresql+psycopg":
        # A pooler may give each transaction another connection of the server, which knows other statements, or none,
        # by the names that we prepared them under. Planned each time, our small statements take hardly longer.
        connecting["prepare_threshold"] = None
    # Connections above those that are kept would be made and thrown away all the time.
    return {
        "pool_size": connections,
        "max_overflow": 0,
        "pool_timeout": timeout * _FOR_LOCK,
        "connect_args": connecting,
    }


class _Connector:
    """Connects one engine, and remembers if a pooler is in between that takes no settings."""

    def __init__(self) -> None:
        self._sends_limits = True

    def __call__(self, dialect: Any, _record: Any, args: Any, options: dict[str, Any]) -> Any:
        budget = budget_of_call.get()
        connect = partial(self._connect, dialect, args, options)
        connection = within(budget or Budget(LIMIT), connect)
        if budget is not None:
            # SQLAlchemy asks a new connection about the server before we get it.
            watchdog.watch(connection, budget)
        return connection

    def _connect(self, dialect: Any, args: Any, options: dict[str, Any]) -> Any:
        given = "".join(options["options"].split(" ", 4)[4:])  # after our two
        if self._sends_limits:
            try:
                return dialect.connect(*args, **options)
            except dialect.loaded_dbapi.OperationalError as error:
                if "startup parameter" not in str(error):
                    raise
        # PgBouncer and its like refuse settings; then the watchdog alone has to do.
        connection = dialect.connect(*args, **options | {"options": given})
        self._sends_limits = False
        return connection


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


@contextmanager
def patiently(seconds: float = LONG_LIMIT) -> Iterator[None]:
    """Give every call in a block this many seconds: no request waits for it."""
    before = _given.set(seconds)
    try:
        yield
    finally:
        _given.reset(before)


def seconds(limit: float | None = None) -> float:
    """Return the seconds that a call may take here, of an engine with this limit."""
    return _given.get() or limit or LIMIT


class Transactions:
    """The two ways of using an engine: one statement at a time, and several as one.

    Isolation is set for our own connections only; the host's setting stays. On an engine of our own
    PostgreSQL has a time to answer, and a connection that did not is closed. A host's engine
    keeps the host's limits.
    """

    def __init__(self, engine: Engine) -> None:
        options = engine.get_execution_options()
        self.dialect = engine.dialect.name
        self._limit: float | None = options.get(_LIMITED)
        self._single: Engine = engine
        if _LIMITED not in options:
            self._single = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._several: Engine = self._single
        if self.dialect != "sqlite":
            # The statements rely on seeing what was committed while they waited for a row.
            self._several = engine.execution_options(isolation_level="READ COMMITTED")

    def call(self, function: Callable[[], T]) -> T:
        """Call a function that uses transactions, all of which together wait for ``seconds()``.

        A nested call has its own budget, which is not charged to the outer one.
        """
        if self._limit is None:
            return function()
        budget = Budget(seconds(self._limit))
        outer = budget_of_call.set(budget)
        try:
            return function()
        except BaseException:
            watchdog.leave(budget)  # of a connection that failed before we got it
            raise
        finally:
            budget_of_call.reset(outer)

    def in_time(self, until: float) -> bool:
        """Return True if the call under way may still ask; without a limit of ours, until then (monotonic seconds)."""
        budget = budget_of_call.get()
        return time.monotonic() < until if budget is None else budget.left > 0

    def pooler(self) -> tuple[bool, bool]:
        """Return if a pooler answers in PostgreSQL's place, and if the driver prepares statements over it.

        A pooler serves over changing processes of the server, and gives its clients another number than theirs.
        """
        if self.dialect != "postgresql":
            return False, False
        with self._single.connect() as connection:
            driver = connection.connection.dbapi_connection
            number = connection.scalar(text("SELECT pg_backend_pid()"))
        told = getattr(getattr(driver, "info", None), "backend_pid", number)  # libpq's drivers only
        return told != number, getattr(driver, "prepare_threshold", None) is not None

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
                connection.execute(_RAISE_LIMITS, {"limit": f"{seconds(self._limit):.0f}s"})
            yield connection

    def _is_long(self) -> bool:
        """Return True if the call under way has more time than the server gives by itself."""
        return self._limit is not None and seconds(self._limit) > (self._limit or LIMIT)

    @contextmanager
    def _watched(self, engine: Engine) -> Iterator[Connection]:
        """Yield a connection that the watchdog shuts if the server takes longer than the call may wait."""
        with engine.connect() as connection:
            if self._limit is None:
                with _unprepared(connection.connection.dbapi_connection):
                    yield connection
                return
            driver = connection.connection.dbapi_connection
            watchdog.watch(driver, budget_of_call.get() or Budget(seconds(self._limit)))
            try:
                yield connection
            finally:
                if not watchdog.release(driver):
                    connection.invalidate()


@contextmanager
def _unprepared(driver: Any) -> Iterator[None]:
    """Keep psycopg from preparing our statements on a connection of the host's, see ``_options``."""
    before = getattr(driver, "prepare_threshold", None)
    try:
        if before is not None:
            driver.prepare_threshold = None
        yield
    finally:
        if before is not None:
            driver.prepare_threshold = before
