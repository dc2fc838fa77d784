"""Engines for the SQL store: the host's, or one of our own made from a URL."""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import Pool, QueuePool

from ..errors import ConfigurationError

#: Seconds to wait for a free connection and for PostgreSQL to accept one.
POOL_TIMEOUT = CONNECT_TIMEOUT = 1
#: Seconds that a SQLite writer queues behind others.
BUSY_TIMEOUT = 5

# Marks our own engines, whose connections commit each statement unless told otherwise.
_OWN = "flask_byok_own"

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


class Transactions:
    """The two ways of talking to an engine: one statement at a time, and several as one.

    Isolation is set for our own connections only; the host's setting stays.
    """

    def __init__(self, engine: Engine) -> None:
        self.dialect = engine.dialect.name
        self._single: Engine = engine
        if not engine.get_execution_options().get(_OWN):
            self._single = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._several: Engine = self._single
        if self.dialect != "sqlite":
            # The statements rely on seeing what was committed while they waited for a row.
            self._several = engine.execution_options(isolation_level="READ COMMITTED")

    @contextmanager
    def single(self) -> Iterator[Connection]:
        """Run statements that each stand alone."""
        with self._single.connect() as connection:
            yield connection

    @contextmanager
    def several(self) -> Iterator[Connection]:
        """Run statements that hold together; on SQLite nobody else writes meanwhile."""
        with self._several.begin() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection


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
    return _own_engine(url, pool_timeout=POOL_TIMEOUT, connect_args={"timeout": BUSY_TIMEOUT})


def _engine(url: URL) -> Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        engine = _sqlite_engine(url)
        event.listen(engine, "connect", _prepare_sqlite)
        return engine
    patience = {"connect_timeout": CONNECT_TIMEOUT} if backend == "postgresql" else {}
    return _own_engine(url, pool_timeout=POOL_TIMEOUT, connect_args=patience)


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
    # SQLite gives its journal files the permissions of this one.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Readers and one writer at once; a crash of the machine loses no acknowledged write with the
    # default "full".
    connection.execute("PRAGMA journal_mode=WAL").close()


def _leave_parents_connections() -> None:
    for engine in list(_forked_engines):
        # Kept, since some drivers say goodbye to the server when a connection is collected.
        _parents_pools.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_parents_connections)
