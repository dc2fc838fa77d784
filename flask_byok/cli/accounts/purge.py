"""Delete expired keys: ``flask byok purge-expired``."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import with_appcontext

from ...keys.ports import AuditEvent
from ...model.credential import EXPIRES_SOON, utcnow
from ...settings import MAX_SESSION_LIFETIMES
from ...signals import key_expiring
from ..common import counted, require_accounts
from ..input import QuietCommand, WholeNumber
from ..progress import steps

if TYPE_CHECKING:
    from ...accounts.store.keys import AccountStore


_EXPIRED = ("expired key", "expired keys")
_DAYS = ("old daily count of uses", "old daily counts of uses")
_EXPIRING = ("key expires", "keys expire")


@click.command("purge-expired", cls=QuietCommand)
@click.option(
    "--days",
    type=WholeNumber(0, 36500),
    default=0,
    show_default=True,
    help="Keep what expired within so many days.",
)
@click.option("--dry-run", is_flag=True, help="Only count; delete and signal nothing.")
@with_appcontext
def purge_expired(days: int, dry_run: bool) -> None:
    """Delete accounts' keys that have expired, and signal those that soon will.

    It sends the signal key_expiring for each key that expires within a week, and sums up old daily counts
    of uses. Run it once a day.
    """
    state, accounts = require_accounts()
    now = utcnow()
    before = now - timedelta(days=days)
    total = accounts.count_expired(before)
    if dry_run:
        soon = sum(1 for _ in accounts.expiring(now, now + EXPIRES_SOON))
        click.echo(
            f"{counted(total, *_EXPIRED)} would be deleted, {soon:,} will expire within a week."
        )
        old = accounts.usage.count_old(_kept_since(now))
        click.echo(f"{counted(old, *_DAYS)} would be summed up.")
        return
    click.echo(f"{counted(_purge(accounts, before, total), *_EXPIRED)} deleted.")
    accounts.forget_over(now - state.settings.session_ttl * MAX_SESSION_LIFETIMES)
    click.echo(f"{counted(_fold(accounts, _kept_since(now)), *_DAYS)} summed up.")
    soon = _signal(accounts, now)
    click.echo(f"{counted(soon, *_EXPIRING)} within a week{_told(soon)}.")


def _told(soon: int) -> str:
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # signals compare senders
    if not key_expiring.has_receivers_for(app):
        return "; nothing listens to key_expiring"
    return f" and {'was' if soon == 1 else 'were'} signalled"


def _purge(accounts: AccountStore, before: Any, total: int) -> int:
    done = 0
    with steps("Deleting", total) as shown:
        while deleted := accounts.purge_expired(before, AuditEvent("cli", "purge"), limit=200):
            done += deleted
            shown.reach(done)
    return done


def _kept_since(now: datetime) -> date:
    from ...accounts.store.usage import KEPT_DAYS

    return (now - timedelta(days=KEPT_DAYS - 1)).date()


def _fold(accounts: AccountStore, before: date) -> int:
    done = 0
    with steps("Summing up", accounts.usage.count_old(before)) as shown:
        while folded := accounts.usage.fold(before):
            done += folded
            shown.reach(done)
    return done


def _signal(accounts: AccountStore, now: Any) -> int:
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # signals compare senders
    count = 0
    for record in accounts.expiring(now, now + EXPIRES_SOON):
        key_expiring.send(
            app,
            owner=record.owner,
            provider=record.provider,
            id=record.id,
            expires_at=record.expires_at,
        )
        count += 1
    return count
