"""Setting up: ``flask byok generate-key``, ``providers`` and ``db``."""

from __future__ import annotations

from itertools import chain

import click

from ..model.owner import Caller
from ..sealing.keyring import generate_encryption_key
from ..storage import migrations
from ..storage.sql import Database
from ..web.caller import get_state
from .common import Commands, byok, padded


@byok.command("generate-key", with_appcontext=False)
def generate_key() -> None:
    """Print a new encryption key for BYOK_ENCRYPTION_KEY."""
    click.echo(generate_encryption_key())


@byok.command("providers")
def providers() -> None:
    """List the providers that are on, where the operator's key for each comes from, and its variables."""
    service = get_state().service
    specs = list(service.catalog)
    found = service.lookup.survey(Caller(), specs)
    for spec in specs:
        chosen = service.lookup.choose(found[spec.id])
        source = "-" if chosen is None else chosen.tier.value
        # Of all its fields; some share one.
        variables = dict.fromkeys(chain(*spec.variables.values()))
        click.echo(padded((spec.id, spec.name, source, ", ".join(variables)), (16, 28, 8, 0)))


# db


@byok.group("db", cls=Commands)
def database() -> None:
    """Create and upgrade the tables."""


@database.command("upgrade")
def upgrade_database() -> None:
    """Bring the tables to this version."""
    tables = tables_alone()
    migrations.upgrade(tables)
    click.echo(f"The tables are at revision {migrations.current(tables)}.")


@database.command("current")
def current_revision() -> None:
    """Show the revision of the tables, and the newest one."""
    click.echo(f"tables  {migrations.current(tables_alone()) or '-'}")
    click.echo(f"newest  {migrations.head()}")


@database.command("sql")
def print_statements() -> None:
    """Print the statements that create all tables in an empty database, and run none."""
    click.echo(migrations.sql(tables_alone().transactions.dialect))


def tables_alone() -> Database:
    """Open the app's database without a look at its tables."""
    found = get_state().database
    return Database(found.place, (), own_file=found.own_file)
