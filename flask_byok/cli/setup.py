"""Set up: ``flask byok generate-key``, ``providers`` and ``db``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import click
from flask.cli import with_appcontext

from ..model.owner import Caller
from ..sealing.keyring import generate_encryption_key
from ..storage.protection import reason_of
from ..web.caller import get_state
from .common import Commands
from .input import QuietCommand

database = Commands("db", help="Create and upgrade the tables.")


@click.command("generate-key", cls=QuietCommand)
def generate_key() -> None:
    """Print a new encryption key for BYOK_ENCRYPTION_KEY."""
    click.echo(generate_encryption_key())


@click.command("providers", cls=QuietCommand)
@with_appcontext
def providers() -> None:
    """List the providers that are on, and where the operator's key for each comes from."""
    service = get_state().service
    specs = list(service.catalog)
    found = service.lookup.survey(Caller(), specs)
    for spec in specs:
        chosen = service.lookup.choose(found[spec.id])
        source = "-" if chosen is None else chosen.tier.value
        click.echo(f"{spec.id:<16} {spec.name:<28} {source:<8} {', '.join(spec.env)}".rstrip())


@database.command("upgrade")
def upgrade_database() -> None:
    """Bring the tables to this version."""
    with migrations() as (migrate, engine):
        known_revision(migrate, engine)
        migrate.upgrade(engine)
        click.echo(f"The tables are at revision {migrate.current(engine)}.")


@database.command("current")
def current_revision() -> None:
    """Show the revision of the tables, and the newest one."""
    with migrations() as (migrate, engine):
        click.echo(f"tables  {migrate.current(engine) or '-'}")
        click.echo(f"newest  {migrate.head()}")


@database.command("sql")
def print_statements() -> None:
    """Print the statements that create all tables in an empty database, and run none."""
    with migrations() as (migrate, engine):
        click.echo(migrate.sql(engine.dialect.name))


def known_revision(migrate: ModuleType, engine: Any) -> str | None:
    """Return the revision of the tables, None if we did not create them.

    :raises click.ClickException: a later version of flask-byok created them.
    """
    revision: str | None = migrate.current(engine)
    if revision is not None and revision > migrate.head():
        raise click.ClickException(
            f"The tables are at revision {revision}, which a later version of flask-byok has created: install that one."
        )
    return revision


@contextmanager
def migrations() -> Iterator[tuple[ModuleType, Any]]:
    """Yield the module that migrates tables, and the engine of their database.

    :raises click.ClickException: the database fails in the meantime.
    """
    # Imported here: the other commands need no database.
    from ..storage import migrations as migrate
    from ..storage.engine import open_engine

    found = get_state().database.place
    engine = open_engine(found)
    try:
        yield migrate, engine
    except migrate.FAULTS as error:
        # The error's own text may contain an address.
        kind = type(getattr(error, "orig", None) or error).__name__
        reason = reason_of(error) or f"The database does not answer, or refuses: {kind}."
        raise click.ClickException(reason) from None
    finally:
        if engine is not found:
            engine.dispose()
