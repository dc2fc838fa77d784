"""Read, verify and prune the audit log: ``flask byok audit list|verify|heads|prune``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from ...keys.ports import AuditEvent, Head
from ...model.credential import isoformat
from ..common import Commands, Interrupted, counted, in_columns, printable, require_accounts
from ..input import WholeNumber, moment, owner_word
from ..progress import steps

if TYPE_CHECKING:
    from ...accounts.store.audit_verify import AuditEntry

_PRUNE = (
    "This deletes {entries} from before {time}. The last entry of each chain stays, and what the others say of keys "
    "that are still there. To keep the old ones, copy byok_audit first; nothing can verify them afterwards."
)
_NOT_WHOLE = (
    "Left as they are, since they are not whole: {chains}; the first is {owner}'s. "
    "'flask byok audit verify' shows why."
)
_COLUMNS = (
    "when",
    "owner",
    "who",
    "action",
    "provider",
    "slot",
    "outcome",
    "request",
    "fingerprint",
)
#: Digits of a fingerprint that are shown: enough to see which keys are the same.
_DIGITS = 12

audit = Commands("audit", help="Read the audit log, verify it, and delete old entries.")


def read_heads(ctx: click.Context, param: click.Parameter, path: str | None) -> list[Head] | None:
    """Return the heads in a file, or fail without repeating its name or its contents."""
    if path is None:
        return None
    try:
        lines = Path(path).read_bytes().splitlines()
        return [msgspec.json.decode(line, type=Head) for line in lines]
    except (OSError, ValueError):
        raise click.BadParameter(
            "use a file with what 'flask byok audit heads' printed.", ctx, param
        ) from None


@audit.command("list")
@click.option(
    "--owner", callback=owner_word, help="Only this owner's: user:<id>, team:<id> or system."
)
@click.option("--limit", type=WholeNumber(1, 1_000_000), default=50, show_default=True)
@click.option(
    "--before", callback=moment, metavar="TIME", help="Only what is older (ISO 8601, UTC)."
)
def list_entries(owner: str | None, limit: int, before: datetime | None) -> None:
    """Show what was done to keys, newest first; never a key."""
    _, accounts = require_accounts()
    until = None if before is None else _in_utc(before)
    entries = accounts.audit.entries(owner, before=until, limit=limit)
    for line in in_columns([_COLUMNS, *map(_cells, entries)]):
        click.echo(line)


@audit.command("verify")
@click.option("--owner", callback=owner_word, help="Only this owner's chain.")
@click.option(
    "--against",
    callback=read_heads,
    metavar="FILE",
    help="Check that the log still has the heads that 'audit heads' printed into this file.",
)
def verify(owner: str | None, against: list[Head] | None) -> None:
    """Find entries that were changed, removed or reordered, and keys that were changed past the log.

    It exits with 1 if it finds any.
    """
    _, accounts = require_accounts()
    looked_at = (0, 0)

    def report(rows: int, chains: int) -> None:
        nonlocal looked_at
        looked_at = rows, chains
        shown.reach(rows)

    with steps("Verifying", accounts.audit.count(owner)) as shown:
        findings = accounts.audit.verify(owner, report)
    mine = [head for head in against or () if owner in (None, head.owner)]
    missing, pruned = accounts.audit.missing(mine)
    findings += missing
    for finding in findings:
        number = "" if finding.number is None else f" row {finding.number}"
        click.echo(printable(f"{finding.owner}{number}: {finding.problem}"), err=True)
    rows, chains = looked_at
    were = "was" if rows == 1 else "were"
    click.echo(f"{counted(rows, 'row')} in {counted(chains, 'chain')} {were} verified.")
    if against is not None:
        click.echo(f"{counted(len(mine), 'head was', 'heads were')} looked for.")
    if pruned:
        click.echo(f"{counted(pruned, 'head lies', 'heads lie')} in what was pruned since.")
    if findings:
        raise click.ClickException(f"The log is not whole: {counted(len(findings), 'finding')}.")


@audit.command("heads")
@click.option("--owner", callback=owner_word, help="Only this owner's chain.")
def print_heads(owner: str | None) -> None:
    """Print the end of each chain, one JSON object a line: keep them where the database's users cannot write."""
    _, accounts = require_accounts()
    for head in accounts.audit.heads(owner):
        # In ASCII: ids cannot steer the terminal.
        click.echo(json.dumps(asdict(head), separators=(",", ":")))


@audit.command("prune")
@click.option(
    "--before",
    callback=moment,
    required=True,
    metavar="TIME",
    help="Older entries go (ISO 8601, UTC).",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune_entries(before: datetime, yes: bool) -> None:
    """Delete old entries; the rest stays verifiable.

    The app may go on meanwhile. If it is interrupted, run it again to go on.
    """
    from ...accounts.store.audit_prune import Pruning, count_prunable, prune

    _, accounts = require_accounts()
    before = _in_utc(before)
    total, state = count_prunable(accounts.audit, before), Pruning()
    if not total:
        click.echo("There is nothing to delete.")
        return
    entries = counted(total, "entry", "entries")
    click.echo(_PRUNE.format(entries=entries, time=isoformat(before)), err=True)
    _confirm(yes)
    try:
        with steps("Deleting", total) as shown:
            for state in prune(accounts.audit, before, AuditEvent("cli", "prune")):
                shown.reach(state.done)
    except KeyboardInterrupt:
        done = counted(state.done, "entry", "entries")
        raise Interrupted(f"Interrupted: {done} deleted. Run it again to go on.") from None
    click.echo(f"{counted(state.done, 'entry', 'entries')} deleted.")
    if state.broken:
        chains, owner = counted(len(state.broken), "chain"), printable(state.broken[0])
        raise click.ClickException(_NOT_WHOLE.format(chains=chains, owner=owner))


def is_asked() -> bool:
    """Return True if there is a terminal to ask at."""
    return sys.stdin.isatty()


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not is_asked():
        raise click.ClickException("Not a terminal: pass --yes to confirm.")
    click.confirm("Delete them?", abort=True, err=True)


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _cells(entry: AuditEntry) -> list[str]:
    event = entry.event
    cells = [
        isoformat(entry.at) or "",
        entry.owner,
        event.actor,
        event.action,
        entry.provider,
        entry.slot,
        event.outcome,
        event.request_id or "",
        (event.fingerprint or "")[:_DIGITS],
    ]
    return [printable(cell) or "-" for cell in cells]
