"""The state of one app, and the caller of the present request as the host's loaders tell."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import count
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from uuid import UUID

from flask import Flask, Request, Response, current_app, has_request_context, request

from ..errors import ConfigurationError, OwnerRequiredError, SessionRequiredError, StoreError
from ..keys.service import Service
from ..keys.sessions import KeysLostError
from ..model.credential import Credential
from ..model.owner import LONGEST_ID, Caller, identity_of
from ..providers import BaseProvider
from ..settings import Settings
from .host_setup import FoundDatabase
from .session_binding import SAY_WHOSE, SessionBinding, in_request, kept

#: The state's name in ``app.extensions``.
EXTENSION = "byok"

#: The blueprint for calls of providers' own APIs, which is there with ``BYOK_GATEWAY``.
GATEWAY = "byok_gateway"

#: The header that names the tier of the key that served.
SOURCE_HEADER = "X-BYOK-Source"

#: Where the environ of a signed-in user's request keeps its id in the audit log.
REQUEST_ID = "flask_byok.request_id"

_logger = logging.getLogger("flask_byok.web")
_P = ParamSpec("_P")
_T = TypeVar("_T")

_USED, _BEGAN = "flask_byok.used", "flask_byok.began"
# No database stores NUL or a surrogate.
_STORABLE = re.compile(f"[^\0\ud800-\udfff]{{0,{LONGEST_ID}}}")
_ALLOWED = f"a whole number, a UUID, or text of 1 to {LONGEST_ID} characters: no NUL, no surrogate, not 'None'"
_NO_APP = (
    "There is no Flask app here, so it is not known whose keys are meant. In a stream: make the provider object in the "
    "view, before the stream starts. In a job, a thread or a command: write 'with app.app_context():', and in it "
    "'with byok.acting_for(user_id):'."
)
_NO_ID = (
    "Flask-Login's get_id() returns something else than the user's id for your users. If it can change, the keys would "
    "be lost with it; if it cannot, it is an id of another kind. Say which of them is to own the keys: "
    "'byok.owner_loader(lambda: current_user.is_authenticated and current_user.id)', or the same with the attribute "
    "that never changes, or with 'current_user.get_id()'."
)
# What classes of users call an id: first the keys of databases, then others, which are ids if get_id() returns them.
_KEYS = ("id", "pk", "_pk", "_id")
_IDS = ("uid", "uuid", "oid", "sub", "dn", "user_id", "username", "login", "email", "name")


# Flask-Login, if the host uses it


def _flask_login() -> Any:
    """Return the package if the app uses it, else None."""
    return import_module("flask_login") if hasattr(current_app, "login_manager") else None


def signed_in_user() -> str | None:
    """Return the id of Flask-Login's user; None for a visitor, or without Flask-Login."""
    login = _flask_login()
    user = login.current_user._get_current_object() if login else None
    return _lasting_id(user) if user is not None and user.is_authenticated else None


def _lasting_id(user: Any) -> str:
    """Return the id of Flask-Login's user that stays the same for ever.

    :raises ConfigurationError: ``get_id`` returns something else than the user's key; or, without a key, something that
        is no id by its name, although there are other attributes. It may be a token that changes.
    """
    given, mapper = str(user.get_id()), getattr(type(user), "__mapper__", None)
    ids = mapper.primary_key_from_instance(user) if mapper else _values(user, _KEYS)[:1]
    if len(ids) != 1:
        own = {*getattr(user, "__dict__", ()), *getattr(user, "__slots__", ())}
        ids = [one for one in _values(user, _IDS) if str(one) == given] or _values(user, own)
    if all(str(one) == given for one in ids):
        return given
    # Flask-Security's, which is new with each password.
    if len(ids) == 1 and given == str(getattr(user, "fs_uniquifier", None)):
        return str(ids[0])
    raise ConfigurationError(_NO_ID)


def _values(user: Any, names: Iterable[str]) -> list[Any]:
    """Return the attributes of these names that have a value; flags have none."""
    values = (getattr(user, name, None) for name in names)
    return [value for value in values if value is not None and not isinstance(value, bool)]


