"""Engines for the SQL store: the host's, or one of our own made from a URL."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import Pool, QueuePool

from ..errors import ConfigurationError
from .deadline import patient, watchdog, within
from .sql_types import MARIADB

#: Seconds that a call to PostgreSQL may take, waiting for a connection included.
LIMIT = 0.4
#: Seconds for what takes longer and keeps no request waiting: making tables, batches, reports.
LONG_LIMIT = 30
#: Seconds to wait for a free connection of our own.
POOL_TIMEOUT = 0.3
#: Seconds that a SQLite writer queues behind others.
BUSY_TIMEOUT = 5
#: Connections of one process that stay open, and how many more it may have for a moment.
POOL_SIZE, MAX_OVERFLOW = 16, 48
# What PostgreSQL ends by itself, in milliseconds: so nothing goes on there that nobody waits for.
_SERVER_LIMITS = "-c lock_timeout=300 -c statement_timeout=350"
# For one transaction.
_RAISE_LIMITS = text(
    "SELECT set_config('lock_timeout', :limit, true), set_config('statement_timeout', :limit, true)"
)
# Seconds after which a connecting thread that nobody waits for ends; libpq knows no shorter time.
_CONNECT_TIMEOUT = 2
# Drivers that take a read_timeout; mysqlclient is what a URL without a driver means.
_MARIADB = {
    f"{name}{driver}" for name in ("mysql", "mariadb") for driver in ("", "+pymysql", "+mysqldb")
}
_LIBPQ = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")

# Marks our own engines, whose connections commit each statement unless told otherwise.
_OWN = "flask_byok_own"

T = TypeVar("T")


class _Call(threading.local):
    """The call under way in this thread: its limit, and when it has to end in monotonic seconds."""

    limit: float = LIMIT
    until: float | None = None

    def left(self) -> float:
        return LIMIT if self.until is None else self.until - time.monotonic()


_call = _Call()

_forked_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_parents_pools: list[Pool] = []


def open_engine(engine_or_url: Any) -> Engine:
    """Return the host's engine, or make one for a URL.

    A SQLite file and its folder are made as needed, readable for this user only. SQLite in memory
    gets a database of its own: the host's would be another one in each thread, or share the host's
    transactions.

    :raises ConfigurationError: neither an engine nor a URL that SQLAlchemy knows.
    """
    host = engine_or_url if isinstance(engine_or_url, Engine) else None
    url = _parse(engine_or_url) if host is None else host.url
    if _in_memory(url):
        return _memory_engine()
    if host is None:
        engine = _engine(url)
    elif url.get_backend_name() == "sqlite":
        # Hosts often begin SQLite transactions in ways of their own, which ours would collide with.
        engine = _sqlite_engine(url)
    else:
        engine = host
    _forked_engines.add(engine)
    return engine


def missing_file(engine_or_url: Any) -> Path | None:
    """Return the SQLite file that an engine would make, None where it is there or there is none to be."""
    url = engine_or_url.url if isinstance(engine_or_url, Engine) else _parse(engine_or_url)
    if url.get_backend_name() != "sqlite" or _in_memory(url):
        return None
    name = url.database or ""
    return None if name.startswith("file:") or Path(name).exists() else Path(name)


class Transactions:
    """The two ways of talking to an engine: one statement at a time, and several as one.

    Isolation is set for our own connections only; the host's setting stays. PostgreSQL is waited
    for no longer than ``LIMIT``, on the host's connections too; one that did not answer is closed.
    What nobody's request waits for may be given a longer time.
    """

    def __init__(self, engine: Engine) -> None:
        self.dialect = engine.dialect.name
        self._limited = self.dialect == "postgresql"
        self._own = bool(engine.get_execution_options().get(_OWN))
        self._single: Engine = engine
        if not self._own:
            self._single = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._several: Engine = self._single
        if self.dialect != "sqlite":
            # The statements rely on seeing what was committed while they waited for a row.
            self._several = engine.execution_options(isolation_level="READ COMMITTED")

    def call(self, function: Callable[..., T], *args: Any, limit: float | None = None) -> T:
        """Call what uses transactions; all of them together have to end within so many seconds.

        Without a number it is ``LIMIT``, for an operator's command ``LONG_LIMIT``. A call within a call has a time of
        its own, which the outer one gets back.
        """
        started, outer = time.monotonic(), (_call.limit, _call.until)
        usual = LONG_LIMIT if patient.get() else LIMIT
        _call.limit = usual if limit is None else limit
        _call.until = started + _call.limit
        try:
            return function(*args)
        finally:
            _call.limit, until = outer
            _call.until = None if until is None else until + time.monotonic() - started

    def in_time(self) -> bool:
        """Say whether the call under way may still ask."""
        return not self._limited or _call.left() > 0

    @contextmanager
    def single(self) -> Iterator[Connection]:
        """Run statements that each stand alone."""
        if self._patient():
            # Only within a transaction are the server's limits raised.
            with self.several() as connection:
                yield connection
            return
        with self._connect(self._single) as connection, _Watched(connection, self._limited):
            yield connection

    @contextmanager
    def several(self) -> Iterator[Connection]:
        """Run statements that hold together; on SQLite nobody else writes meanwhile."""
        with (
            self._connect(self._several) as connection,
            _Watched(connection, self._limited),
            connection.begin(),
        ):
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            if self._patient():
                connection.execute(_RAISE_LIMITS, {"limit": f"{_call.limit:.0f}s"})
            yield connection

    def _patient(self) -> bool:
        return self._limited and _call.limit > LIMIT

    def _connect(self, engine: Engine) -> Connection:
        try:
            return self._take(engine)
        except engine.dialect.loaded_dbapi.Error as error:
            # The server had closed it, as drivers for MariaDB find out when isolation is set;
            # SQLAlchemy lets that through.
            raise OperationalError(None, None, error, connection_invalidated=True) from None

    def _take(self, engine: Engine) -> Connection:
        if self._own or not self._limited:
            return engine.connect()
        # The host's pool may be used up, test its connections or make one: all take their time.
        return within(_call.left(), engine.connect)


class _Watched:
    """Lets the watchdog shut a connection that is in use when the call should have ended."""

    def __init__(self, connection: Connection, limited: bool) -> None:
        self._connection = connection
        self._driver = connection.connection.dbapi_connection if limited else None

    def __enter__(self) -> None:
        if self._driver is not None:
            watchdog.watch(self._driver, time.monotonic() + _call.left())

    def __exit__(self, *_: object) -> None:
        if self._driver is not None and not watchdog.release(self._driver):
            self._connection.invalidate()


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


def _memory_engine() -> Engine:
    # One connection for all threads, which queue for it.
    return _own_engine(
        make_url("sqlite://"),
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT,
        connect_args={"check_same_thread": False},
    )


def _sqlite_engine(url: URL) -> Engine:
    _make_file(url)
    return _own_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=MAX_OVERFLOW,
        pool_timeout=BUSY_TIMEOUT,
        connect_args={"timeout": BUSY_TIMEOUT},
    )


def _engine(url: URL) -> Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        engine = _sqlite_engine(url)
        event.listen(engine, "connect", _prepare_sqlite)
        return engine
    engine = _own_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=MAX_OVERFLOW,
        pool_timeout=POOL_TIMEOUT,
        pool_pre_ping=backend in MARIADB,
        connect_args=_limits(url),
    )
    event.listen(engine, "do_connect", _connect_in_time)
    if backend in MARIADB:
        event.listen(engine, "connect", _prepare_mariadb)
    return engine


def _limits(url: URL) -> dict[str, Any]:
    if url.drivername in _LIBPQ:
        return _libpq_limits(url)
    # MariaDB's are not watched; without this they wait for a frozen server without end.
    waits = url.drivername in _MARIADB and "read_timeout" not in url.query
    return {"read_timeout": LONG_LIMIT} if waits else {}


def _libpq_limits(url: URL) -> dict[str, Any]:
    given = url.normalized_query.get("options", ())
    return {
        "connect_timeout": _CONNECT_TIMEOUT,
        # Theirs come last and count.
        "options": " ".join((_SERVER_LIMITS, *given)),
    }


def _connect_in_time(dialect: Any, _record: Any, args: Any, options: dict[str, Any]) -> Any:
    connection = within(_call.left(), lambda: _connect(dialect, args, options))
    if _call.until is not None:
        # SQLAlchemy asks a new connection about the server before we get it.
        watchdog.watch(connection, _call.until)
    return connection


def _connect(dialect: Any, args: Any, options: dict[str, Any]) -> Any:
    try:
        return dialect.connect(*args, **options)
    except dialect.loaded_dbapi.OperationalError as error:
        if "startup parameter" not in str(error):
            raise
    # PgBouncer and its like refuse settings; then the watchdog alone has to do.
    given = options["options"].removeprefix(_SERVER_LIMITS).strip()
    return dialect.connect(*args, **options | {"options": given})


def _own_engine(url: URL, **options: Any) -> Engine:
    mark = {_OWN: True}
    try:
        return create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            execution_options=mark,
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
    # One that is there is not opened: closing it would end the locks of this process's other connections to it
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
            # Those who open a new file first meet here, and SQLite lets none wait for this by itself.
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _prepare_mariadb(connection: Any, _record: Any) -> None:
    # In whole seconds; 50 by default.
    with closing(connection.cursor()) as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")


def _leave_parents_connections() -> None:
    for engine in list(_forked_engines):
        # Kept, since some drivers say goodbye to the server when a connection is collected.
        _parents_pools.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_parents_connections)
