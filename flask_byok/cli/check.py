"""What is set up, and what is unsafe about it: ``flask byok check``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from flask import current_app
from flask.cli import ScriptInfo

from ..accounts.wing import Wing
from ..errors import ByokError
from ..keys.service import Service
from ..sealing.keyring import SHOWS_WRONG_KEY, Keyring
from ..settings import MAX_SESSION_LIFETIMES, Settings, source_of
from ..storage import migrations
from ..web import host_setup
from ..web.caller import ByokState, get_state
from .common import byok, padded, printable, sentence_of
from .setup import tables_alone

_WIDTHS = (33, 40, 0)
_HIDDEN = "set"
#: The next encryption key, which is among the fallbacks first, looks the same to the stores.
_CAN_GO = "; it can go if it was replaced (keep it if it is the next one)"

_PUT_BACK = "if it was taken away too early, put it back into BYOK_ENCRYPTION_KEY_FALLBACKS"

_EVICTS = (
    "Redis deletes session keys when it is full (maxmemory-policy {}): people lose them without a word. Set "
    "maxmemory-policy to noeviction, or give flask-byok a Redis of its own with BYOK_REDIS."
)
_DROPPED = (
    "Flask-Migrate is set up on this database, and nothing keeps our tables out of its migrations: 'flask db migrate' "
    "would write one that drops them. See 'Its tables' in the documentation on deployment."
)


@byok.command("check", with_appcontext=False)
@click.pass_context
def check(ctx: click.Context) -> None:
    """Show every setting, its source, and what is unsafe; exits with 1 if anything is.

    Encryption keys are shown by their ids, addresses without their secrets.
    """
    ctx.meta[SHOWS_WRONG_KEY] = True
    with ctx.ensure_object(ScriptInfo).load_app().app_context():
        _check(get_state())


def _check(state: ByokState) -> None:
    service, sessions, wing = state.service, state.service.sessions, state.service.accounts
    for name, value in shown_settings(state.settings, service.keyring).items():
        _show(f"BYOK_{name.upper()}", value, source_of(name, current_app.config, os.environ))
    unsafe = host_setup.unsafe_settings(current_app.config, debug=current_app.debug)
    unsafe += host_setup.unsafe_choices(state.settings) + host_setup.unsafe_sessions(current_app)
    click.echo()
    _show("providers", str(len(service.catalog)))
    if state.uses_database:
        _show("database", shown_address(state.database.place), state.database.source)
        unsafe += (
            [host_setup.LATE_ENGINE] if host_setup.is_late(current_app, state.database) else []
        )
    _show("session keys", sessions.name)
    with _trial(unsafe):
        if sessions.canary is not None:
            sessions.canary.reseal()
    with _trial(unsafe):
        eviction = getattr(sessions.documents, "eviction", None)  # of Redis
        if eviction and (policy := eviction()):
            unsafe.append(_EVICTS.format(policy))
    with _trial(unsafe):
        _show_accounts(wing)
    with _trial(unsafe):
        for role, key_id, use in count_sealed(service):
            if role == "unknown":
                unsafe.append(f"there is no encryption key with the id {key_id}: {use}")
            else:
                _show(f"{role} key id {key_id}", use)
    for note in _notes(state):
        click.echo(f"note: {note}")
    # Sessions and accounts may fail for the same reason.
    for sentence in dict.fromkeys(unsafe):
        click.echo(f"unsafe: {sentence}", err=True)
    if unsafe:
        raise click.exceptions.Exit(1)


def _show(*cells: str) -> None:
    click.echo(padded(cells, _WIDTHS))


@contextmanager
def _trial(unsafe: list[str]) -> Iterator[None]:
    """Add the reason why a trial of a store fails."""
    try:
        yield
    except ByokError as error:
        unsafe.append(sentence_of(error))


def _show_accounts(wing: object) -> None:
    if not isinstance(wing, Wing):
        _show("accounts", "-")
        return
    _show("accounts", f"{wing.store.name} ({wing.store.engine.dialect.name})")
    tables = tables_alone()
    revision = migrations.current(tables) or "of the host's own migrations"
    _show("tables", f"{revision} (newest {migrations.head()})")
    wing.store.canary.secret()
    migrations.try_rights(tables)


def _notes(state: ByokState) -> Iterator[str]:
    """Yield what is right for some apps and wrong for others."""
    wing = state.service.accounts
    if getattr(state.service.sessions.documents, "client", None) is None:
        yield "each worker allows BYOK_SET_RATE and BYOK_VALIDATE_RATE by itself; Redis counts for them all."
    if current_app.config.get("PREFERRED_URL_SCHEME") != "https":
        yield "PREFERRED_URL_SCHEME is not 'https', so addresses made outside of requests are not."
    if isinstance(wing, Wing) and wing.store.engine.dialect.name == "sqlite":
        yield "accounts are in a SQLite file, for the workers of one machine; for several use PostgreSQL."
    if isinstance(wing, Wing) and state.settings.audit_retention is None:
        yield "BYOK_AUDIT_RETENTION is not set, so the audit log grows without end."
    if isinstance(wing, Wing) and _would_be_dropped(state.database):
        yield _DROPPED


def count_sealed(service: Service) -> Iterator[tuple[str, str, str]]:
    """Yield role and id of each encryption key, and how much it has sealed, with advice.

    First the configured ones (``current``, ``fallback``), then those that ciphertexts name beside them (``unknown``).
    """
    wing = service.accounts
    accounts = wing.store.seals.count_by_key_id() if isinstance(wing, Wing) else {}
    days = (service.settings.session_ttl * MAX_SESSION_LIFETIMES).days
    for number, key_id in enumerate(service.keyring.key_ids):
        count, sessions = accounts.pop(key_id, 0), service.sessions.count_sealed_with(key_id)
        use = f"{count:,} sealed in accounts"
        use += "" if sessions is None else f", {sessions:,} in sessions"
        if number == 0:
            yield "current", key_id, use
        else:
            yield "fallback", key_id, use + _advice(count, sessions, days)
    for key_id, count in accounts.items():
        if key_id:
            yield "unknown", key_id, f"{count:,} sealed in accounts; {_PUT_BACK}"


def _advice(accounts: int, sessions: int | None, days: int) -> str:
    """Return whether a fallback can go; ``sessions`` is None if the store cannot count them."""
    if accounts:
        return "; in use: 'flask byok rotate' seals them again"
    if sessions:
        return "; in use until these sessions use their keys, or end"
    if sessions is None:
        return f"{_CAN_GO}, and the sessions from before that have ended ({days} days at most)"
    return _CAN_GO


def _would_be_dropped(found: host_setup.FoundDatabase) -> bool:
    """Return True if the host's next migration would drop our tables."""
    migrate, host = current_app.extensions.get("migrate"), host_setup.host_engine(current_app)
    if migrate is None or host is None or shown_address(host) != shown_address(found.place):
        return False
    if migrate.configure_args.keys() & {"include_name", "include_object"}:
        return False
    env = Path(migrate.directory) / "env.py"
    return not (env.exists() and "byok" in env.read_text())


