"""Bind the session store to the host's server-side session.

The host's session data holds one thing of ours: the ``ref``, a random name for what the store keeps. Its being there at
the start of a request and gone at the end is how a cleared session is noticed; a changed session id is how a renewed
one is. Requests that do neither, and do not use keys, cost no round trip.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import (
    Flask,
    Response,
    after_this_request,
    current_app,
    g,
    has_request_context,
    request,
)
from flask.globals import request_ctx
from flask.sessions import NullSession, SecureCookieSession, SecureCookieSessionInterface

from ..errors import ConfigurationError, StoreError
from ..keys.sessions import Sessions
from ..model.owner import SessionRef, Tier
from .problems import problem_response
from .session_outage import UnavailableSession, guard_sessions

#: Our entries in the host's session data: the ref, and who uses it while signed in.
MARKER, OWNER = "_byok", "_byok_owner"

# What the marker becomes where a session was emptied and the store could not be told.
_TO_END = "to end"

_ENVIRON = "flask_byok.session"

_logger = logging.getLogger("flask_byok.web")

# Flask-Session keeps this entry when a session is cleared.
_KEPT_ON_CLEAR = "_permanent"

SERVER_SIDE_HELP = (
    "flask-byok needs a server-side session: Flask's own session is a cookie that anyone can read. Configure "
    "Flask-Session (for example SESSION_TYPE='redis' or 'cachelib') and call Session(app)."
)


@dataclass(slots=True)
class _Seen:
    """The session as the store last knew it in this request."""

    session: Any
    sid: str
    marker: str | None
    keys: frozenset[str]
    emptied: bool = False
    unfinished: bool = False
    failed: bool = False
    #: The established session as the store names it, kept because hashing costs more than all else here.
    ref: SessionRef | None = None

    @classmethod
    def now(cls, session: Any) -> _Seen:
        """Look at the session without marking it as accessed."""
        marker = dict.get(session, MARKER)
        seen = cls(session, session.sid, marker, _keys(session))
        if marker == _TO_END:
            seen.marker, seen.unfinished = None, True
        if seen.marker is None and seen.keys:
            seen.watch_clear()
        return seen

    def watch_clear(self) -> None:
        """Notice ``session.clear()`` where a race may have lost the marker that would tell."""
        clear = self.session.clear

        def noting_clear() -> None:
            clear()
            self.emptied = True

        self.session.clear = noting_clear

    def was_cleared(self) -> bool:
        if self.marker is not None:
            return dict.get(self.session, MARKER) != self.marker
        return self.emptied

    def remember(self, ref: str) -> None:
        self.session[MARKER] = self.marker = ref
        self.ref = None


class SessionBinding:
    """Follows the host's session of one app through each request."""

    def __init__(self, store: Sessions, index_key: bytes, identity: Callable[[], str]) -> None:
        self._store = store
        self._index_key = index_key
        self._identity = identity

    def init_app(self, app: Flask) -> None:
        """Put our hooks outermost: first before a request, last after it."""
        guard_sessions(app)
        app.before_request_funcs.setdefault(None, []).insert(0, self._before_request)
        app.after_request_funcs.setdefault(None, []).insert(0, self._after_request)

    def current(self, identity: str) -> SessionRef | None:
        """Return the established session of this request, or None; asks the store only if a race lost the ref."""
        seen = self._caught_up()
        if seen is None:
            return None
        if seen.marker is None and seen.keys and (ref := self._known_ref(seen)):
            seen.remember(ref)
        self._confirm(seen, identity)
        return None if seen.marker is None else self._ref(seen, seen.marker)

    def establish(self, identity: str, *, anew: bool = False) -> SessionRef | None:
        """Return the session of this request, establishing it where there is none; ``anew`` replaces an ended one."""
        seen = self._caught_up()
        if seen is None:
            return None
        self._confirm(seen, identity)
        if seen.marker is None or anew:
            seen.remember(self._store.establish(self._hash(seen.sid), seen.marker))
            self._confirm(seen, identity)
        return self._ref(seen, seen.marker or "")

    def is_new_to(self, identity: str) -> bool:
        """Return True if this user signed in since the session was last used."""
        seen = self._caught_up()
        if seen is None or seen.marker is None or not identity:
            return False
        return OWNER not in dict.keys(seen.session)

    def claim(self, identity: str) -> None:
        """Note who uses the session while signed in."""
        if self.is_new_to(identity) and (seen := self._caught_up()):
            seen.session[OWNER] = identity

    def end(self) -> None:
        """Delete what is kept for this session: somebody signed out."""
        seen = self._caught_up()
        if seen is not None and (seen.marker or seen.keys):
            self._end(seen)

    def _before_request(self) -> None:
        _shed_stale_context()
        session = _session_of_request()
        if isinstance(session, NullSession) and request.blueprint != "byok":
            return  # the host's interface keeps none for this path
        if isinstance(session, UnavailableSession):
            after_this_request(session.let_go)
            return
        _require_server_side(session)
        request.environ[_ENVIRON] = _Seen.now(session)

    def _after_request(self, response: Response) -> Response:
        try:
            if seen := request.environ.get(_ENVIRON):
                self._follow(seen)
                self._end_if_owner_left(seen)
        except StoreError as error:
            # The person must not believe that a sign-out or renewal was carried out when it was not.
            return problem_response(error)
        return response

    def _caught_up(self) -> _Seen | None:
        """Carry over to the store what has happened to the session in this request so far."""
        if not has_request_context():
            return None
        seen: _Seen | None = request.environ.get(_ENVIRON)
        if seen is None:
            if isinstance(_session_of_request(), UnavailableSession):
                raise StoreError(tier=Tier.SESSION)
            return None
        if seen.unfinished and not seen.failed:
            self._end(seen)
        self._follow(seen)
        return seen

    def _follow(self, seen: _Seen) -> None:
        if seen.failed:  # one wait for the store is enough for one request
            raise StoreError(tier=Tier.SESSION)
        renewed = seen.session.sid != seen.sid
        if seen.was_cleared() or (renewed and seen.unfinished):
            self._end(seen)
        elif renewed:
            self._renew(seen)

    def _confirm(self, seen: _Seen, identity: str) -> None:
        """End the session if it belongs to another signed-in user."""
        owner = dict.get(seen.session, OWNER)
        if owner is not None and owner != identity:
            self._end(seen)

    def _end_if_owner_left(self, seen: _Seen) -> None:
        """Notice a host that signs people out by taking their id out of the session, and nothing else."""
        # Only where something was taken out: elsewhere the host may not know yet, or not ask, who somebody is.
        if seen.marker is None or not seen.keys - _keys(seen.session):
            return
        try:
            identity = self._identity()
        except Exception:
            _logger.exception(
                "The owner loader failed after a request; its session is left as it is."
            )
            return
        self._confirm(seen, identity)

    def _end(self, seen: _Seen) -> None:
        try:
            if ref := self._known_ref(seen):
                self._store.end(self._ref(seen, ref))
        except StoreError:
            # The session id outlives this; once the store is back, it must not lead to what is to end.
            seen.session[MARKER] = _TO_END
            seen.failed = True
            raise
        for ours in {MARKER, OWNER} & dict.keys(seen.session):
            del seen.session[ours]
        seen.marker, seen.emptied, seen.unfinished = None, False, False
        seen.sid, seen.keys, seen.ref = seen.session.sid, _keys(seen.session), None

    def _renew(self, seen: _Seen) -> None:
        if ref := self._known_ref(seen):
            self._store.renew(self._ref(seen, ref), self._hash(seen.session.sid))
            seen.remember(ref)
        seen.sid, seen.ref = seen.session.sid, None

    def _known_ref(self, seen: _Seen) -> str | None:
        # A session that was empty when it came is new: nothing can be known of it.
        return seen.marker or (self._store.find(self._hash(seen.sid)) if seen.keys else None)

    def _ref(self, seen: _Seen, ref: str) -> SessionRef:
        if seen.ref is None or seen.ref.ref != ref:
            seen.ref = SessionRef(self._hash(seen.sid), ref)
        return seen.ref

    def _hash(self, sid: str) -> str:
        return hmac.digest(self._index_key, sid.encode(), "sha256").hex()


