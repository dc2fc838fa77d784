"""Accounts' keys: ``flask byok list|set|clear``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click
from flask.cli import with_appcontext

from ...accounts.shelf import Shelf
from ...accounts.wing import Wing
from ...catalog import ProviderSpec
from ...errors import KeyExistsError, KeyNotFoundError, KeyRefusedError, VersionConflictError
from ...keys.typed import NewKey
from ...model.credential import CredentialRecord
from ...model.owner import Caller, Tier
from ...settings import ValidateOnSet
from ...web.caller import ByokState
from ..common import counted, printable, require_wing
from ..input import (
    QuietCommand,
    find_provider,
    is_at_terminal,
    moment,
    owner_word,
    read_fields,
    slot_word,
    word,
)

_COLUMNS = ("id", "owner", "provider", "slot", "hint", "state", "expires", "uses")
_WIDTHS = (32, 24, 12, 8, 16, 10, 24, 0)
_PAGE = 200
#: What ``--json`` shows of a record.
_SHOWN = (
    *("id", "owner", "provider", "slot", "label", "description", "hint", "active", "state"),
    *("expires_at", "created_at", "updated_at", "last_used_at", "usage_count", "version"),
)

_validate_word = word("off|warn|require", "'off', 'warn' or 'require'")


@click.command("list", cls=QuietCommand)
@click.option(
    "--owner",
    callback=owner_word,
    metavar="OWNER",
    help="Only of 'system', 'user:<id>' or 'team:<id>'.",
)
@click.option("--provider", help="Only for this provider.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on each line.")
@with_appcontext
def list_keys(owner: str | None, provider: str | None, as_json: bool) -> None:
    """List the stored keys of users, teams and the system; never a key itself."""
    state, wing = require_wing()
    shelf = wing.everything(state.service)
    wanted = None if provider is None else find_provider(state, provider).id
    if not as_json:
        _print_row(_COLUMNS)
    for record in _pages(shelf, owner, wanted):
        if as_json:
            # In ASCII: ids and labels cannot steer the terminal.
            shown = {name: record[name] for name in _SHOWN}
            click.echo(json.dumps(shown, separators=(",", ":")))
        else:
            _print_row(_cells(record))


@click.command("set", cls=QuietCommand)
@click.argument("provider")
@click.option(
    "--owner",
    callback=owner_word,
    metavar="OWNER",
    default="system",
    show_default=True,
    help="Who owns it.",
)
@click.option(
    "--slot",
    callback=slot_word,
    metavar="SLOT",
    help="Name of a second key for this provider.",
)
@click.option("--label", help="Its label.")
@click.option(
    "--expires",
    callback=moment,
    metavar="TIME",
    help="When it expires, such as 2030-01-31T00:00:00Z.",
)
@click.option("--replace", is_flag=True, help="Replace the key that is there.")
@click.option(
    "--validate",
    callback=_validate_word,
    metavar="off|warn|require",
    help="How strictly to check it.",
)
@with_appcontext
def set_key(
    provider: str,
    owner: str,
    slot: str | None,
    label: str | None,
    expires: datetime | None,
    replace: bool,
    validate: ValidateOnSet | None,
) -> None:
    """Store a key. It is asked for, or read from stdin if that is not a terminal.

    For a provider with several fields stdin holds a JSON object.
    """
    state, wing = require_wing()
    spec = find_provider(state, provider)
    slot = slot or ""
    _require_room(state, wing, owner, spec, slot, replace=replace)
    new = NewKey(fields=read_fields(spec), label=label, expires_at=expires, validate=validate)
    shelf = wing.everything(state.service)
    try:
        record, validation = shelf.put(owner, spec.id, new, slot=slot, replace=replace)
    except KeyExistsError:
        _require_room(state, wing, owner, spec, slot, replace=replace)  # names the reason
        raise
    except KeyRefusedError as error:
        raise click.ClickException(f"The key was not saved. {error}") from None
    click.echo(f"Saved {record.hint} as the key for {spec.name} of {printable(owner)}.")
    if validation is not None:
        click.echo(f"{validation.verdict}: {validation.reason}")
    _warn_if_unused(state, owner, spec)


@click.command("clear", cls=QuietCommand)
@click.argument("provider", required=False)
@click.option(
    "--owner",
    callback=owner_word,
    metavar="OWNER",
    default="system",
    show_default=True,
    help="Who owns it.",
)
@click.option("--slot", callback=slot_word, metavar="SLOT", help="Only this one of several keys.")
@click.option(
    "--all", "everything", is_flag=True, help="All of the owner's keys, and their usage counts."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_appcontext
def clear_key(
    provider: str | None, owner: str, slot: str | None, everything: bool, yes: bool
) -> None:
    """Delete the stored keys for a provider, or with --all everything of an owner."""
    if everything == (provider is not None) or (everything and slot is not None):
        raise click.UsageError("Name a provider, or give --all without one.")
    state, wing = require_wing()
    if provider is None:
        _forget(state, wing, owner, yes)
        return
    found = _find(state, wing, owner, provider)
    if slot is not None:
        found = [record for record in found if record.slot == slot]
    if not found:
        click.echo("There is no such key.")
        return
    _confirm(f"Delete {', '.join(record.hint for record in found)}?", yes)
    _delete(wing.everything(state.service), found)


def _pages(shelf: Shelf, owner: str | None, provider: str | None) -> Iterator[Mapping[str, Any]]:
    after: str | None = ""
    while after is not None:
        page = shelf.page(owner=owner, after=after, limit=_PAGE, provider=provider)
        yield from page["keys"]
        after = page["next"]


def _find(state: ByokState, wing: Wing, owner: str, provider: str) -> list[CredentialRecord]:
    """Return an owner's keys for a provider, which may have been switched off since."""
    catalog = state.service.catalog
    name = catalog.get(provider).id if provider in catalog else provider
    found = wing.store.find([owner], [name])
    if name not in catalog and not found:
        find_provider(state, provider)
    return found


