"""The tables: ``flask byok db``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import click

from ..storage.reasons import reason_of
from ..web.caller import get_state
from .common import Commands

database = Commands("db", help="Make and upgrade the tables.")


@database.command("upgrade")
def upgrade_database() -> None:
    """Bring the tables to this version."""
    with migrations() as (migrate, engine):
        known_revision(migrate, engine)
        migrate.upgrade(engine)
        click.echo(f"The tables are at revision {migrate.current(engine)}.")


@database.command("current")
def current_revision() -> None:
    """Say which revision the tables are at, and which is the newest."""
    with migrations() as (migrate, engine):
        click.echo(f"tables  {migrate.current(engine) or '-'}")
        click.echo(f"newest  {migrate.head()}")


@database.command("sql")
def print_statements() -> None:
    """Print the statements that make all tables in an empty database, and run none."""
    with migrations() as (migrate, engine):
        click.echo(migrate.sql(engine.dialect.name))


def known_revision(migrate: ModuleType, engine: Any) -> str | None:
    """Return the revision that the tables are at, None where there are none of our own making.

    :raises click.ClickException: a later version of flask-byok has made them.
    """
    revision: str | None = migrate.current(engine)
    if revision is not None and revision > migrate.head():
        raise click.ClickException(
            f"The tables are at revision {revision}, which a later version of flask-byok has made: "
            "install that one."
        )
    return revision


@contextmanager
def migrations() -> Iterator[tuple[ModuleType, Any]]:
    """Give what upgrades tables, and the engine that they are on.

    :raises click.ClickException: the database fails meanwhile.
    """
    # Imported here: the other commands need no database.
    from ..storage import migrate
    from ..storage.engine import open_engine

    found = get_state().database.place
    engine = open_engine(found)
    try:
        yield migrate, engine
    except migrate.FAULTS as error:
        # Its own text may hold an address.
        kind = type(getattr(error, "orig", None) or error).__name__
        reason = reason_of(error) or f"The database does not answer, or refuses: {kind}."
        raise click.ClickException(reason) from None
    finally:
        if engine is not found:
            engine.dispose()
