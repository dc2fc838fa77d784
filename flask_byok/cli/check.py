"""What is set up, and what is unsafe about it: ``flask byok generate-key|providers|db|check``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from flask import current_app, request
from flask.cli import ScriptInfo
from werkzeug.middleware.proxy_fix import ProxyFix

from ..accounts.wing import Wing
from ..errors import ByokError
from ..http.proxies import Proxies
from ..keys.operator import OperatorKeys
from ..keys.service import Service
from ..model.owner import Caller
from ..providers.installed import sdk_faults
from ..sealing.keyring import SHOWS_WRONG_KEY, Keyring, generate_encryption_key
from ..settings import MAX_SESSION_LIFETIMES, Settings, source_of, unread
from ..storage import migrations
from ..storage.breaker import TOO_FEW_REPLICAS
from ..storage.engine import in_memory
from ..storage.sql import Database
from ..web import host_setup
from ..web.caller import ByokState, get_state
from ..web.session_guard import guard_interface
from .common import Commands, byok, padded, printable, sentence_of

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
_PREPARES = (
    "A pooler (PgBouncer, or one like it) is in front of PostgreSQL, and the app's engine prepares statements, which "
    "fail there. Set SQLALCHEMY_ENGINE_OPTIONS = {'connect_args': {'prepare_threshold': None}}, or give create_engine "
    "these connect_args."
)
_POOLED = (
    "a pooler (PgBouncer, or one like it) is in front of PostgreSQL. Keys need no setting for it, as no statement is "
    "prepared; other engines of yours need connect_args={'prepare_threshold': None}."
)
_JUST_ENOUGH = (
    "a primary server of Redis has no more replicas than BYOK_REDIS_WAIT ({}): after a failover no key can be changed "
    "until another replica is there. Run {} for each."
)
_NO_PROXY_FIX = (
    "there is no ProxyFix. Behind a proxy every request seems to come from it, over plain HTTP: set app.wsgi_app = "
    "ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)."
)
_NO_PROXY = (
    "BYOK_PROXY: {} cannot be reached ({}), so no provider can. Mend its address, or start it."
)
_NO_SDK = "{} Until then its keys serve and its chats stream, but its client fails."
_APART = "each worker allows BYOK_SET_RATE and BYOK_VALIDATE_RATE by itself; Redis (BYOK_REDIS) counts for all."
_ONE_MACHINE = "accounts are in a SQLite file, for one machine; for several set BYOK_DATABASE_URL to PostgreSQL."
_IN_MEMORY = (
    "Accounts are in memory: each worker has others, and they end with it. Set BYOK_DATABASE_URL to PostgreSQL or a "
    "SQLite file."
)
_ENDLESS = "BYOK_AUDIT_RETENTION is not set, so the audit log grows without end. Set it, for example to '365d'."
_HTTP = "PREFERRED_URL_SCHEME is not 'https', so addresses made outside of requests are not. Set it to 'https'."


@byok.command("generate-key", with_appcontext=False)
def generate_key() -> None:
    """Print a new encryption key for BYOK_ENCRYPTION_KEY."""
    click.echo(generate_encryption_key())


@byok.command("providers")
def providers() -> None:
    """List the providers that are on, where the operator's key for each comes from, and its variables."""
    service = get_state().service
    specs = list(service.catalog)
    found = service.lookup.survey(Caller(), specs)
    for spec in specs:
        chosen = service.lookup.choose(found[spec.id])
        source = "-" if chosen is None else chosen.tier.value
        # Of all its fields; some share one.
        variables = dict.fromkeys(chain(*spec.variables.values()))
        click.echo(padded((spec.id, spec.name, source, ", ".join(variables)), (16, 28, 8, 0)))


# db


@byok.group("db", cls=Commands)
def database() -> None:
    """Create and upgrade the tables."""


@database.command("upgrade")
def upgrade_database() -> None:
    """Bring the tables to this version."""
    tables = tables_alone()
    migrations.upgrade(tables)
    click.echo(f"The tables are at revision {migrations.current(tables)}.")


@database.command("current")
def current_revision() -> None:
    """Show the revision of the tables, and the newest one."""
    click.echo(f"tables  {migrations.current(tables_alone()) or '-'}")
    click.echo(f"newest  {migrations.head()}")


@database.command("sql")
def print_statements() -> None:
    """Print the statements that create all tables in an empty database, and run none."""
    click.echo(migrations.sql(tables_alone().transactions.dialect))


def tables_alone() -> Database:
    """Open the app's database without a look at its tables."""
    found = get_state().database
    return Database(found.place, (), own_file=found.own_file)


# check


@byok.command("check", with_appcontext=False)
@click.pass_context
def check(ctx: click.Context) -> None:
    """Show every setting, its source, and what is unsafe; exits with 1 if anything is.

    Encryption keys are shown by their ids, addresses without their secrets.
    """
    ctx.meta[SHOWS_WRONG_KEY] = True
    with ctx.ensure_object(ScriptInfo).load_app().app_context():
        _check(get_state())


class _Note(str):
    """A sentence about what is right for some apps and wrong for others."""

    __slots__ = ()


def _check(state: ByokState) -> None:
    for name, value in shown_settings(state.settings, state.service.keyring).items():
        _show(f"BYOK_{name.upper()}", value, source_of(name, current_app.config, os.environ))
    click.echo()
    _show("providers", str(len(state.service.catalog)))
    if _has_sessions(state) or (state.uses_database and state.settings.encryption_key is not None):
        _show("database", shown_address(state.database.place), state.database.source)
    _show("session keys", state.service.sessions.name)
    # Several looks may fail for the same reason.
    found = dict.fromkeys(sentence for look in _LOOKS for sentence in _tried(look, state))
    unsafe = [sentence for sentence in found if not isinstance(sentence, _Note)]
    for note in (sentence for sentence in found if isinstance(sentence, _Note)):
        click.echo(f"note: {note}")
    for sentence in unsafe:
        click.echo(f"unsafe: {sentence}", err=True)
    if unsafe:
        raise click.exceptions.Exit(1)