def index_key(secret_key: str | bytes) -> bytes:
    """Derive the key that session ids are hashed with; it outlives a rotation of the encryption key."""
    raw = secret_key.encode() if isinstance(secret_key, str) else secret_key
    return hmac.digest(raw, b"flask-byok session index", "sha256")


def app_name(index_key: bytes) -> str:
    """Name all processes of one app in a store that it shares with other apps: 16 hex digits."""
    return hmac.digest(index_key, b"app name", "sha256").hex()[:16]


def check_session_interface(app: Flask) -> None:
    """Refuse Flask's cookie session at start-up, unless the config announces a server-side one.

    :raises ConfigurationError: sessions would live in a cookie.
    """
    announced = str(app.config.get("SESSION_TYPE") or "null").lower() != "null"
    if isinstance(app.session_interface, SecureCookieSessionInterface) and not announced:
        raise ConfigurationError(SERVER_SIDE_HELP)


def _keys(session: Any) -> frozenset[str]:
    return frozenset(dict.keys(session)) - {_KEPT_ON_CLEAR, OWNER}


def _require_server_side(session: Any) -> None:
    if isinstance(session, SecureCookieSession) or not isinstance(
        getattr(session, "sid", None), str
    ):
        raise ConfigurationError(SERVER_SIDE_HELP)


def _session_of_request() -> Any:
    # flask.session would mark the session as accessed, and every page would then say "Vary: Cookie".
    return request_ctx._session


def _shed_stale_context() -> None:
    """Drop what an abandoned stream of somebody else may have left on ``g`` (pallets/flask#6123)."""
    if left := vars(g._get_current_object()):
        token = current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
        for name in ("_login_user", "csrf_valid", token):
            left.pop(name, None)
