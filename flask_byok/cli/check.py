"""Show what is configured, from where, and what is unsafe: ``flask byok check``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from flask import current_app
from flask.cli import ScriptInfo

from ..accounts.wing import Wing
from ..errors import ByokError, ConfigurationError, StoreError
from ..sealing.keyring import SHOWS_WRONG_KEY, Canary
from ..settings import MAX_SESSION_LIFETIMES, source_of
from ..storage.protection import reason_of
from ..web.caller import ByokState, get_state
from ..web.host import (
    LATE_ENGINE,
    FoundDatabase,
    app_name,
    host_engine,
    index_key,
    is_late,
    unsafe_choices,
    unsafe_settings,
)
from .input import QuietCommand
from .setup import known_revision, migrations
from .values import shown_address, shown_settings

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore

_WIDTHS = (33, 40)
#: The next encryption key, which is among the fallbacks first, looks the same to the stores.
_CAN_GO = "it can go if it was replaced (keep it if it is the next one)"

_RATES = (
    "attempts are counted in each worker's own memory, so each worker allows the rates BYOK_SET_RATE and "
    "BYOK_VALIDATE_RATE again. With Redis they are counted together."
)
_SQLITE = (
    "accounts are in a SQLite file, which the workers of one machine can share; for several machines "
    "use PostgreSQL."
)
_DROPPED = (
    "Flask-Migrate is set up on this database, and nothing keeps our tables out of its migrations: 'flask db migrate' "
    "would write one that drops them. See 'Its tables' in the documentation on deployment."
)
_NOT_HTTPS = (
    "PREFERRED_URL_SCHEME is not 'https': addresses made outside of requests are not either."
)
_AWAY = "{} does not answer, or refuses: is it up, and reachable?"


@dataclass(slots=True)
class _Report:
    """What to show after the settings."""

    facts: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unsafe: list[str] = field(default_factory=list)

    @contextmanager
    def trial(self, store: str) -> Iterator[None]:
        """Report why a trial of a store fails."""
        try:
            yield
        except StoreError as error:
            self.unsafe.append(reason_of(error) or _AWAY.format(store))
        except (ByokError, click.ClickException) as error:
            self.unsafe.append(str(error))


@click.command("check", cls=QuietCommand)
@click.pass_context
def check(ctx: click.Context) -> None:
    """Show every setting, its source, and what is unsafe; exits with 1 if anything is.

    Encryption keys are shown by their ids, addresses without their secrets.
    """
    ctx.meta[SHOWS_WRONG_KEY] = True
    with ctx.ensure_object(ScriptInfo).load_app().app_context():
        _check(get_state())


def _check(state: ByokState) -> None:
    for name, value in shown_settings(state.settings, state.service.keyring).items():
        source = source_of(name, current_app.config, os.environ)
        click.echo(_line(f"BYOK_{name.upper()}", value, source))
    report = _Report()
    report.unsafe += unsafe_settings(current_app.config, debug=current_app.debug)
    report.unsafe += unsafe_choices(state.settings)
    report.facts.append(("providers", str(len(state.service.catalog))))
    if state.uses_database:
        found = state.database
        report.facts.append(("database", shown_address(found.place), found.source))
        report.unsafe += [LATE_ENGINE] if is_late(current_app, found) else []
    _examine_sessions(state, report)
    if current_app.config.get("PREFERRED_URL_SCHEME") != "https":
        report.notes.append(_NOT_HTTPS)
    wing = state.service.accounts
    if isinstance(wing, Wing):
        _examine_accounts(state, wing.store, report)
    else:
        report.facts.append(("accounts", "-"))
    with report.trial("the database"):
        for seal in count_seals(state):
            _show_seal(seal, report)
    _show(report)


def _show(report: _Report) -> None:
    click.echo()
    for fact in report.facts:
        click.echo(_line(*fact))
    for note in report.notes:
        click.echo(f"note: {note}")
    # Sessions and accounts may fail for the same reason.
    for sentence in dict.fromkeys(report.unsafe):
        click.echo(f"unsafe: {sentence}", err=True)
    if report.unsafe:
        raise click.exceptions.Exit(1)


def _examine_sessions(state: ByokState, report: _Report) -> None:
    sessions = state.service.sessions
    report.facts.append(("session keys", sessions.name))
    if getattr(sessions.documents, "client", None) is None:
        report.notes.append(_RATES)
    if state.settings.encryption_key is None:
        return  # the stores do not know a key that was made up for this run
    with report.trial(sessions.name):
        name = app_name(index_key(current_app.secret_key or ""))
        Canary(state.service.keyring, name, sessions.hold).reseal()


def _examine_accounts(state: ByokState, accounts: AccountStore, report: _Report) -> None:
    dialect = accounts.engine.dialect.name
    report.facts.append(("accounts", f"{accounts.name} ({dialect})"))
    if dialect == "sqlite":
        report.notes.append(_SQLITE)
    if _would_be_dropped(state.database):
        report.notes.append(_DROPPED)
    with report.trial("the database"):
        with migrations() as (migrate, engine):
            revision = known_revision(migrate, engine) or "of the host's own migrations"
            report.facts.append(("tables", f"{revision} (newest {migrate.head()})"))
        accounts.canary.secret()
        with migrations():
            _require_rights(accounts.engine)


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


def _require_rights(engine: Any) -> None:
    """Try every right that the app needs.

    :raises ConfigurationError: some are missing; the message names them.
    """
    from ..storage.migrations import missing_rights

    if missing := missing_rights(engine):
        raise ConfigurationError(
            f"The database's user lacks these rights: {', '.join(missing)}. Ask an administrator to GRANT them."
        )


def _would_be_dropped(found: FoundDatabase) -> bool:
    """Return True if the host's next migration would drop our tables."""
    migrate, host = current_app.extensions.get("migrate"), host_engine(current_app)
    if migrate is None or host is None or shown_address(host) != shown_address(found.place):
        return False
    if migrate.configure_args.keys() & {"include_name", "include_object"}:
        return False
    env = Path(migrate.directory) / "env.py"
    return not (env.exists() and "byok" in env.read_text())


def _line(*cells: str) -> str:
    *padded, last = cells
    columns = (f"{cell:<{width}}" for cell, width in zip(padded, _WIDTHS, strict=False))
    return "  ".join([*columns, last])