def _forget(state: ByokState, wing: Wing, owner: str, yes: bool) -> None:
    """Delete everything of an owner, even if only usage counts are left."""
    count = counted(len(wing.store.find([owner])), "key")
    _confirm(f"Delete {count} of {printable(owner)}, and their usage counts?", yes)
    for provider in state.service.forget(Caller(command=True), owner):
        click.echo(f"Cleared the keys for {printable(provider)}.")
    click.echo(f"Nothing is left of {printable(owner)} but the audit log.")


def _require_room(
    state: ByokState, wing: Wing, owner: str, spec: ProviderSpec, slot: str, *, replace: bool
) -> None:
    """Refuse a key that has no place, before anyone types it."""
    at_most = state.settings.keys_per_provider
    taken = {record.slot for record in wing.store.find([owner], [spec.id])}
    if slot in taken and not replace:
        raise click.ClickException(
            "There is a key already, which stays: --replace puts another in its place."
        )
    if slot not in taken and len(taken) >= at_most:
        raise click.ClickException(
            f"There is no room for another key: BYOK_KEYS_PER_PROVIDER is {at_most}."
        )


def _warn_if_unused(state: ByokState, owner: str, spec: ProviderSpec) -> None:
    tier = owner.partition(":")[0]
    if tier not in state.settings.precedence:
        click.echo(f"It is not used: BYOK_PRECEDENCE does not name {tier}.", err=True)
    elif tier != Tier.SYSTEM and state.service.lookup.listed_as_locked(spec):
        click.echo(f"It is not used: BYOK_LOCKED_PROVIDERS names {spec.id}.", err=True)


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not is_at_terminal():
        raise click.ClickException("Not a terminal: pass --yes to confirm.")
    click.confirm(question, abort=True, err=True)


def _delete(shelf: Shelf, found: list[CredentialRecord]) -> None:
    """Delete these keys, but none that replaced one of them since."""
    stayed = False
    for record in found:
        try:
            shelf.delete(record, if_version=int(record.version))
        except (KeyNotFoundError, VersionConflictError):
            stayed = True
        else:
            click.echo(f"Cleared {record.hint}.")
    if stayed:
        raise click.ClickException(
            "A key was changed or deleted by someone else at the same time. Look and try again."
        )


def _cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("id", "owner", "provider", "slot", "hint", "state", "expires_at")
    return *(printable(record[name] or "-") for name in names), str(record["usage_count"])


def _print_row(cells: tuple[str, ...]) -> None:
    padded = (f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    click.echo("  ".join(padded).rstrip())
