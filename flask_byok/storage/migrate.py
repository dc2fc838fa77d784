"""Make and upgrade the tables.

An empty database gets them by itself at first use. An older schema is upgraded by
``flask byok db upgrade`` only, as another version may still be running on it; in an embedded file,
which is ours alone, at first use too. A host whose own
Alembic makes our tables from :data:`flask_byok.storage.tables.metadata` has no version table of
ours, and needs none.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine, Table, false, inspect, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..errors import OutdatedTablesError
from .engine import LONG_LIMIT, Transactions
from .sql_types import MARIADB
from .tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

#: Apart from the host's own.
VERSION_TABLE = "byok_alembic_version"

_OUTDATED = (
    "The database's byok_ tables are older than this version of flask-byok: "
    "run 'flask byok db upgrade', or your own migration if it makes these tables."
)
_REFUSED = (
    "The database's user may not make tables, or not use those that begin with byok_: let an administrator run "
    "what 'flask byok db sql' prints, and grant it SELECT, INSERT, UPDATE and DELETE on them."
)
#: PostgreSQL's insufficient_privilege.
_NO_RIGHT = "42501"
#: What a database that does not answer, or refuses, raises here.
FAULTS = (SQLAlchemyError, TimeoutError)
#: Any number, the same in every worker: PostgreSQL's advisory lock for the time of a migration.
_LOCK = 0x62796F6B
#: Seconds for an operator's upgrade, which may have large tables to change.
_UPGRADE_LIMIT = 3600
#: Databases without such a lock: so many tries while another worker makes the tables.
_TRIES = 8
# MariaDB's lock, of the connection's database; it has to be given back.
_TAKE, _GIVE_BACK = (
    text(f"SELECT {function}(CONCAT('byok', MD5(DATABASE())){seconds})")
    for function, seconds in (("GET_LOCK", f", {LONG_LIMIT}"), ("RELEASE_LOCK", ""))
)

_alembic = threading.Lock()

T = TypeVar("T")


def prepare(transactions: Transactions, needed: Iterable[Table], *, own_file: bool = False) -> None:
    """Make the tables where the database has none of ours, and see that these are as needed.

    :param own_file: nothing else uses it, so an older version's tables are upgraded.
    :raises OutdatedTablesError: the tables are older than this version.
    """
    wanted = metadata.sorted_tables if own_file else needed
    # Only what has just answered is given more time.
    if not _answers(transactions, wanted):
        transactions.call(_complete, transactions, wanted, own_file, limit=LONG_LIMIT)


def upgrade(engine: Engine) -> None:
    """Bring the tables to this version; several at once wait for each other.

    :raises OutdatedTablesError: the database's user has not the rights.
    """
    transactions = Transactions(engine)
    with rights():
        transactions.call(_run, transactions, _upgrade, limit=_UPGRADE_LIMIT)


def current(engine: Engine) -> str | None:
    """Return the revision that the tables are at, None where there are none or the host's Alembic made them."""
    transactions = Transactions(engine)
    return transactions.call(_read_revision, transactions, limit=LONG_LIMIT)


def sql(dialect: str = "postgresql") -> str:
    """Return the statements that make everything in an empty database, for a database administrator."""
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


@contextmanager
def rights() -> Iterator[None]:
    """Say what an administrator has to do where the database refuses for want of a right.

    :raises OutdatedTablesError: it did.
    """
    try:
        yield
    except DBAPIError as error:
        if is_without_right(error):
            raise OutdatedTablesError(_REFUSED) from None
        raise


def is_without_right(error: Exception) -> bool:
    """Say whether the database refused for want of a right."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _NO_RIGHT


def _answers(transactions: Transactions, wanted: Iterable[Table]) -> bool:
    """Ask the tables themselves, which costs far less than a look at the schema."""
    query = select(*(select(table).where(false()).exists() for table in wanted))
    with transactions.single() as connection:
        try:
            connection.execute(query)
        except DBAPIError as error:
            if error.connection_invalidated or is_without_right(error):
                raise
            return False
    return True


def _complete(transactions: Transactions, wanted: Iterable[Table], own_file: bool) -> None:
    present = _look(transactions)
    if not present or (own_file and not _suffice(present, wanted)):
        _make_tables(transactions, own_file)
        present = _look(transactions)
    if not _suffice(present, wanted):
        raise OutdatedTablesError(_OUTDATED)


def _make_tables(transactions: Transactions, own_file: bool) -> None:
    for attempt in range(_TRIES):
        try:
            _run(transactions, _upgrade if own_file else _upgrade_if_empty)
            return
        except SQLAlchemyError as error:
            late = attempt == _TRIES - 1 or not transactions.in_time()
            if late or is_without_right(error):
                raise
            time.sleep(0.05)


def _read_revision(transactions: Transactions) -> str | None:
    with transactions.single() as connection:
        return _revision(connection)


def _run(transactions: Transactions, work: Callable[[Connection], T]) -> T:
    # One at a time here, as Alembic's ``op`` is the process's, and in the database.
    with _alembic, transactions.several() as connection, _alone(connection):
        return work(connection)


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    dialect = connection.dialect.name
    if dialect == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    if dialect not in MARIADB:
        yield
        return
    if not connection.execute(_TAKE).scalar():
        raise TimeoutError("Another worker is making the tables.")
    try:
        yield
    finally:
        connection.execute(_GIVE_BACK)


def _upgrade_if_empty(connection: Connection) -> None:
    if not _tables(connection):
        _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    from alembic import command

    config = _config(connection=connection)
    present = _tables(connection)
    if not present:
        # Whatever the version table says, there is nothing.
        command.stamp(config, "base", purge=True)
    elif _revision(connection) is None and _suffice(present, metadata.sorted_tables):
        command.stamp(config, "head")  # the host's own Alembic made them
    command.upgrade(config, "head")


def _look(transactions: Transactions) -> dict[str, set[str]]:
    if transactions.dialect in MARIADB:
        return _run(transactions, _tables)  # there a table is seen before the others are made
    with transactions.single() as connection:
        return _tables(connection)


def _suffice(present: Mapping[str, set[str]], needed: Iterable[Table]) -> bool:
    return all(present.get(table.name, set()).issuperset(table.columns.keys()) for table in needed)


def _tables(connection: Connection) -> dict[str, set[str]]:
    """Return the columns of each of our tables that is there, in one look."""
    names = [table.name for table in metadata.sorted_tables]
    found = inspect(connection).get_multi_columns(filter_names=names)
    return {name: {column["name"] for column in columns} for (_, name), columns in found.items()}


def _revision(connection: Connection) -> str | None:
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    revision: str | None = context.get_current_revision()
    return revision


def _config(**attributes: object) -> Config:
    from alembic.config import Config

    config = Config()
    folder = str(files("flask_byok.storage.migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(attributes)
    return config
