"""Read, verify and prune the audit log: ``flask byok audit list|verify|heads|prune``."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from ...accounts.store import AuditEvent, Head
from ...accounts.store.audit_prune import ACTION, Pruning, count_prunable, prune
from ...accounts.store.audit_verify import AuditLog
from ...model.credential import from_milliseconds, isoformat
from ..common import Commands, byok, printable
from . import common

_PRUNE = (
    "This deletes {entries} from before {time}. The last entry of each chain stays, and what the others say of keys "
    "that are still there. To keep the old ones, copy byok_audit first; nothing can verify them afterwards."
)
_RESTORED = (
    "If an older backup was restored: changes since then are undone for the owners with missing ends, and keys that "
    "they removed since serve again. Remove these again ('flask byok clear'), and have them revoked at the provider."
)
_NOT_WHOLE = "Left, as not whole: {}; the first is {}'s. 'flask byok audit verify' shows why."
_HEADS = ("when", "owner", "who", "action", "provider", "slot", "outcome", "request", "fingerprint")
#: Digits of a fingerprint that are shown: enough to see which keys are the same.
_DIGITS = 12


@byok.group("audit", cls=Commands)
def audit() -> None:
    """Read the audit log, verify it, and delete old entries."""


@audit.command("list")
@common.only_owner
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, help="At most so many.")
@common.time_option("--before", "Only what is older than a time (UTC)")
def list_entries(owner: str | None, limit: int, before: datetime | None) -> None:
    """Show what was done to keys, newest first; never a key."""
    until = None if before is None else _in_utc(before)
    entries = _log().entries(owner, before=until, limit=limit)
    for line in common.in_columns([_HEADS, *map(_cells, entries)]):
        click.echo(line)


@audit.command("verify")
@common.only_owner
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check that the log still has the heads that 'audit heads' printed into this file.",
)
def verify(owner: str | None, against: Path | None) -> None:
    """Find entries that were changed, removed or reordered, and keys that were changed past the log.

    It exits with 1 if it finds any.
    """
    heads = [] if against is None else _read_heads(against)
    log = _log()
    rows = chains = 0

    def report(done: int, whole: int) -> None:
        nonlocal rows, chains
        rows, chains = done, whole
        reach(rows)

    with common.steps("Verifying", log.count(owner)) as reach:
        findings = log.verify(owner, report)
    mine = [head for head in heads if owner in (None, head.owner)]
    missing, pruned = log.missing(mine)
    findings += missing
    for finding in findings:
        number = "" if finding.number is None else f" row {finding.number}"
        click.echo(printable(f"{finding.owner}{number}: {finding.problem}"), err=True)
    if missing:
        click.echo(_RESTORED, err=True)
    click.echo(f"Verified {common.counted(rows, 'row')} in {common.counted(chains, 'chain')}.")
    if against is not None:
        click.echo(
            f"Looked for {common.counted(len(mine), 'head')}, {pruned:,} of them pruned since."
        )
    if findings:
        raise click.ClickException(
            f"The log is not whole: {common.counted(len(findings), 'finding')}."
        )


@audit.command("heads")
@common.only_owner
def print_heads(owner: str | None) -> None:
    """Print the end of each chain, one JSON object a line: keep them where the database's users cannot write."""
    for head in _log().heads(owner):
        # In ASCII: ids cannot steer the terminal.
        click.echo(json.dumps(asdict(head), separators=(",", ":")))


@audit.command("prune")
@common.time_option("--before", "Delete what is older than a time (UTC)", required=True)
@common.yes_option
def prune_entries(before: datetime, yes: bool) -> None:
    """Delete old entries; the rest stays verifiable.

    The app may go on meanwhile. If it is interrupted, run it again to go on.
    """
    log, before = _log(), _in_utc(before)
    total = count_prunable(log, before)
    if not total:
        click.echo("There is nothing to delete.")
        return
    entries = common.counted(total, "entry", "entries")
    click.echo(_PRUNE.format(entries=entries, time=isoformat(before)), err=True)
    common.confirm("Delete them?", yes)
    prune_log(log, before, total)


def prune_log(log: AuditLog, before: datetime, total: int) -> None:
    """Delete old entries, and say how many; fail if a chain is not whole.

    :param total: how many there are.
    """
    state = Pruning()
    with common.steps("Deleting", total) as reach:
        for state in prune(log, before, AuditEvent("cli", ACTION)):
            reach(state.done)
    click.echo(f"{common.counted(state.done, 'log entry', 'log entries')} deleted.")
    if state.broken:
        chains, owner = common.counted(len(state.broken), "chain"), printable(state.broken[0])
        raise click.ClickException(_NOT_WHOLE.format(chains, owner))


def _log() -> AuditLog:
    return common.require_wing()[1].store.audit


def _read_heads(path: Path) -> list[Head]:
    try:
        lines = path.read_bytes().splitlines()
        return [msgspec.json.decode(line, type=Head) for line in lines]
    except (OSError, ValueError, msgspec.DecodeError):
        raise click.UsageError(
            "--against: use a file with what 'flask byok audit heads' printed."
        ) from None


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _cells(entry: Any) -> list[str]:
    try:
        when = isoformat(from_milliseconds(entry.at))
    except (TypeError, ValueError, OverflowError):
        when = None  # it was changed
    names = ("owner", "actor", "action", "provider", "slot", "outcome", "request_id")
    facts = (getattr(entry, name) for name in names)
    cells = (when, *facts, (entry.fingerprint or "")[:_DIGITS])
    return [printable(cell or "-") for cell in cells]