def _has_sessions(state: ByokState) -> bool:
    """Return True if session keys are in the database; accounts are not, if the encryption key is made up."""
    return state.service.sessions.name == "the database"


def _tried(look: _Look, state: ByokState) -> Iterator[str]:
    """Yield what a look finds, and the reason why it fails."""
    try:
        yield from look(state)
    except ByokError as error:
        yield sentence_of(error)


def _show(*cells: str) -> None:
    click.echo(padded(cells, _WIDTHS))


# Looks: each shows what it sees, and yields a sentence for each fault, with the line that mends it.


def _host(state: ByokState) -> Iterator[str]:
    debug, cross_site = current_app.debug, bool(state.settings.trusted_origins)
    yield from host_setup.unsafe_settings(current_app.config, debug=debug, cross_site=cross_site)
    for is_meant, sentence in unread(current_app.config, os.environ):
        yield sentence if is_meant else _Note(sentence)
    yield from host_setup.unsafe_choices(state.settings)
    yield from host_setup.unsafe_sessions(current_app)
    yield from host_setup.collisions(current_app)
    yield from host_setup.hidden_in_templates(current_app)
    if state.uses_database and host_setup.is_late(current_app, state.database):
        yield host_setup.LATE_ENGINE
    if isinstance(keys := state.service.operator, OperatorKeys):
        yield from keys.faults(state.service.catalog)
        yield from map(_Note, keys.misnamed([*state.service.catalog]))
    guard_interface(current_app)
    with current_app.test_request_context():
        state.binding.begin(request)  # as each request does


def _sessions(state: ByokState) -> Iterator[str]:
    if (canary := state.service.sessions.canary) is not None:
        canary.reseal()
    documents: Any = state.service.sessions.documents
    wait = state.settings.redis_wait
    if not hasattr(documents, "eviction"):  # it is not Redis
        yield _Note(_APART)
        return
    if policy := documents.eviction():
        yield _EVICTS.format(policy)
    if wait and (fewest := documents.fewest_replicas()) <= wait:
        yield TOO_FEW_REPLICAS if fewest < wait else _Note(_JUST_ENOUGH.format(wait, wait + 1))


def _accounts(state: ByokState) -> Iterator[str]:
    wing = state.service.accounts
    if not isinstance(wing, Wing):
        _show("accounts", "-")
        return
    url = wing.store.engine.url
    dialect, memory = url.get_backend_name(), in_memory(url)
    _show("accounts", f"{'memory' if memory else wing.store.name} ({dialect})")
    if memory and state.settings.encryption_key is not None:  # else it is said that this is missing
        yield _IN_MEMORY
    elif dialect == "sqlite" and not memory:
        yield _Note(_ONE_MACHINE)
    if state.settings.audit_retention is None:
        yield _Note(_ENDLESS)
    if _would_be_dropped(state.database):
        yield _Note(_DROPPED)


def _tables(state: ByokState) -> Iterator[str]:
    if not state.uses_database:
        return
    wing: Any = state.service.accounts
    store: Any = state.service.sessions.documents if _has_sessions(state) else wing.store
    tables, made = store.database.apart(), "-"
    try:
        tables.run(bool)  # makes them, if there are none
        made = "of the host's own migrations"
    finally:
        _show("tables", f"{migrations.current(tables) or made} (newest {migrations.head()})")
    if isinstance(wing, Wing):
        wing.store.canary.secret()
    migrations.try_rights(tables)
    pooled, prepares = tables.call(tables.transactions.pooler)
    if pooled:
        yield _PREPARES if prepares else _Note(_POOLED)


def _encryption_keys(state: ByokState) -> Iterator[str]:
    for role, key_id, use in count_sealed(state.service):
        if role == "unknown":
            yield f"there is no encryption key with the id {key_id}: {use}"
        else:
            _show(f"{role} key id {key_id}", use)


def _sdks(state: ByokState) -> Iterator[str]:
    own = {spec.adapter for spec in state.service.catalog if spec.provider_class is None}
    for fault in chain.from_iterable(map(sdk_faults, sorted(own))):
        yield _Note(_NO_SDK.format(fault))


def _proxy(state: ByokState) -> Iterator[str]:
    url = Proxies(state.settings.proxy).find(("https", "provider.example", 443))
    if url is None:
        return
    parts = urlsplit(url)
    place = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection(place, 3).close()
    except OSError as error:
        yield _NO_PROXY.format(shown_address(url), type(error).__name__)


def _https(state: ByokState) -> Iterator[str]:
    if current_app.config.get("PREFERRED_URL_SCHEME") != "https":
        yield _Note(_HTTP)
    layer: Any = current_app.wsgi_app
    while layer is not None and not isinstance(layer, ProxyFix):
        layer = getattr(layer, "app", None) or getattr(layer, "application", None)
    if layer is None:
        yield _Note(_NO_PROXY_FIX)


_Look = Callable[[ByokState], Iterator[str]]
_LOOKS: list[_Look] = [
    _host,
    _https,
    _proxy,
    _sdks,
    _sessions,
    _accounts,
    _tables,
    _encryption_keys,
]


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
        advice = _advice(count, sessions, days) if number else ""
        yield "fallback" if number else "current", key_id, use + advice
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
    texts = {f.name: _shown(getattr(settings, f.name), f.repr) for f in fields(settings)}
    return {name: printable(known.get(name) or text) for name, text in texts.items()}


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
