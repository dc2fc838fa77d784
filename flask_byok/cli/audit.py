"""The audit log: ``flask byok audit list|verify``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ..credentials import isoformat
from .common import Commands, printable, require_accounts
from .progress import steps
from .typed import WholeNumber, moment, owner_word

if TYPE_CHECKING:
    from ..stores.audit import AuditEntry

_COLUMNS = (
    ("when", 24),
    ("owner", 20),
    ("who", 20),
    ("action", 8),
    ("provider", 12),
    ("slot", 6),
    ("outcome", 8),
    ("request", 16),
    ("fingerprint", 0),
)
#: Digits of a fingerprint that are shown: enough to see which keys are the same.
_DIGITS = 12

audit = Commands("audit", help="Read the audit log, and verify it.")


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
    click.echo(_line([name for name, _ in _COLUMNS]))
    for entry in entries:
        click.echo(_line(_cells(entry)))


@audit.command("verify")
@click.option("--owner", callback=owner_word, help="Only this owner's chain.")
def verify(owner: str | None) -> None:
    """Find entries that were changed, removed or reordered; exits with 1 if there are any."""
    _, accounts = require_accounts()
    looked_at = (0, 0)

    def report(rows: int, chains: int) -> None:
        nonlocal looked_at
        looked_at = rows, chains
        shown.reach(rows)

    with steps("Verifying", accounts.audit.count(owner)) as shown:
        findings = accounts.audit.verify(owner, report)
    for finding in findings:
        number = "" if finding.number is None else f" row {finding.number}"
        click.echo(f"{printable(finding.owner)}{number}: {finding.problem}", err=True)
    click.echo("{:,} rows in {:,} chains were verified.".format(*looked_at))
    if findings:
        raise click.ClickException(f"The log is not whole: {len(findings):,} findings.")


def _cells(entry: AuditEntry) -> list[str]:
    event = entry.event
    return [
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


def _line(cells: list[str]) -> str:
    padded = (
        f"{printable(cell) or '-':<{width}}"
        for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
    )
    return "  ".join(padded).rstrip()
