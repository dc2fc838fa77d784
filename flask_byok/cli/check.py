"""Show what is configured, from where, and what is unsafe: ``flask byok check``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import ScriptInfo

from ..accounts.rotation import key_ids_without_key
from ..errors import ByokError, ConfigurationError, StoreError
from ..sealing.canary import open_sessions
from ..settings import source_of
from ..storage.reasons import reason_of
from ..web.anew import beginning_anew
from ..web.caller import ByokState, get_state
from ..web.host_database import LATE_ENGINE, FoundDatabase, host_engine, is_late
from ..web.safety import unsafe_choices, unsafe_settings
from ..web.session_binding import app_name, index_key
from .input import QuietCommand
from .setup import known_revision, migrations
from .values import shown_address, shown_settings

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore

_WIDTHS = (33, 40)

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
    with beginning_anew():  # a wrong encryption key is among what is to be shown
        app = ctx.ensure_object(ScriptInfo).load_app()
    with app.app_context():
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
    _examine_accounts(state, state.service.accounts, report)
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
    if getattr(sessions, "client", None) is None:
        report.notes.append(_RATES)
    if state.settings.encryption_key is None:
        return  # the stores do not know a key that was made up for this run
    with report.trial(sessions.name):
        name = app_name(index_key(current_app.secret_key or ""))
        open_sessions(state.service.keyring, sessions, name)


def _examine_accounts(state: ByokState, accounts: AccountStore | None, report: _Report) -> None:
    if accounts is None:
        report.facts.append(("accounts", "-"))
        return
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
        _count_sealed(state, accounts, report)
        accounts.canary.secret()
        with migrations():
            _require_rights(accounts.engine)


def _count_sealed(state: ByokState, accounts: AccountStore, report: _Report) -> None:
    keyring, counts = state.service.keyring, accounts.seals.count_by_key_id()
    for number, key_id in enumerate(keyring.key_ids):
        role = "fallback" if number else "current"
        report.facts.append((f"{role} key id {key_id}", f"{counts.get(key_id, 0):,} sealed"))
    for key_id, count in key_ids_without_key(counts, keyring).items():
        report.unsafe.append(
            f"no configured encryption key has the id {key_id}, which sealed {count:,}: if it was removed too early, "
            "put it back into BYOK_ENCRYPTION_KEY_FALLBACKS."
        )


def _require_rights(engine: Any) -> None:
    """Try every right that the app needs.

    :raises ConfigurationError: some are missing; the message names them.
    """
    from ..storage.rights import missing_rights

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
