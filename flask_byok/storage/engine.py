"""Open databases: the host's engine, or one of our own made from a URL."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import Pool, QueuePool

from ..errors import ConfigurationError
from . import deadline

#: Seconds that a SQLite writer queues behind others.
BUSY_TIMEOUT = 5
#: Connections of one process that stay open, and how many more it may have for a moment.
POOL_SIZE, MAX_OVERFLOW = 16, 48
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

    :param limit: seconds that a call may take on PostgreSQL; None means ``deadline.LIMIT``.
    :raises ConfigurationError: neither an engine nor a URL that SQLAlchemy knows.
    """
    host = engine_or_url if isinstance(engine_or_url, Engine) else None
    url = _parse(engine_or_url) if host is None else host.url
    if _in_memory(url):
        return _memory_engine()
    if host is None:
        engine = _engine(url, limit)
    elif url.get_backend_name() == "sqlite":
        # Hosts often begin SQLite transactions in ways of their own, which ours would collide with.
        engine = _sqlite_engine(url)
    else:
        engine = host
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


def _engine(url: URL, limit: float | None) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = _sqlite_engine(url)
        event.listen(engine, "connect", _prepare_sqlite)
        return engine
    if url.drivername not in _LIBPQ:
        return _own_engine(url)
    seconds = limit or deadline.LIMIT
    engine = _own_engine(
        url,
        mark={LIMITED: limit},
        pool_size=POOL_SIZE,
        max_overflow=MAX_OVERFLOW,
        pool_timeout=seconds * _FOR_LOCK,
        connect_args=_libpq_limits(url, seconds),
    )
    event.listen(engine, "do_connect", _connect_in_time)
    return engine


def _libpq_limits(url: URL, seconds: float) -> dict[str, Any]:
    lock, statement = int(seconds * 1000 * _FOR_LOCK), int(seconds * 1000 * _FOR_STATEMENT)
    given = url.normalized_query.get("options", ())
    limits = f"-c lock_timeout={lock} -c statement_timeout={statement}"
    # The options in the address come last and count.
    return {"connect_timeout": _CONNECT_TIMEOUT, "options": " ".join((limits, *given))}


def _connect_in_time(dialect: Any, _record: Any, args: Any, options: dict[str, Any]) -> Any:
    left = deadline.time_left()
    connection = deadline.within(left, lambda: _connect(dialect, args, options))
    # SQLAlchemy asks a new connection about the server before we get it.
    deadline.watch_new(connection)
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
