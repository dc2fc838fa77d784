"""Make and upgrade the tables.

An empty database gets them by itself at first use. An older schema is upgraded by
``flask byok db upgrade`` only, as another version may still be running on it; in an embedded file,
which nothing else uses, at first use too. A host whose own Alembic makes the tables from
:data:`flask_byok.storage.tables.metadata` needs no version table of this package.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ...errors import OutdatedTablesError
from ..engine import LONG_LIMIT
from ..sql import REFUSED, TRIES, Transactions, is_without_right
from ..tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

#: Apart from the host's own.
VERSION_TABLE = "byok_alembic_version"

_OUTDATED = (
    "The database's byok_ tables are older than this version of flask-byok: "
    "run 'flask byok db upgrade', or your own migration if it makes these tables."
)
#: Errors of a database that does not answer, or refuses.
FAULTS = (SQLAlchemyError, TimeoutError)
#: The number of PostgreSQL's advisory lock for a migration; the same in every worker.
_LOCK = 0x62796F6B
#: Seconds for an operator's upgrade, which may have large tables to change.
_UPGRADE_LIMIT = 3600
#: Alembic's ``op`` is the process's, so one thread at a time migrates.
_alembic = threading.Lock()

T = TypeVar("T")


def prepare(transactions: Transactions, needed: Iterable[Table], *, own_file: bool = False) -> None:
    """Make the tables if the database has none, and check that these are as needed.

    :param own_file: nothing else uses the file, so an older version's tables are upgraded.
    :raises OutdatedTablesError: the tables are older than this version.
    """
    wanted = metadata.sorted_tables if own_file else needed
    # Only a database that has just answered is given more time.
    if not _answers(transactions, wanted):
        transactions.call(_complete, transactions, wanted, own_file, limit=LONG_LIMIT)


def upgrade(engine: Engine) -> None:
    """Bring the tables to this version; several upgrades at once wait for each other.

    :raises OutdatedTablesError: the database's user has not the rights.
    """
    transactions = Transactions(engine)
    try:
        transactions.call(_run, transactions, _upgrade, limit=_UPGRADE_LIMIT)
    except DBAPIError as error:
        if is_without_right(error):
            raise OutdatedTablesError(REFUSED) from None
        raise


def current(engine: Engine) -> str | None:
    """Return the revision of the tables; None if there are none, or if the host's Alembic made them."""
    transactions = Transactions(engine)
    return transactions.call(lambda: _read(transactions, _revision), limit=LONG_LIMIT)


def sql(dialect: str = "postgresql") -> str:
    """Return the statements that make all tables in an empty database, for its administrator."""
    from alembic import command

    output = io.StringIO()
    config = _config(dialect=dialect)
    config.output_buffer = output
    command.upgrade(config, "head", sql=True)
    return output.getvalue()


def head() -> str:
    """Return the newest revision."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def missing_rights(engine: Engine) -> list[str]:
    """Return the rights that the user lacks, such as ``INSERT on byok_usage``; no row is changed.

    A database that is read-only raises what its driver says.
    """
    transactions = Transactions(engine)
    return [
        f"{right} on {table.name}"
        for table in metadata.sorted_tables
        for right, statement in _statements(table)
        if not transactions.call(_may, transactions, statement)
    ]


def _statements(table: Table) -> Iterator[tuple[str, Any]]:
    """Yield statements that need a right and find no row."""
    columns = list(table.c)
    nothing = sa.select(*columns).where(sa.false())
    yield "SELECT", nothing
    yield "INSERT", sa.insert(table).from_select(columns, nothing)
    yield "UPDATE", sa.update(table).where(sa.false()).values({columns[-1]: columns[-1]})
    yield "DELETE", sa.delete(table).where(sa.false())


def _may(transactions: Transactions, statement: Any) -> bool:
    try:
        with transactions.several() as connection:
            connection.execute(statement)
    except DBAPIError as error:
        if is_without_right(error):
            return False
        raise
    return True


def _answers(transactions: Transactions, wanted: Iterable[Table]) -> bool:
    """Return True if the tables can be read; that costs far less than a look at the schema."""
    query = sa.select(*(sa.select(table).where(sa.false()).exists() for table in wanted))
    with transactions.single() as connection:
        try:
            connection.execute(query)
        except DBAPIError as error:
            if error.connection_invalidated or is_without_right(error):
                raise
            return False
    return True


def _complete(transactions: Transactions, wanted: Iterable[Table], own_file: bool) -> None:
    present = _read(transactions, _tables)
    if not present or (own_file and not _suffice(present, wanted)):
        _make_tables(transactions, own_file)
        present = _read(transactions, _tables)
    if not _suffice(present, wanted):
        raise OutdatedTablesError(_OUTDATED)


def _make_tables(transactions: Transactions, own_file: bool) -> None:
    for attempt in range(TRIES):
        try:
            _run(transactions, _upgrade if own_file else _upgrade_if_empty)
            return
        except SQLAlchemyError as error:
            late = attempt == TRIES - 1 or not transactions.in_time()
            if late or is_without_right(error):
                raise
            time.sleep(0.05)


def _read(transactions: Transactions, look: Callable[[Connection], T]) -> T:
    with transactions.single() as connection:
        return look(connection)


def _run(transactions: Transactions, work: Callable[[Connection], T]) -> T:
    with _alembic, transactions.several() as connection:
        if transactions.dialect == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        return work(connection)


def _upgrade_if_empty(connection: Connection) -> None:
    if not _tables(connection):
        _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    from alembic import command

    config = _config(connection=connection)
    present = _tables(connection)
    if not present:
        # There is nothing, even if the version table says otherwise.
        command.stamp(config, "base", purge=True)
    elif _revision(connection) is None and _suffice(present, metadata.sorted_tables):
        command.stamp(config, "head")  # the host's own Alembic made them
    command.upgrade(config, "head")


def _suffice(present: Mapping[str, set[str]], needed: Iterable[Table]) -> bool:
    return all(present.get(table.name, set()).issuperset(table.columns.keys()) for table in needed)


def _tables(connection: Connection) -> dict[str, set[str]]:
    """Return the columns of each of our tables that exists, in one look."""
    names = [table.name for table in metadata.sorted_tables]
    found = sa.inspect(connection).get_multi_columns(filter_names=names)
    return {name: {column["name"] for column in columns} for (_, name), columns in found.items()}


def _revision(connection: Connection) -> str | None:
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    revision: str | None = context.get_current_revision()
    return revision


def _config(**attributes: object) -> Config:
    from alembic.config import Config

    config = Config()
    folder = str(files(__name__))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(attributes)
    return config
