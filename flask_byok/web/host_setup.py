"""What the host has set up: its database, what has our names, and settings that put keys at risk, its own and ours.

The database is the one that is set, else the host's own, else a SQLite file in the instance folder. Unsafe settings
are for the log and for ``flask byok check``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from flask import Flask, before_render_template
from werkzeug.routing import Rule

from ..catalog.endpoints import base_of
from ..errors import ConfigurationError
from ..model.owner import ACCOUNT_TIERS
from ..sealing.keyring import is_guessable
from ..settings import MAX_SESSION_LIFETIMES, Settings

#: The warning if the host's engine comes too late.
LATE_ENGINE = (
    "This app has Flask-SQLAlchemy, but keys are in a SQLite file in the instance folder: BYOK was set up before the "
    "engine was there. Call db.init_app(app) before byok.init_app(app), or set BYOK_DATABASE_URL."
)
#: The warning if the default gives two apps one file.
SHARED_FILE = "%r and another app share account keys: write app.config['BYOK_DATABASE_URL'] = 'sqlite:///%s.sqlite3'."
#: The warning if a retired encryption key is no secret.
GUESSABLE_FALLBACK = (
    "One of BYOK_ENCRYPTION_KEY_FALLBACKS is no secret. Run 'flask byok rotate', then remove it."
)
# What the endpoints of our blueprints begin with.
_OURS = ("byok.", "byok_gateway.")
_HIDDEN = "Another 'byok' has taken the place of flask-byok's in templates: rename it."
_INSTANCE = "a file in the instance folder"

#: From this lifetime on, an unattended browser is a risk.
WIDE_SESSION = timedelta(days=7)

#: Settings of Flask's and its CSRF protection: the default, the safe values, and the risk of another.
_OF_FLASK = (
    ("SESSION_COOKIE_SECURE", False, (True,), "the session cookie also travels over plain HTTP"),
    ("SESSION_COOKIE_HTTPONLY", True, (True,), "scripts can read the session cookie"),
    ("SESSION_COOKIE_SAMESITE", None, ("Lax", "Strict"), "requests of other sites have the cookie"),
    ("WTF_CSRF_ENABLED", True, (True,), "other sites can change keys"),
)

#: Methods that Flask adds to routes.
_IMPLIED = {"HEAD", "OPTIONS"}

_logger = logging.getLogger("flask_byok")

#: An app for each file in an instance folder.
_on_file: WeakValueDictionary[str, Flask] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class FoundDatabase:
    """Where the database is (an engine or an address), and the setting or extension that says so."""

    place: Any
    source: str
    #: True for the file in the instance folder, which nothing else uses.
    own_file: bool = False


def find_database(app: Flask, settings: Settings) -> FoundDatabase:
    """Return the database of an app that is being set up."""
    file = f"sqlite:///{Path(app.instance_path) / 'byok.sqlite3'}"
    if url := settings.database_url:
        return FoundDatabase(url, "BYOK_DATABASE_URL", own_file=url == file)
    if (engine := host_engine(app)) is not None:
        return FoundDatabase(engine, "the app's Flask-SQLAlchemy")
    if ACCOUNT_TIERS & {*settings.precedence} and _on_file.setdefault(file, app).name != app.name:
        _logger.warning(SHARED_FILE, app.name, app.name)
    return FoundDatabase(file, _INSTANCE, own_file=True)


def host_engine(app: Flask) -> Any:
    """Return the engine of the host's Flask-SQLAlchemy or Flask-SQLAlchemy-Lite, or None if there is none (yet)."""
    extension = app.extensions.get("sqlalchemy")
    if extension is None:
        return None
    with app.app_context():
        try:
            return extension.engine
        except (AttributeError, KeyError):
            return None  # asynchronous engines only


def is_late(app: Flask, found: FoundDatabase) -> bool:
    """Return True if keys are in the file although the host has a database, which was set up after us."""
    return found.source == _INSTANCE and host_engine(app) is not None


def refuse_taken_names(app: Flask, extension: str) -> None:
    """Refuse an app in which something else has the name ``byok``.

    :raises ConfigurationError: naming it.
    """
    for what, names in (
        ("an extension in app.extensions", app.extensions),
        ("a blueprint", app.blueprints),
        ("a global of Jinja's", app.jinja_env.globals),
    ):
        if extension in names:
            raise ConfigurationError(
                f"The app has {what} named {extension!r} already, a name that flask-byok needs: rename it, or call "
                "init_app once."
            )


