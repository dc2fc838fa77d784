"""The command line: ``flask byok``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from .keyring import generate_encryption_key
from .owners import Caller
from .web.safety import unsafe_settings
from .web.state import get_state

byok = AppGroup("byok", help="Manage the API keys that people bring.")


@byok.command("generate-key", with_appcontext=False)
def generate_key() -> None:
    """Print a new encryption key for BYOK_ENCRYPTION_KEY."""
    click.echo(generate_encryption_key())


@byok.command("providers")
def providers() -> None:
    """List the providers that are on, and where the operator's key for each comes from."""
    service = get_state().service
    specs = list(service.catalog)
    found = service.resolver.survey(Caller(), specs)
    for spec in specs:
        source = found[spec.id][0].tier.value if found[spec.id] else "-"
        click.echo(f"{spec.id:<16} {spec.name:<28} {source:<8} {', '.join(spec.env)}".rstrip())


@byok.group("db")
def database() -> None:
    """Make and upgrade the tables."""


@database.command("upgrade")
def upgrade_database() -> None:
    """Bring the tables to this version."""
    with _migrations() as (migrate, engine):
        migrate.upgrade(engine)
        click.echo(f"The tables are at revision {migrate.current(engine)}.")


@database.command("current")
def current_revision() -> None:
    """Say which revision the tables are at, and which is the newest."""
    with _migrations() as (migrate, engine):
        click.echo(f"tables  {migrate.current(engine) or '-'}")
        click.echo(f"newest  {migrate.head()}")


@database.command("sql")
def print_statements() -> None:
    """Print the statements that make all tables in an empty database, and run none."""
    with _migrations() as (migrate, engine):
        click.echo(migrate.sql(engine.dialect.name))


@byok.command("check")
def check() -> None:
    """Say what is set up and what is unsafe; exits with 1 if anything is unsafe."""
    state = get_state()
    click.echo(f"session keys  {state.service.sessions.name}")
    click.echo(f"precedence    {', '.join(state.settings.precedence)}")
    click.echo(f"providers     {len(state.service.catalog)}")
    unsafe = unsafe_settings(current_app.config, debug=current_app.debug)
    for sentence in unsafe:
        click.echo(f"unsafe: {sentence}", err=True)
    if unsafe:
        raise click.exceptions.Exit(1)


@contextmanager
def _migrations() -> Iterator[tuple[ModuleType, Any]]:
    # Imported here: the other commands need no database.
    from .stores import migrate
    from .stores.sql_engine import open_engine

    found = get_state().database()
    engine = open_engine(found)
    try:
        yield migrate, engine
    finally:
        if engine is not found:
            engine.dispose()