def is_login_fresh() -> bool:
    """Return True if Flask-Login's user has just signed in; False without Flask-Login."""
    login = _flask_login()
    return bool(login and login.login_fresh())


@dataclass(slots=True)
class Loaders:
    """The host's functions that identify the caller; each is called within the request."""

    owner: Callable[[], str | None] = signed_in_user
    team: Callable[[], Iterable[str]] = tuple
    admin: Callable[[], bool] = bool
    fresh_login: Callable[[], bool] = is_login_fresh

    def identity(self) -> str:
        """Name the present user, or a visitor, as sessions do."""
        return identity_of(_user_id(self.owner()))


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

    :raises ConfigurationError: flask-byok was not set up for it, or there is none.
    """
    app = app or current_app
    if not app:
        raise ConfigurationError(_NO_APP)
    state: ByokState | None = app.extensions.get(EXTENSION)
    if state is None:
        raise ConfigurationError(
            "flask-byok is not set up for this app; did you forget to call byok.init_app(app)?"
        )
    return state


# Who is asking


# Blocks and requests, in the order in which they began.
_order = count(1)


@dataclass(slots=True, eq=False)
class _Named:
    state: ByokState
    caller: Caller
    outer: _Named | None
    number: int
    #: Off when the block has ended, which may be elsewhere: in another thread, or between two blocks of generators.
    is_open: bool = True


_named: ContextVar[_Named | None] = ContextVar("flask_byok_named", default=None)


@contextmanager
def naming(caller: Caller) -> Iterator[None]:
    """Let this caller ask within a block, in the current app."""
    named = _Named(get_state(), caller, _innermost(), next(_order))
    _named.set(named)
    try:
        yield
    finally:
        named.is_open = False
        _named.set(_innermost())
        # A job's process may end without a word, as RQ's do, and a job may wait for the store.
        if not has_request_context():
            named.state.service.traffic.flush_quietly()


def person(user_id: Any, teams: Any) -> Caller:
    """Return the caller for a user whom the host's code names.

    :raises ConfigurationError: this is no id, or no list of teams.
    """
    user, named = _user_id(user_id, "acting_for got"), _team_ids(teams, "acting_for got")
    if user is None:
        raise ConfigurationError(f"acting_for got no user id. Give {_ALLOWED}.")
    return Caller(user, teams=named, request_id=secrets.token_hex(8), named=True)


def follow_requests(
    app: Flask,
    binding: SessionBinding,
    go_first: Callable[[Request], None],
    unrouted: Callable[[Request], Response | None],
) -> None:
    """Put our hooks outermost, one before a request and one after it: Flask takes a microsecond for each.

    :param go_first: opens the body of our calls, which decides how much of it is read, and so comes before all others.
    :param unrouted: may answer a request that has no route.
    """

    def begin() -> Response | None:
        asked = cast(Any, request)._get_current_object()
        if asked.blueprint in ("byok", GATEWAY):
            go_first(asked)
        # It does not act for the caller whom code around it has named: that is a test's client, or a stream before it
        # on this thread whose block is still open.
        asked.environ[_BEGAN] = next(_order)
        binding.begin(asked)
        return unrouted(asked) if asked.routing_exception else None

    app.before_request_funcs.setdefault(None, []).insert(0, begin)
    app.after_request_funcs.setdefault(None, []).insert(0, binding.finish)
    # Before those hooks that the host has by now, which may read it.
    app.after_request(_name_sources)
    with suppress(ImportError):
        from flask_login import user_logged_out

        # The signal, which all apps share, holds this method and the app weakly.
        user_logged_out.connect(binding.end, app)


def current_caller(state: ByokState) -> Caller:
    """Return the caller whom the code names, else the one of the present request.

    :raises OwnerRequiredError: there is neither.
    """
    if caller := _named_caller(state):
        return caller
    if not in_request():
        raise OwnerRequiredError(SAY_WHOSE)
    return _caller(state)


def _named_caller(state: ByokState) -> Caller | None:
    named = _innermost()
    # The same id is another person in another app.
    if named is None or named.state is not state:
        return None
    if has_request_context() and named.number < request.environ.get(_BEGAN, 0):
        return None
    return named.caller


def _innermost() -> _Named | None:
    """Return the innermost block that has not ended."""
    named = _named.get()
    while named is not None and not named.is_open:
        named = named.outer
    return named


def actor(state: ByokState) -> Caller:
    """Return the caller, or the app itself where there is none."""
    with suppress(OwnerRequiredError):
        return current_caller(state)
    return Caller()


def for_caller(
    verb: Callable[Concatenate[Service, Caller, _P], _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Call a verb, such as ``Service.clear``, of the current app's service for the present caller."""
    state = get_state()
    return verb(state.service, current_caller(state), *args, **kwargs)


