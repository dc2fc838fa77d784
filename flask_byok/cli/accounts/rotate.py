"""A new encryption key: ``flask byok rotate``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
from flask.cli import with_appcontext

from ...accounts.rotation import Progress, key_ids_without_key, rotate
from ...keys.session_store import AuditEvent
from ...sealing.keyring import Keyring
from ...settings import MAX_SESSION_LIFETIMES
from ...web.caller import ByokState, get_state
from ..common import Interrupted, counted, require_accounts
from ..input import QuietCommand, word
from ..progress import steps

if TYPE_CHECKING:
    from ...accounts.store.keys import AccountStore


#: One that is yet to become the current key looks the same to the stores.
_NOTHING_LEFT = (
    "has sealed nothing that is there. It can go from BYOK_ENCRYPTION_KEY_FALLBACKS if it was replaced; "
    "keep it if it is the next one"
)


@click.command("rotate", cls=QuietCommand)
@click.option(
    "--retire",
    metavar="KEY_ID",
    callback=word("[0-9a-f]{12}", "a key id: 12 hexadecimal digits, as 'flask byok check' shows"),
    help="Say whether this encryption key can go; seal nothing.",
)
@click.option(
    "--sessions-ended",
    is_flag=True,
    help="With --retire: the sessions have ended that began before this key was replaced. Where nobody can count them.",
)
@with_appcontext
def rotate_keys(retire: str | None, sessions_ended: bool) -> None:
    """Seal every account's key anew with the current encryption key.

    The app may go on meanwhile. What is interrupted goes on where it was when run again.
    """
    if retire is not None:
        _retire(get_state(), retire, sessions_ended)
        return
    state, accounts = require_accounts()
    progress = _seal_all(accounts, state.service.keyring)
    _report(state, accounts)
    if progress.unreadable or progress.held:
        raise click.ClickException(_left_over(progress))


def _seal_all(accounts: AccountStore, keyring: Keyring) -> Progress:
    progress, begin = Progress(accounts.seals.count_due()), time.monotonic()
    try:
        with steps("Sealing anew", progress.total) as shown:
            for progress in rotate(accounts, keyring, AuditEvent("cli", "rotate")):
                shown.reach(progress.done)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted: {counted(progress.done, 'key')} or more, sealed anew, stay so. Run it again to go on."
        ) from None
    seconds = time.monotonic() - begin
    click.echo(
        f"{counted(progress.done, 'key')} sealed anew with {keyring.key_ids[0]} in {seconds:.1f} s "
        f"({progress.done / max(seconds, 0.001):,.0f} a second)."
    )
    return progress


def _report(state: ByokState, accounts: AccountStore) -> None:
    """Say of each fallback whether it can go."""
    keyring, used = state.service.keyring, _Used(state, accounts)
    for key_id in keyring.key_ids[1:]:
        click.echo(f"{key_id}  {used.say(key_id)}")
    for key_id, count in key_ids_without_key(used.accounts, keyring).items():
        click.echo(
            f"{key_id}  is not configured, and has sealed {count:,}: was it taken away early?"
        )


def _retire(state: ByokState, key_id: str, sessions_ended: bool) -> None:
    keyring, used = (
        state.service.keyring,
        _Used(state, getattr(state.service.accounts, "store", None)),
    )
    if key_id == keyring.key_ids[0]:
        raise click.ClickException(
            f"{key_id} is the current encryption key: make another one BYOK_ENCRYPTION_KEY first."
        )
    if used.count(key_id):
        raise click.ClickException(f"{key_id} {used.say(key_id)}")
    if key_id not in keyring.key_ids:
        raise click.ClickException(
            f"{key_id} is neither configured nor named by anything stored. "
            f"Configured are {', '.join(keyring.key_ids)}."
        )
    if not (used.counts_sessions or sessions_ended):
        raise click.ClickException(f"{key_id} {used.say(key_id)} Then add --sessions-ended.")
    click.echo(f"{key_id}  {_NOTHING_LEFT}.")


class _Used:
    """How much each encryption key has sealed."""

    def __init__(self, state: ByokState, accounts: AccountStore | None) -> None:
        sessions = state.service.sessions
        self.accounts = {} if accounts is None else accounts.seals.count_by_key_id()
        self._sessions = sessions
        self._store = sessions.name
        self._last = state.settings.session_ttl * MAX_SESSION_LIFETIMES

    @property
    def counts_sessions(self) -> bool:
        """Say whether the store can tell what the sessions' keys are sealed with."""
        return self._sessions.count_sealed_with("") is not None

    def count(self, key_id: str) -> int:
        """Return how much it has sealed, as far as can be counted."""
        return self.accounts.get(key_id, 0) + self._of_sessions(key_id)

    def say(self, key_id: str) -> str:
        """Say whether it can go, and if not why."""
        accounts, sessions = self.accounts.get(key_id, 0), self._of_sessions(key_id)
        if accounts or sessions:
            return (
                f"is in use: it has sealed {accounts:,} in accounts and {sessions:,} in sessions. "
                "Accounts' are sealed anew by 'flask byok rotate', sessions' when they are used."
            )
        if self.counts_sessions:
            return f"{_NOTHING_LEFT}."
        return (
            f"{_NOTHING_LEFT}. {self._store} cannot count what sessions have: wait until those have ended that "
            f"began before it was replaced, after {self._last.days} days at most."
        )

    def _of_sessions(self, key_id: str) -> int:
        return self._sessions.count_sealed_with(key_id) or 0


def _left_over(progress: Progress) -> str:
    if progress.unreadable:
        return (
            f"{counted(progress.unreadable, 'key does', 'keys do')} not open with any configured encryption "
            "key. If one was taken away too early, put it back into BYOK_ENCRYPTION_KEY_FALLBACKS and run this again; "
            "otherwise their owners have to save them once more."
        )
    return (
        f"{counted(progress.held, 'key was', 'keys were')} being changed by others all the time. "
        "Run it again."
    )
