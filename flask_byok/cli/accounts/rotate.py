"""Rotate the encryption key of accounts: ``flask byok rotate``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
from flask.cli import with_appcontext

from ...accounts.store.reseal import Progress
from ...keys.ports import AuditEvent
from ...sealing.keyring import Keyring
from ..check import count_seals
from ..common import Interrupted, counted, require_accounts
from ..input import QuietCommand
from ..progress import steps

if TYPE_CHECKING:
    from ...accounts.store.keys import AccountStore


@click.command("rotate", cls=QuietCommand)
@with_appcontext
def rotate_keys() -> None:
    """Seal every account's key again with the current encryption key.

    The app may go on meanwhile. If it is interrupted, run it again to go on. 'flask byok check' shows, as
    this command does at its end, which encryption keys can go.
    """
    state, accounts = require_accounts()
    progress = _seal_all(accounts, state.service.keyring)
    for seal in count_seals(state):
        if seal.role != "current":
            click.echo(f"{seal.key_id}  {seal}.")
    if progress.unreadable or progress.held:
        raise click.ClickException(_left_over(progress))


def _seal_all(accounts: AccountStore, keyring: Keyring) -> Progress:
    progress = Progress(accounts.seals.count_due())
    begin = time.monotonic()
    try:
        with steps("Sealing anew", progress.total) as shown:
            for progress in accounts.seals.rotate(keyring.renewed, AuditEvent("cli", "rotate")):
                shown.reach(progress.done)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted: {counted(progress.done, 'key')} or more stay sealed with the current encryption key. "
            "Run it again to go on."
        ) from None
    seconds = time.monotonic() - begin
    click.echo(
        f"{counted(progress.done, 'key')} sealed with {keyring.key_ids[0]} in {seconds:.1f} s "
        f"({progress.done / max(seconds, 0.001):,.0f} a second)."
    )
    return progress


def _left_over(progress: Progress) -> str:
    if progress.unreadable:
        return (
            f"{counted(progress.unreadable, 'key does', 'keys do')} not open with any configured encryption "
            "key. If one was taken away too early, put it back into BYOK_ENCRYPTION_KEY_FALLBACKS and run this again; "
            "otherwise their owners have to save them once more."
        )
    return f"{counted(progress.held, 'key was', 'keys were')} being changed all the time. Run it again."
