"""Make and upgrade the tables.

An empty database gets them by itself at first use. An older schema is upgraded by
``flask byok db upgrade`` only, as another version may still be running on it; in an embedded file,
which nothing else uses, at first use too. A host whose own Alembic makes the tables from
:data:`flask_byok.storage.tables.metadata` needs no version table of this package.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Table

from ...errors import ConfigurationError, OutdatedTablesError
from ..engine import Transactions, patiently
from ..sql import Database
from ..tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

#: Apart from the host's own.
VERSION_TABLE = "byok_alembic_version"

_OUTDATED = (
    "The database's byok_ tables are older than this version of flask-byok: "
    "run 'flask byok db upgrade', or your own migration if it makes these tables."
)
#: The number of PostgreSQL's advisory lock for a migration; the same in every worker.
_LOCK = 0x62796F6B
#: Seconds for an operator's upgrade, which may have large tables to change.
_UPGRADE_LIMIT = 3600
#: Alembic's ``op`` is the process's, so one thread at a time migrates.
_alembic = threading.Lock()

T = TypeVar("T")
_Columns = Mapping[str, set[str]]


def prepare(transactions: Transactions, needed: Iterable[Table], *, own_file: bool = False) -> None:
    """Make the tables if the database has none, and check that these are as needed.

    :param own_file: nothing else uses the file, so an older version's tables are upgraded.
    :raises OutdatedTablesError: the tables are older than this version.
    """
    wanted = metadata.sorted_tables if own_file else needed
    present = _read(transactions, _tables)
    # Older tables are no reason to wait for an upgrade that is under way.
    if not present or (own_file and not _suffice(present, wanted)):
        with patiently():  # only a database that has just answered is given more time
            present = transactions.call(lambda: _alone(transactions, _upgrade))
    _require(present, wanted)


def upgrade(database: Database) -> None:
    """Bring the tables to this version; several upgrades at once wait for each other.

    :raises OutdatedTablesError: the database's user has not the rights, or the host's own Alembic made older tables.
    """
    with patiently(_UPGRADE_LIMIT):
        present = database.call(lambda: _alone(database.transactions, _upgrade))
    _require(present, metadata.sorted_tables)


def current(database: Database) -> str | None:
    """Return the revision of the tables; None if there are none, or if the host's Alembic made them.

    :raises ConfigurationError: a later version of flask-byok created them.
    """
    return database.call(lambda: _read(database.transactions, _revision))


def sql(dialect: str = "postgresql") -> str:
    """Return the statements that make all tables in an empty database, for its administrator."""
    from alembic import command

    output = io.StringIO()
    command.stamp(_config(output, dialect_name=dialect), "head", sql=True)
    return output.getvalue()


def head() -> str:
    """Return the newest revision."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def try_rights(database: Database) -> None:
    """Use each right that the app needs on each table, and change nothing.

    :raises StoreError: the database is read-only.
    :raises OutdatedTablesError: the database's user lacks a right.
    """

    def work(connection: Connection) -> None:
        for table in metadata.sorted_tables:
            none, columns = sa.select(table).where(sa.false()), table.columns
            connection.execute(sa.insert(table).from_select(columns.keys(), none))
            connection.execute(sa.update(table).where(sa.false()).values(dict(columns)))
            connection.execute(sa.delete(table).where(sa.false()))

    database.call(lambda: _alone(database.transactions, work))


def _read(transactions: Transactions, look: Callable[[Connection], T]) -> T:
    with transactions.single() as connection:
        return look(connection)


def _alone(transactions: Transactions, work: Callable[[Connection], T]) -> T:
    """Run a function in a transaction while no other process and no other thread migrates."""
    with _alembic, transactions.several() as connection:
        if transactions.dialect == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        return work(connection)


def _upgrade(connection: Connection) -> _Columns:
    """Make the tables if there are none, else upgrade them; return their columns."""
    from alembic import command

    config, present = _config(connection=connection), _tables(connection)
    if not present:
        metadata.create_all(connection, checkfirst=False)
        # Even if the version table says otherwise.
        command.stamp(config, "head", purge=True)
    else:
        if _revision(connection) is None and _suffice(present, metadata.sorted_tables):
            command.stamp(config, "head")  # the host's own Alembic made them
        command.upgrade(config, "head")
    return _tables(connection)


def _require(present: _Columns, needed: Iterable[Table]) -> None:
    if not _suffice(present, needed):
        raise OutdatedTablesError(_OUTDATED)


def _suffice(present: _Columns, needed: Iterable[Table]) -> bool:
    return all(present.get(table.name, set()).issuperset(table.columns.keys()) for table in needed)


def _tables(connection: Connection) -> _Columns:
    """Return the columns of each of our tables that exists, in one look."""
    names = [table.name for table in metadata.sorted_tables]
    found = sa.inspect(connection).get_multi_columns(filter_names=names)
    return {name: {column["name"] for column in columns} for (_, name), columns in found.items()}


def _revision(connection: Connection) -> str | None:
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    revision: str | None = context.get_current_revision()
    if revision is not None and revision > head():
        raise ConfigurationError(
            f"The tables are at revision {revision}, which a later version of flask-byok has created: install that one."
        )
    return revision


def _config(output: io.StringIO | None = None, **attributes: object) -> Config:
    from alembic.config import Config

    config = Config(output_buffer=output, attributes=attributes)
    config.set_main_option("script_location", "flask_byok.storage:migrations")
    return config