def shown_settings(settings: Settings, keyring: Keyring) -> dict[str, str]:
    """Return the value of each setting as text: encryption keys by their ids, addresses without passwords."""
    current, *fallbacks = keyring.key_ids
    made_up = " (made up for this run)" if settings.encryption_key is None else ""
    urls = settings.base_urls.items()
    known = {
        "encryption_key": f"key id {current}{made_up}",
        "encryption_key_fallbacks": ", ".join(f"key id {key_id}" for key_id in fallbacks),
        "redis": shown_address(settings.redis),
        "database_url": shown_address(settings.database_url),
        "base_urls": ", ".join(f"{id}={shown_address(url)}" for id, url in urls),
    }
    return {
        each.name: printable(
            known.get(each.name) or _shown(getattr(settings, each.name), each.repr)
        )
        for each in fields(settings)
    }


def _shown(value: Any, may_be_shown: bool) -> str:
    if value is None or value in ((), frozenset(), {}):
        return "-"
    if not may_be_shown:
        return _HIDDEN
    if isinstance(value, tuple | frozenset):
        return ", ".join(map(str, value if isinstance(value, tuple) else sorted(value)))
    module = type(value).__module__.partition(".")[0]
    if isinstance(value, Mapping) or module not in ("builtins", "datetime", "pathlib"):
        return type(value).__name__  # an object's own repr may contain secrets
    return str(value)


def shown_address(value: Any) -> str:
    """Return an address without user, password, query and fragment."""
    if value is None:
        return "-"
    # A SQLAlchemy engine has a URL; the repr of a Redis client contains its password.
    url = getattr(value, "url", value)
    text = url.render_as_string() if hasattr(url, "render_as_string") else url
    if not isinstance(text, str):
        return type(value).__name__
    try:
        parts = urlsplit(text)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return _HIDDEN
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" or not parts.scheme:
        return _HIDDEN  # the password contains a slash, a question mark or a hash
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
