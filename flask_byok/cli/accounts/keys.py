"""Accounts' keys: ``flask byok list|set|clear``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from flask.cli import with_appcontext

from ...catalog import ProviderSpec
from ...errors import (
    KeyExistsError,
    KeyNotFoundError,
    KeyRefusedError,
    UnreadableCredentialError,
    VersionConflictError,
)
from ...keys.journal import Subject
from ...keys.notes import check_place, clean_note
from ...keys.session_store import AuditEvent
from ...keys.typed import Typed, read_expiry, read_typed
from ...model.credential import CredentialRecord, Validation, isoformat, utcnow
from ...model.owner import Caller, Tier
from ...sealing.keyring import Context, Keyring
from ...sealing.records import new_record
from ...settings import ValidateOnSet
from ...web.caller import ByokState
from ..common import counted, printable, require_accounts
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

if TYPE_CHECKING:
    from ...accounts.store.keys import AccountStore

_COLUMNS = ("id", "owner", "provider", "slot", "hint", "state", "expires", "uses")
_WIDTHS = (32, 24, 12, 8, 16, 10, 24, 0)
_PAGE = 200

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
    state, accounts = require_accounts()
    wanted = None if provider is None else find_provider(state, provider).id
    if not as_json:
        _print_row(_COLUMNS)
    for record in _records(accounts, owner, wanted):
        row = _row(state.service.keyring, record)
        if as_json:
            # In ASCII: ids and labels cannot steer the terminal.
            click.echo(json.dumps(row, separators=(",", ":")))
        else:
            _print_row(_shown(row))


@click.command("set", cls=QuietCommand)
@click.argument("provider")
@click.option(
    "--owner",
    callback=owner_word,
    metavar="OWNER",
    default="system",
    show_default=True,
    help="Whose it is to be.",
)
@click.option(
    "--slot", callback=slot_word, metavar="SLOT", help="Name of a second key for this provider."
)
@click.option("--label", help="What it is called.")
@click.option(
    "--expires", callback=moment, metavar="TIME", help="When it ends, such as 2030-01-31T00:00:00Z."
)
@click.option("--replace", is_flag=True, help="Put it in the place of the one that is there.")
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
    """Store a key. It is asked for, or read from stdin where that is no terminal.

    A provider with several fields has a JSON object on stdin.
    """
    state, accounts = require_accounts()
    spec, settings = find_provider(state, provider), state.settings
    context = Context("account", owner, spec.id, slot or "")
    most = settings.keys_per_provider
    _require_room(accounts, context, most, replace=replace)
    expires_at = read_expiry(expires, spec.id, settings)
    typed = read_typed(spec, read_fields(spec), None, settings)
    check_place(owner, context.slot, typed.secrets, state.service.catalog)
    label = clean_note(label, "label", typed.fields, state.service.catalog)
    validation = _check(state, accounts, context, typed, validate)
    record = new_record(
        state.service.keyring,
        context,
        spec,
        typed.fields,
        typed.base_url,
        label=label,
        expires_at=expires_at,
        validation=validation,
    )
    event = AuditEvent("cli", "set", fingerprint=accounts.audit.fingerprint(typed.fields))
    store = accounts.put if replace else accounts.create
    try:
        store(record, event, at_most=most)
    except KeyExistsError:
        _require_room(accounts, context, most, replace=replace)  # says who was first
        raise
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
    help="Whose it is.",
)
@click.option("--slot", callback=slot_word, metavar="SLOT", help="Only this one of several keys.")
@click.option(
    "--all", "everything", is_flag=True, help="All that the owner has, and what was counted of it."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_appcontext
def clear_key(
    provider: str | None, owner: str, slot: str | None, everything: bool, yes: bool
) -> None:
    """Delete the stored keys for a provider, or with --all whatever there is of an owner."""
    if everything == (provider is not None) or (everything and slot is not None):
        raise click.UsageError("Name a provider, or give --all without one.")
    state, accounts = require_accounts()
    if provider is None:
        _forget(accounts, owner, yes)
        return
    found = _find(state, accounts, owner, provider)
    if slot is not None:
        found = [record for record in found if record.slot == slot]
    if not found:
        click.echo("There is no such key.")
        return
    _confirm(f"Delete {', '.join(record.hint for record in found)}?", yes)
    _delete(accounts, found)


def _find(
    state: ByokState, accounts: AccountStore, owner: str, provider: str
) -> list[CredentialRecord]:
    """Return an owner's keys for a provider; one that was switched off may have left some."""
    catalog = state.service.catalog
    name = catalog.get(provider).id if provider in catalog else provider
    found = accounts.find([owner], [name])
    if name not in catalog and not found:
        find_provider(state, provider)
    return found