def in_session(state: ByokState, act: Callable[[Caller], _T], *, telling: bool = True) -> _T:
    """Act for the present caller in a session that keys can be written to; if it has ended, in another.

    :param telling: off: leave it to a later call to say that the session's keys were lost.
    """
    if not in_request() or _named_caller(state):
        return act(current_caller(state))

    enter = partial(_caller, state, establish=True, telling=telling)
    try:
        return act(enter())
    except KeysLostError:
        raise
    except SessionRequiredError:
        return act(enter(replace=True))


_Used = TypeVar("_Used", Credential, BaseProvider)


def note_use(used: _Used) -> _Used:
    """Keep a credential, or a provider object with its own, until the request ends, and return it.

    The answer's header names its tier. And a view that fails may hold the key as a plain string, which the log redactor
    recognizes only while the credential is alive.
    """
    if has_request_context():
        kept().setdefault(_USED, []).append(used)
    return used


def _name_sources(response: Response) -> Response:
    """Name in ``X-BYOK-Source`` the tiers of the keys that served this request.

    A provider object counts if it made a call; in a stream also if it was not used yet, since that may come.
    """
    sources: dict[str, None] = {}
    for each in kept().get(_USED, ()):
        served = each.served if isinstance(each, BaseProvider) else None
        sources |= served or {}
        if served is None or response.is_streamed:
            sources[str(each.source)] = None
    if sources and SOURCE_HEADER not in response.headers:
        response.headers[SOURCE_HEADER] = ", ".join(sources)
    return response


def _user_id(user: Any, source: str = "The owner_loader returned") -> str | None:
    """Return the id of the signed-in user whom the host names, or None.

    :param source: begins the error.
    """
    # Hosts write "current_user.is_authenticated and current_user.id".
    if user is None or user is False or user == "":
        return None
    if not _is_id(user):
        raise ConfigurationError(
            f"{source} a {type(user).__name__} that is no id. Give {_ALLOWED}."
        )
    return str(user)


def _is_id(given: Any) -> bool:
    """Return True for what names one person or team for ever: the text of another object may be anyone's."""
    if isinstance(given, bool) or not isinstance(given, str | int | UUID):
        return False
    text = str(given)
    return bool(text.strip()) and text != "None" and _STORABLE.fullmatch(text) is not None


def _team_ids(teams: Any, source: str = "The team_loader returned") -> tuple[str, ...]:
    """Return the ids of the signed-in user's teams, without those that cannot be stored."""
    if isinstance(teams, str | bytes):
        raise ConfigurationError(
            f"{source} teams as one string, not a list: each letter would be a team. Give a list of ids."
        )
    named = list(teams)
    kept = tuple(str(team) for team in named if _is_id(team))
    if len(kept) < len(named):
        _logger.warning("%s teams that are no ids: they are left out. Give %s.", source, _ALLOWED)
    return kept


def _caller(state: ByokState, **options: bool) -> Caller:
    """Return the caller of the present request.

    :param options: see ``SessionBinding.current``.
    """
    user = _user_id(state.loaders.owner())
    try:
        session = state.binding.current(identity_of(user), **options)
    except StoreError:
        if state.settings.on_store_failure == "fail":
            raise
        session = None
    address = request.remote_addr or ""
    if user is None:
        return Caller(session=session, address=address)
    teams, admin = _team_ids(state.loaders.team()), bool(state.loaders.admin())
    request_id = kept().setdefault(REQUEST_ID, secrets.token_hex(8))
    caller = Caller(user, session, teams, admin, address, request_id)
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
