"""Accounts' keys: ``flask byok list|set|clear``, ``purge-expired`` and ``rotate``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import click
from flask import current_app

from ...accounts.changes import Slot
from ...accounts.store import AuditEvent
from ...accounts.store.audit_prune import count_prunable
from ...accounts.store.reseal import Progress
from ...accounts.wing import Wing
from ...catalog.endpoints import takes_names
from ...errors import KeyExistsError, KeyNotFoundError, KeyRefusedError, VersionConflictError
from ...keys.service import Service
from ...keys.typed import NewKey
from ...model.credential import EXPIRES_SOON, CredentialRecord, utcnow
from ...model.owner import Caller, Tier, tier_of
from ...settings import MAX_SESSION_LIFETIMES, ValidateOnSet
from ...signals import key_expiring
from ..check import count_sealed
from ..common import byok, padded, printable
from . import common
from .audit import prune_log

_COLUMNS = ("id", "owner", "provider", "slot", "hint", "state", "expires", "uses")
_WIDTHS = (32, 24, 12, 8, 16, 10, 24, 0)
_HINT = "{} --replace puts another in its place; BYOK_KEYS_PER_PROVIDER is {}."

_slot = common.matching("[A-Za-z0-9_-]{1,40}")


@byok.command("list")
@common.only_owner
@click.option("--provider", help="Only for this provider.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on each line.")
def list_keys(owner: str | None, provider: str | None, as_json: bool) -> None:
    """List the stored keys of users, teams and the system; never a key itself."""
    service, wing = common.require_wing()
    if not as_json:
        click.echo(padded(_COLUMNS, _WIDTHS))
    records, name = wing.everything(service), provider and service.catalog.get(provider).id
    for record in map(records.describe, wing.store.every(owner, name)):
        if as_json:
            # In ASCII: ids and labels cannot steer the terminal.
            click.echo(json.dumps(record, separators=(",", ":")))
        else:
            click.echo(padded(_cells(record), _WIDTHS))


@byok.command("set")
@click.argument("provider")
@common.for_owner
@click.option(
    "--slot", type=_slot, metavar="SLOT", help="A second key's name: up to 40 of A-Z a-z 0-9 _ -."
)
@click.option("--label", help="Its label.")
@common.time_option("--expires", "When it expires")
@click.option("--replace", is_flag=True, help="Replace the key that is there.")
@click.option(
    "--validate",
    type=click.Choice(["off", "warn", "require"]),
    help="How strictly to check it: off, warn or require.",
)
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
    service, wing = common.require_wing()
    spec, records = service.catalog.get(provider), wing.everything(service)
    place = Slot(records, owner, spec, slot or "", replace=replace)
    try:
        if not takes_names(spec):
            place.choose()  # before anyone types the key
        new = NewKey(
            fields=common.read_fields(spec), label=label, expires_at=expires, validate=validate
        )
        record, validation = records.put(owner, spec.id, new, slot=slot or "", replace=replace)
    except KeyExistsError as error:
        limit = service.settings.keys_per_provider
        raise click.ClickException(_HINT.format(error, limit)) from None
    except KeyRefusedError as error:
        raise click.ClickException(f"The key was not saved. {error}") from None
    for warning in service.warnings(spec.id, new.fields):
        click.echo(f"It looks like a key for {warning['provider']}.", err=True)
    saved = f"{record.hint} as the key for {spec.name}" if record.hint else record.provider
    click.echo(f"Saved {saved} of {printable(owner)}.")
    if validation is not None:
        click.echo(f"{validation.verdict}: {validation.reason}")
    tier = tier_of(owner)
    if tier not in service.settings.precedence:
        click.echo(f"It is not used: BYOK_PRECEDENCE does not name {tier}.", err=True)
    elif tier is not Tier.SYSTEM and service.lookup.listed_as_locked(spec):
        click.echo(f"It is not used: BYOK_LOCKED_PROVIDERS names {spec.id}.", err=True)


@byok.command("clear")
@click.argument("provider", required=False)
@common.for_owner
@click.option("--slot", type=_slot, metavar="SLOT", help="Only this one of several keys.")
@click.option(
    "--all", "everything", is_flag=True, help="All of the owner's keys, and their usage counts."
)
@common.yes_option
def clear_key(
    provider: str | None, owner: str, slot: str | None, everything: bool, yes: bool
) -> None:
    """Delete the stored keys for a provider, or with --all everything of an owner."""
    if everything == (provider is not None) or (everything and slot is not None):
        raise click.UsageError("Name a provider, or give --all without one.")
    service, wing = common.require_wing()
    if provider is None:
        _forget(wing, owner, yes)
        return
    found = _find(service, wing, owner, provider)
    if slot is not None:
        found = [record for record in found if record.slot == slot]
    if not found:
        click.echo("There is no such key.")
        return
    common.confirm(f"Delete {', '.join(r.hint or r.provider for r in found)}?", yes)
    records, stayed = wing.everything(service), False
    for record in found:
        try:
            # By its version: a key that has replaced it since stays.
            records.delete(record, if_version=int(record.version))
            click.echo(f"Cleared {record.hint or record.provider}.")
        except (KeyNotFoundError, VersionConflictError):
            stayed = True
    if stayed:
        raise click.ClickException("A key was changed or deleted meanwhile. Look and try again.")


def _find(service: Service, wing: Wing, owner: str, provider: str) -> list[CredentialRecord]:
    """Return an owner's keys for a provider, which may have been switched off since.

    :raises UnknownProviderError: there are none for a provider that is not in the catalog.
    """
    catalog = service.catalog
    name = catalog.get(provider).id if provider in catalog else provider
    found = wing.store.find([owner], [name])
    if not found:
        catalog.get(name)
    return found


def _forget(wing: Wing, owner: str, yes: bool) -> None:
    """Delete everything of an owner, even if only usage counts are left."""
    count = common.counted(len(wing.store.find([owner])), "key")
    common.confirm(f"Delete {count} of {printable(owner)}, and their usage counts?", yes)
    for provider in wing.forget(Caller(command=True), owner):
        click.echo(f"Cleared the keys for {printable(provider)}.")
    click.echo(f"Nothing is left of {printable(owner)} but the audit log.")


def _cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("id", "owner", "provider", "slot", "hint", "state", "expires_at")
    return *(printable(record[name] or "-") for name in names), str(record["usage_count"])


# purge-expired


@byok.command("purge-expired")
@click.option("--days", type=click.IntRange(0, 36500), default=0, help="Days to keep expired keys.")
def purge_expired(days: int) -> None:
    """Delete accounts' keys that have expired, and signal those that soon will.

    It sends the signal key_expiring for each key that expires within a week. It sums up daily counts of uses that
    are older than BYOK_USAGE_RETENTION, and deletes entries of the audit log that are older than
    BYOK_AUDIT_RETENTION. Run it once a day; if it is interrupted, run it again to go on.
    """
    service, wing = common.require_wing()
    accounts, now, event = wing.store, utcnow(), AuditEvent("cli", "purge")
    before = now - timedelta(days=days)
    # Today counts as one of the days.
    kept_since = min(now, now - service.settings.usage_retention + timedelta(days=1)).date()
    deleted = _repeat("Deleting", lambda: accounts.purge_expired(before, event, limit=200))
    click.echo(f"{common.counted(deleted, 'expired key')} deleted.")
    accounts.forget_over(now - service.settings.session_ttl * MAX_SESSION_LIFETIMES)
    folded = _repeat("Summing up", lambda: accounts.usage.fold(kept_since))
    click.echo(f"{common.counted(folded, 'old daily count')} summed up.")
    _signal(wing, now)
    if service.settings.audit_retention is not None:
        log, old = accounts.audit, now - service.settings.audit_retention
        # Each run that deletes something is in the log itself.
        if total := count_prunable(log, old):
            prune_log(log, old, total)


def _repeat(label: str, batch: Callable[[], int]) -> int:
    """Work batch by batch until one has nothing, and return how much was done."""
    with click.progressbar(iter(batch, 0), label=label) as batches:
        return sum(batches)


def _signal(wing: Wing, now: datetime) -> None:
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # signals compare senders
    soon = 0
    for record in wing.store.expiring(now, now + EXPIRES_SOON):
        facts = {name: getattr(record, name) for name in ("owner", "provider", "id", "expires_at")}
        key_expiring.send(app, **facts)
        soon += 1
    heard = key_expiring.has_receivers_for(app)
    told = "signalled by" if heard else "but nothing listens to"
    click.echo(
        f"{common.counted(soon, 'key expires', 'keys expire')} within a week, {told} key_expiring."
    )


# rotate


@byok.command("rotate")
def rotate_keys() -> None:
    """Seal every account's key again with the current encryption key.

    The app may go on meanwhile. If it is interrupted, run it again to go on. 'flask byok check' shows, as
    this command does at its end, which encryption keys can go.
    """
    service, wing = common.require_wing()
    seals, keyring = wing.store.seals, service.keyring
    progress = Progress(seals.count_due())
    with common.steps("Sealing again", progress.total) as reach:
        for progress in seals.rotate(keyring.renewed, AuditEvent("cli", "rotate")):
            reach(progress.done)
    click.echo(f"{common.counted(progress.done, 'key')} sealed with {keyring.key_ids[0]}.")
    for role, key_id, use in count_sealed(service):
        if role != "current":
            click.echo(f"{key_id}  {use}.")
    if progress.unreadable:
        raise click.ClickException(
            f"{common.counted(progress.unreadable, 'key does', 'keys do')} not open with any configured encryption "
            "key. Put back what was taken away too early, and run this again; else their owners must save them again."
        )
    if progress.held:
        held = common.counted(progress.held, "key was", "keys were")
        raise click.ClickException(f"{held} being changed all the time. Run it again.")
