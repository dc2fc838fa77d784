"""What is set up, from where, and what is unsafe: ``flask byok check``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import click
from flask import current_app
from flask.cli import ScriptInfo

from ..accounts.wing import Wing
from ..errors import ByokError, StoreError
from ..sealing.canary import SHOWS_WRONG_KEY, Canary
from ..settings import MAX_SESSION_LIFETIMES, source_of
from ..storage.reasons import reason_of
from ..web.caller import ByokState, get_state
from ..web.safety import unsafe_choices, unsafe_settings
from ..web.session_binding import app_name, index_key
from . import check_database
from .database import known_revision, migrations
from .input import QuietCommand
from .values import shown_settings

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore

_WIDTHS = (33, 40)
_DATABASE_AWAY = "the database does not answer, or refuses: is it up, and reachable?"
#: The next encryption key, which is among the fallbacks first, looks the same to the stores.
_CAN_GO = "it can go if it was replaced (keep it if it is the next one)"


@dataclass(slots=True)
class _Report:
    """What is to be shown, after the settings."""

    facts: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unsafe: list[str] = field(default_factory=list)

    @property
    def lines(self) -> Iterator[str]:
        yield from (_line(*fact) for fact in self.facts)
        yield from (f"note: {sentence}" for sentence in self.notes)

    @contextmanager
    def trial(self, otherwise: str) -> Iterator[None]:
        """Note what a trial of a store fails for.

        :param otherwise: what is said where nothing more is known.
        """
        try:
            yield
        except StoreError as error:
            self.unsafe.append(reason_of(error) or otherwise)
        except (ByokError, click.ClickException) as error:
            self.unsafe.append(str(error))


@click.command("check", cls=QuietCommand)
@click.pass_context
def check(ctx: click.Context) -> None:
    """Show every setting, where it comes from, and what is unsafe; exits with 1 if anything is.

    Encryption keys show as their ids, and addresses without what is secret in them.
    """
    ctx.meta[SHOWS_WRONG_KEY] = True
    with ctx.ensure_object(ScriptInfo).load_app().app_context():
        _check(get_state())


def _check(state: ByokState) -> None:
    report = _Report()
    for name, value in shown_settings(state.settings, state.service.keyring).items():
        source = source_of(name, current_app.config, os.environ)
        click.echo(_line(f"BYOK_{name.upper()}", value, source))
    report.unsafe += unsafe_settings(current_app.config, debug=current_app.debug)
    report.unsafe += unsafe_choices(state.settings)
    _look_around(state, report)
    click.echo()
    for line in report.lines:
        click.echo(line)
    # The database may be the one for sessions, too.
    for sentence in dict.fromkeys(report.unsafe):
        click.echo(f"unsafe: {sentence}", err=True)
    if report.unsafe:
        raise click.exceptions.Exit(1)


def _look_around(state: ByokState, report: _Report) -> None:
    """Find out about the stores."""
    service = state.service
    report.facts.append(("providers", str(len(service.catalog))))
    if state.uses_database:
        report.facts.append(check_database.describe(state.database))
        report.unsafe += check_database.misplaced(state.database)
    _look_at_sessions(state, report)
    if current_app.config.get("PREFERRED_URL_SCHEME") != "https":
        report.notes.append(
            "PREFERRED_URL_SCHEME is not 'https': addresses made outside of requests are not either."
        )
    wing = service.accounts
    if not isinstance(wing, Wing):
        report.facts.append(("accounts", "-"))
    else:
        _look_at_accounts(state, wing.store, report)
    with report.trial(_DATABASE_AWAY):
        for seal in count_seals(state):
            _show_seal(seal, report)


def _look_at_sessions(state: ByokState, report: _Report) -> None:
    sessions = state.service.sessions
    report.facts.append(("session keys", sessions.name))
    if getattr(sessions.documents, "client", None) is None:
        report.notes.append(
            "attempts are counted in each worker's own memory, so each worker allows the rates "
            "BYOK_SET_RATE and BYOK_VALIDATE_RATE once more. With Redis they are counted together."
        )
    if state.settings.encryption_key is None:
        return  # one that was made up for this run says nothing
    with report.trial(f"{sessions.name} does not answer, or refuses: is it up, and reachable?"):
        name = app_name(index_key(current_app.secret_key or ""))
        Canary.of_sessions(state.service.keyring, sessions.hold, name).reseal()


def _look_at_accounts(state: ByokState, accounts: AccountStore, report: _Report) -> None:
    dialect = accounts.engine.dialect.name
    report.facts.append(("accounts", f"{accounts.name} ({dialect})"))
    report.notes += check_database.notes(state.database, dialect)
    with report.trial(_DATABASE_AWAY):
        with migrations() as (migrate, engine):
            revision = known_revision(migrate, engine) or "of the host's own migrations"
            report.facts.append(("tables", f"{revision} (newest {migrate.head()})"))
        accounts.canary.secret()
        with migrations():
            check_database.require_rights(accounts.engine)


@dataclass(frozen=True, slots=True)
class Seals:
    """How many ciphertexts an encryption key has sealed.

    ``sessions`` is None if the store cannot count them, and ``days`` how long a session lasts at most.
    """

    key_id: str
    role: Literal["current", "fallback", "unknown"]
    accounts: int
    sessions: int | None
    days: int

    def __str__(self) -> str:
        """Return the counts, and whether the key can go."""
        sessions = "" if self.sessions is None else f", {self.sessions:,} in sessions"
        return f"{self.accounts:,} sealed in accounts{sessions}{self._advice()}"

    def _advice(self) -> str:
        if self.role == "current":
            return ""
        if self.role == "unknown":
            return "; it is not configured: was it taken away early?"
        if self.accounts:
            return "; in use: 'flask byok rotate' seals them again"
        if self.sessions:
            return "; in use until these sessions use their keys, or end"
        if self.sessions is None:
            return f"; {_CAN_GO}, and the sessions from before that have ended ({self.days} days at most)"
        return f"; {_CAN_GO}"


def count_seals(state: ByokState) -> Iterator[Seals]:
    """Yield how much each configured encryption key has sealed, then those that ciphertexts name beside them."""
    wing, key_ids = state.service.accounts, state.service.keyring.key_ids
    accounts = wing.store.seals.count_by_key_id() if isinstance(wing, Wing) else {}
    count_sessions = state.service.sessions.count_sealed_with
    days = (state.settings.session_ttl * MAX_SESSION_LIFETIMES).days
    for key_id in key_ids:
        role: Literal["current", "fallback"] = "current" if key_id == key_ids[0] else "fallback"
        yield Seals(key_id, role, accounts.get(key_id, 0), count_sessions(key_id), days)
    for key_id, count in accounts.items():
        if key_id and key_id not in key_ids:
            yield Seals(key_id, "unknown", count, None, days)


def _show_seal(seal: Seals, report: _Report) -> None:
    if seal.role != "unknown":
        report.facts.append((f"{seal.role} key id {seal.key_id}", str(seal)))
        return
    report.unsafe.append(
        f"no configured encryption key has the id {seal.key_id}, with which {seal.accounts:,} are sealed: if it was "
        "taken away too early, put it back into BYOK_ENCRYPTION_KEY_FALLBACKS."
    )


def _line(*cells: str) -> str:
    *padded, last = cells
    columns = (f"{cell:<{width}}" for cell, width in zip(padded, _WIDTHS, strict=False))
    return "  ".join([*columns, last])