def _forget(accounts: AccountStore, owner: str, yes: bool) -> None:
    """Delete all that an owner has, also where it is no key but only what was counted."""
    count = counted(len(accounts.find([owner])), "key")
    _confirm(f"Delete {count} of {printable(owner)}, and what was counted of them?", yes)
    for record in accounts.forget(owner, AuditEvent("cli", "clear")):
        click.echo(f"Cleared {record.hint} for {printable(record.provider)}.")
    click.echo(f"Nothing is left of {printable(owner)} but the audit log.")


def _require_room(accounts: AccountStore, context: Context, at_most: int, *, replace: bool) -> None:
    """Say that a key has no place before anybody types one."""
    taken = {record.slot for record in accounts.find([context.owner], [context.provider])}
    if context.slot in taken and not replace:
        raise click.ClickException(
            "There is a key already, which stays: --replace puts another in its place."
        )
    if context.slot not in taken and len(taken) >= at_most:
        raise click.ClickException(
            f"There is no room for another key: BYOK_KEYS_PER_PROVIDER is {at_most}."
        )


def _check(
    state: ByokState,
    accounts: AccountStore,
    context: Context,
    typed: Typed,
    asked: ValidateOnSet | None,
) -> Validation | None:
    spec = state.service.catalog.get(context.provider)
    try:
        return state.service.verdicts.before_set(Caller(), spec, typed, asked)
    except KeyRefusedError as error:
        fingerprint = accounts.audit.fingerprint(typed.fields)
        event = AuditEvent("cli", "set", error.validation.verdict.value, fingerprint=fingerprint)
        accounts.audit.note(context.owner, event, Subject(context.provider, context.slot))
        raise click.ClickException(f"The key was not saved. {error}") from None


def _warn_if_unused(state: ByokState, owner: str, spec: ProviderSpec) -> None:
    tier = owner.partition(":")[0]
    if tier not in state.settings.precedence:
        click.echo(f"It is not used: BYOK_PRECEDENCE does not name {tier}.", err=True)
    elif tier != Tier.SYSTEM and state.service.resolver.listed_as_locked(spec):
        click.echo(f"It is not used: BYOK_LOCKED_PROVIDERS names {spec.id}.", err=True)


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not is_at_terminal():
        raise click.ClickException("Nobody can be asked here: give --yes to delete it.")
    click.confirm(question, abort=True, err=True)


def _delete(accounts: AccountStore, found: list[CredentialRecord]) -> None:
    """Delete these keys, but none that took the place of one of them since."""
    stayed = False
    for record in found:
        event, version = AuditEvent("cli", "clear"), int(record.version)
        try:
            accounts.delete(record.id, [record.owner], event, if_version=version)
        except (KeyNotFoundError, VersionConflictError):
            stayed = True
        else:
            click.echo(f"Cleared {record.hint}.")
    if stayed:
        raise click.ClickException(
            "Somebody changed or deleted a key meanwhile. Look and try again."
        )


def _records(
    accounts: AccountStore, owner: str | None, provider: str | None
) -> Iterator[CredentialRecord]:
    owners = None if owner is None else [owner]
    after: str | None = ""
    while after is not None:
        page, after = accounts.page(owners, after=after, limit=_PAGE, provider=provider)
        yield from page


def _row(keyring: Keyring, record: CredentialRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "owner": record.owner,
        "provider": record.provider,
        "slot": record.slot,
        "label": record.label,
        "description": record.description,
        "hint": record.hint,
        "active": record.active,
        "state": _state(keyring, record),
        "expires_at": isoformat(record.expires_at),
        "created_at": isoformat(record.created_at),
        "updated_at": isoformat(record.updated_at),
        "last_used_at": isoformat(record.last_used_at),
        "usage_count": record.usage_count,
        "version": record.version,
    }


def _state(keyring: Keyring, record: CredentialRecord) -> str:
    try:
        keyring.open_record("account", record.owner, record)
    except UnreadableCredentialError:
        return "unreadable"
    return record.state(utcnow())


def _shown(row: dict[str, Any]) -> tuple[str, ...]:
    names = ("id", "owner", "provider", "slot", "hint", "state", "expires_at")
    return *(printable(row[name] or "-") for name in names), str(row["usage_count"])


def _print_row(cells: tuple[str, ...]) -> None:
    padded = (f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    click.echo("  ".join(padded).rstrip())
