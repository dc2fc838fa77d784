"""The state of one app, and the caller of the present request as the host's loaders tell."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from flask import Flask, Response, current_app, has_request_context, request

from .. import signals
from ..errors import ConfigurationError, SessionRequiredError, StoreError
from ..keys.service import Service
from ..model.credential import Credential
from ..model.owner import LONGEST_ID, Caller, identity_of
from ..settings import Settings
from .host_setup import FoundDatabase
from .session_binding import SessionBinding

#: The state's name in ``app.extensions``.
EXTENSION = "byok"

#: The header that names the tier of the key that served.
SOURCE_HEADER = "X-BYOK-Source"

#: Where the environ of a signed-in user's request keeps its id in the audit log.
REQUEST_ID = "flask_byok.request_id"

_logger = logging.getLogger("flask_byok.web")
_P = ParamSpec("_P")
_T = TypeVar("_T")

_USED = "flask_byok.used"
# No database stores NUL or a surrogate.
_STORABLE = re.compile(f"[^\0\ud800-\udfff]{{0,{LONGEST_ID}}}")
_ALLOWED = f"a number, or text of up to {LONGEST_ID} characters without NUL and surrogates"


# Flask-Login, if the host uses it


def signed_in_user() -> str | None:
    """Return the id of Flask-Login's user; None for a visitor, or without Flask-Login."""
    if not hasattr(current_app, "login_manager"):
        return None
    from flask_login import current_user

    return str(current_user.get_id()) if current_user.is_authenticated else None


def is_login_fresh() -> bool:
    """Return True if Flask-Login's user has just signed in; False without Flask-Login."""
    if not hasattr(current_app, "login_manager"):
        return False
    from flask_login import login_fresh

    return bool(login_fresh())


@dataclass(slots=True)
class Loaders:
    """The host's functions that identify the caller; each is called within the request."""

    owner: Callable[[], str | None] = signed_in_user
    team: Callable[[], Iterable[str]] = tuple
    admin: Callable[[], bool] = bool
    fresh_login: Callable[[], bool] = is_login_fresh

    def identity(self) -> str:
        """Name the present user, or a visitor, as sessions do."""
        return identity_of(user_of(self))


@dataclass(frozen=True, slots=True, repr=False)
class ByokState:
    """The parts of flask-byok that belong to one app."""

    settings: Settings
    service: Service
    binding: SessionBinding
    loaders: Loaders
    database: FoundDatabase

    @property
    def uses_database(self) -> bool:
        """True if it stores keys of accounts or of sessions."""
        return bool(self.service.accounts.tiers) or self.service.sessions.name == "the database"


def get_state(app: Any = None) -> ByokState:
    """Return the state of the app, by default of the current one.

    :raises ConfigurationError: flask-byok was not set up for it.
    """
    state: ByokState | None = (app or current_app).extensions.get(EXTENSION)
    if state is None:
        raise ConfigurationError(
            "flask-byok is not set up for this app; did you forget to call byok.init_app(app)?"
        )
    return state


def current_caller(state: ByokState) -> Caller:
    """Return the caller of the present request; outside a request, one who finds only the operator's keys."""
    if not has_request_context():
        return Caller()
    return _caller(state)


def for_caller(
    verb: Callable[Concatenate[Service, Caller, _P], _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Call a verb, such as ``Service.clear``, of the current app's service for the present caller."""
    state = get_state()
    return verb(state.service, current_caller(state), *args, **kwargs)


def in_session(state: ByokState, act: Callable[[Caller], _T]) -> _T:
    """Act for the present caller in a session that keys can be written to; if it has ended, in another."""
    try:
        return act(_caller(state, establish=True))
    except SessionRequiredError:
        return act(_caller(state, establish=True, replace=True))


def note_use(credential: Credential) -> Credential:
    """Keep a credential until the request ends, and return it.

    The answer's header names its tier. And a view that fails may hold the key as a plain string, which the log redactor
    recognizes only while the credential is alive.
    """
    if has_request_context():
        request.environ.setdefault(_USED, []).append(credential)
    return credential


def name_sources(response: Response) -> Response:
    """Name in ``X-BYOK-Source`` the tiers of the keys that served this request."""
    used: list[Credential] = request.environ.get(_USED, [])
    sources = dict.fromkeys(str(credential.source) for credential in used)
    if sources and SOURCE_HEADER not in response.headers:
        response.headers[SOURCE_HEADER] = ", ".join(sources)
    return response


def send_signal(app: Flask, event: str, facts: Mapping[str, Any]) -> None:
    """Send an event to the host as the signal of its name, with safe facts."""
    signal = getattr(signals, event)
    if signal.receivers:
        signal.send(app, **facts)


def user_of(loaders: Loaders) -> str | None:
    """Return the signed-in user's id from the host's loader, or None."""
    user: Any = loaders.owner()
    # Hosts write "current_user.is_authenticated and current_user.id".
    if user is None or user is False or user == "":
        return None
    if isinstance(user, bool | bytes) or not _STORABLE.fullmatch(str(user)):
        raise ConfigurationError(
            f"The owner_loader returned a {type(user).__name__} that is no id. Return {_ALLOWED}."
        )
    return str(user)


def _teams_of(loaders: Loaders) -> tuple[str, ...]:
    """Return the ids of the signed-in user's teams, without those that cannot be stored."""
    teams: Any = loaders.team()
    if isinstance(teams, str | bytes):
        raise ConfigurationError(
            "The team_loader returned one string, not a list: each letter would be a team. Return a list of ids."
        )
    named = [str(team) for team in teams]
    kept = tuple(team for team in named if _STORABLE.fullmatch(team))
    if len(kept) < len(named):
        _logger.warning("The team_loader returned ids that are left out. Return %s.", _ALLOWED)
    return kept


def _caller(state: ByokState, *, establish: bool = False, replace: bool = False) -> Caller:
    user = user_of(state.loaders)
    try:
        session = state.binding.current(identity_of(user), establish=establish, replace=replace)
    except StoreError:
        if state.settings.on_store_failure == "fail":
            raise
        session = None
    address = request.remote_addr or ""
    if user is None:
        return Caller(session=session, address=address)
    caller = Caller(
        user=user,
        session=session,
        teams=_teams_of(state.loaders),
        admin=bool(state.loaders.admin()),
        address=address,
        request_id=request.environ.setdefault(REQUEST_ID, secrets.token_hex(8)),
    )
    # Noted first: if the next step fails, the session is this user's all the same.
    if session is not None and state.binding.claim(caller.identity):
        _sign_in(state, caller)
    return caller


def _sign_in(state: ByokState, caller: Caller) -> None:
    """Apply ``BYOK_PROMOTE``; if the store is down and the call may go on without it, a later request does."""
    try:
        state.service.signed_in(caller)
    except SessionRequiredError:
        pass  # the session has ended, and its keys with it
    except StoreError:
        if state.settings.on_store_failure == "fail":
            raise
        return
    state.binding.settle()