def collisions(app: Flask) -> Iterator[str]:
    """Yield a sentence for each address of ours that is the host's too, and if Jinja has another ``byok``."""
    rules = [(each, _shape(each), each.methods or set()) for each in app.url_map.iter_rules()]
    ours = [rule for rule in rules if rule[0].endpoint.startswith(_OURS)]
    for theirs, shape, methods in rules:
        shared = {m for _, s, mine in ours if s == shape for m in mine & methods} - _IMPLIED
        if shared and not theirs.endpoint.startswith(_OURS):
            yield (
                f"The app has a route of its own at {theirs.rule} ({', '.join(sorted(shared))}), endpoint "
                f"{theirs.endpoint!r}, which is an address of flask-byok: only one of them is reached. Move it, or set "
                "BYOK_URL_PREFIX."
            )
    if _hides(app.jinja_env.globals):
        yield _HIDDEN


def hidden_in_templates(app: Flask) -> Iterator[str]:
    """Yield a sentence if a context processor gives templates another ``byok``; each is called, in a request."""
    for processor in chain.from_iterable(app.template_context_processors.values()):
        with suppress(Exception), app.test_request_context():
            if _hides(app.ensure_sync(processor)()):
                yield _HIDDEN


def warn_of_hidden(app: Flask, context: Mapping[str, Any], **_: object) -> None:
    """Log once that a template is rendered with another ``byok``; for Flask's ``before_render_template``."""
    if _hides(context):
        before_render_template.disconnect(warn_of_hidden, app)
        _logger.error("%s", _HIDDEN)


def _hides(names: Mapping[str, Any]) -> bool:
    from .ui import UI

    return "byok" in names and not isinstance(names["byok"], UI)


def _shape(rule: Rule) -> tuple[str | None, str | None, str]:
    """Return a route's host and its path without the names of its variables."""
    return rule.subdomain, rule.host, re.sub("<[^>]*>", "<>", rule.rule)


def warn_of_late_setup(app: Flask, found: FoundDatabase | None) -> None:
    """Log what the host has set up after us and that does not go with ours; for the first request.

    :param found: the database, or None if none is used.
    """
    if found is not None and is_late(app, found):
        _logger.warning(LATE_ENGINE)
    for sentence in collisions(app):
        _logger.error("%s", sentence)


def unsafe_settings(
    config: Mapping[str, Any], *, debug: bool, cross_site: bool = False
) -> Iterator[str]:
    """Yield a sentence with advice for each unsafe setting of the host.

    :param cross_site: front ends on other sites may call, and need the session cookie.
    """
    if debug:
        yield "Debug mode is on: error pages show local variables. Turn it off."
    for name, default, safe, risk in _OF_FLASK:
        value = config.get(name, default)
        if cross_site and "Lax" in safe:
            safe = (*safe, "None")
        # Flask takes "lax", too.
        if str(value or "").title() not in safe and not (value and True in safe):
            yield f"{name} is {value!r}: {risk}. Set it to {' or '.join(map(repr, safe))}."


def unsafe_sessions(app: Flask) -> Iterator[str]:
    """Yield a sentence with advice if the host's session store forgets sessions when it has many of them.

    cachelib's stores keep 500 entries by default, and drop others, of people who are signed in, for the next visitor.
    """
    cache = getattr(app.session_interface, "cache", None)
    if most := getattr(cache, "_threshold", 0):
        yield (
            f"The session store {type(cache).__name__} keeps {most} sessions: with more visitors people are signed "
            "out, and their sessions' keys are lost. Use FileSystemCache(..., threshold=0), Redis or a database."
        )


def unsafe_choices(settings: Settings) -> Iterator[str]:
    """Yield a sentence with advice for each unsafe setting of our own."""
    if settings.encryption_key is None:
        yield (
            "BYOK_ENCRYPTION_KEY is not set: stored keys are lost at the next start. Make one with "
            "'flask byok generate-key'."
        )
    if any(map(is_guessable, settings.encryption_key_fallbacks)):
        yield GUESSABLE_FALLBACK
    if settings.session_ttl > WIDE_SESSION:
        longest = settings.session_ttl * MAX_SESSION_LIFETIMES
        yield (
            f"BYOK_SESSION_TTL is wide: a session's keys can be used for {settings.session_ttl.days} days "
            f"after their last use, and for {longest.days} days in all. Set it to a day or less."
        )
    if settings.failover and not settings.fallback_on:
        yield "BYOK_FAILOVER does nothing without BYOK_FALLBACK_ON: set that to the reasons, such as 'rejected'."
    for provider, url in settings.base_urls.items():
        if urlsplit(base := base_of(url)).path != urlsplit(url).path.rstrip("/"):
            end = urlsplit(base).path or "its host"
            yield f"BYOK_BASE_URLS: the URL for {provider!r} has the path of a call. It must end with {end}."
    if settings.allow_reveal:
        yield (
            "BYOK_ALLOW_REVEAL is on: an attacker who signs in as a user can read that user's keys. Set it to False."
        )
    if settings.allow_private_endpoints:
        yield (
            "BYOK_ALLOW_PRIVATE_ENDPOINTS is on: people can make your server call your own network. Set it to False."
        )
