"""Make and upgrade the tables.

An empty database gets them by itself at first use. An older schema is upgraded by
``flask byok db upgrade`` only: another version may still be running on it. A host whose own
Alembic makes our tables from :data:`flask_byok.stores.tables.metadata` has no version table of
ours, and needs none.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, Table, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from ..errors import ConfigurationError
from .sql_engine import Transactions
from .tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

#: Apart from the host's own.
VERSION_TABLE = "byok_alembic_version"

_OUTDATED = (
    "The database's byok_ tables are older than this version of flask-byok: "
    "run 'flask byok db upgrade', or your own migration if it makes these tables."
)
#: Any number, the same in every worker: PostgreSQL's advisory lock for the time of a migration.
_LOCK = 0x62796F6B
#: Databases without such a lock: so many tries while another worker makes the tables.
_TRIES = 8

_logger = logging.getLogger("flask_byok.stores")


def prepare(engine: Engine, needed: Iterable[Table]) -> None:
    """Make the tables where the database has none of ours, and see that these are as needed.

    :raises ConfigurationError: the tables are older than this version.
    """
    if not _present(engine):
        _make_tables(engine)
    present = _present(engine)
    for table in needed:
        if not present.get(table.name, set()).issuperset(table.columns.keys()):
            raise ConfigurationError(_OUTDATED)


def upgrade(engine: Engine) -> None:
    """Bring the tables to this version; several at once wait for each other."""
    with _locked(engine) as connection:
        _upgrade(connection)


def current(engine: Engine) -> str | None:
    """Return the revision that the tables are at, None where there are none or the host's Alembic made them."""
    with Transactions(engine).single() as connection:
        return _revision(connection)


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


def _make_tables(engine: Engine) -> None:
    for attempt in range(_TRIES):
        try:
            with _locked(engine) as connection:
                if not _tables(connection):
                    _upgrade(connection)
            return
        except SQLAlchemyError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.05)


def _upgrade(connection: Connection) -> None:
    from alembic import command

    config = _config(connection=connection)
    present = _tables(connection)
    if not present:
        # Whatever the version table says, there is nothing.
        command.stamp(config, "base", purge=True)
    elif _revision(connection) is None:
        command.stamp(config, _unstamped_revision(present))
    command.upgrade(config, "head")


def _unstamped_revision(present: Iterable[str]) -> str:
    """Tell which revision tables are at that were made without Alembic, or by the host's."""
    complete = {table.name for table in metadata.sorted_tables} <= set(present)
    return "head" if complete else "0001"


@contextmanager
def _locked(engine: Engine) -> Iterator[Connection]:
    transactions = Transactions(engine)
    with transactions.several() as connection:
        if transactions.dialect == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        yield connection


def _present(engine: Engine) -> dict[str, set[str]]:
    """Return the columns of each of our tables that is there, in one look."""
    with Transactions(engine).single() as connection:
        return _tables(connection)


def _tables(connection: Connection) -> dict[str, set[str]]:
    names = [table.name for table in metadata.sorted_tables]
    found = inspect(connection).get_multi_columns(filter_names=names)
    return {name: {column["name"] for column in columns} for (_, name), columns in found.items()}


def _revision(connection: Connection) -> str | None:
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _config(**attributes: object) -> Config:
    from alembic.config import Config

    config = Config()
    folder = str(files("flask_byok.migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(attributes)
    return config
