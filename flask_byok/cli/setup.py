"""What is set up: ``flask byok generate-key|providers``."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from ..model.owner import Caller
from ..sealing.keyring import generate_encryption_key
from ..web.caller import get_state
from .input import QuietCommand


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
