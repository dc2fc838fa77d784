"""The audit log: ``flask byok audit list|verify|heads|restart``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from flask.cli import ScriptInfo

from ...keys.session_store import AuditEvent, Head
from ...model.credential import isoformat
from ...web.anew import beginning_anew
from ..common import Commands, counted, in_columns, printable, require_accounts
from ..input import WholeNumber, moment, owner_word
from ..progress import steps

if TYPE_CHECKING:
    from ...accounts.store.audit import AuditEntry

_RESTART = (
    "This deletes the audit log, {entries} in all, and begins a new one: under a new secret, sealed with the "
    "encryption key {current}, and with an entry for each key, as it is now. The keys stay. Where the old entries "
    "have to be kept, copy byok_audit and byok_audit_heads first; nobody can verify them afterwards."
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

audit = Commands("audit", help="Read the audit log, verify it, and begin it anew.")


def read_heads(ctx: click.Context, param: click.Parameter, path: str | None) -> list[Head] | None:
    """Return the heads that a file has, or fail without repeating what it is called or has."""
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
    """Show what was done to keys, the newest first; never a key."""
    _, accounts = require_accounts()
    if before is not None and before.tzinfo is None:
        before = before.replace(tzinfo=UTC)
    entries = accounts.audit.entries(owner, before=before, limit=limit)
    for line in in_columns([_COLUMNS, *map(_cells, entries)]):
        click.echo(line)


@audit.command("verify")
@click.option("--owner", callback=owner_word, help="Only this owner's chain.")
@click.option(
    "--against",
    callback=read_heads,
    metavar="FILE",
    help="See that the log still has the heads that 'audit heads' printed into this file.",
)
def verify(owner: str | None, against: list[Head] | None) -> None:
    """Find entries that were changed, removed or reordered, and keys that were changed without one.

    It exits with 1 if there are any.
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
    findings += accounts.audit.missing(mine)
    for finding in findings:
        number = "" if finding.number is None else f" row {finding.number}"
        click.echo(printable(f"{finding.owner}{number}: {finding.problem}"), err=True)
    rows, chains = looked_at
    were = "was" if rows == 1 else "were"
    click.echo(f"{counted(rows, 'row')} in {counted(chains, 'chain')} {were} verified.")
    if against is not None:
        click.echo(f"{counted(len(mine), 'head was', 'heads were')} looked for.")
    if findings:
        raise click.ClickException(f"The log is not whole: {counted(len(findings), 'finding')}.")


@audit.command("heads")
@click.option("--owner", callback=owner_word, help="Only this owner's chain.")
def print_heads(owner: str | None) -> None:
    """Print where each chain ends, a JSON object a line, to be kept where the database's users cannot write."""
    _, accounts = require_accounts()
    for head in accounts.audit.heads(owner):
        # In ASCII: ids cannot steer the terminal.
        click.echo(json.dumps(asdict(head), separators=(",", ":")))


@audit.command("restart", with_appcontext=False)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def restart(ctx: click.Context, yes: bool) -> None:
    """Delete the log and begin a new one: for one that is not whole, or whose secret is lost."""
    with beginning_anew():
        app = ctx.ensure_object(ScriptInfo).load_app()
    with app.app_context():
        state, accounts = require_accounts(opened=False)
        current = state.service.keyring.key_ids[0]
        entries = counted(accounts.audit.count(), "entry", "entries")
        click.echo(_RESTART.format(entries=entries, current=current), err=True)
        _confirm(yes)
        done = accounts.audit.restart(AuditEvent("cli", "restart"))
        click.echo(
            f"{counted(done.deleted, 'entry', 'entries')} deleted. The new log begins with "
            f"{counted(done.keys, 'key')}. Restart the app."
        )


def is_asked() -> bool:
    """Say whether somebody is there to answer."""
    return sys.stdin.isatty()


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not is_asked():
        raise click.ClickException("Nobody can be asked here: give --yes to do it.")
    click.confirm("Begin a new log?", abort=True, err=True)


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
