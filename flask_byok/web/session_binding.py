"""Bind the session store to the host's server-side session.

The host's session data holds one entry: the ``ref``, a random name for the session's document. If it is there at
the start of a request and gone at the end, the session was cleared; if the session id has changed, it was renewed.
Other requests that use no keys cost no round trip. How the host stays up while the store of its sessions is down:
see ``session_guard``.
"""

from __future__ import annotations

import hmac
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Flask, Request, Response, current_app, g, has_request_context, request
from flask.globals import app_ctx, request_ctx
from flask.sessions import NullSession, SecureCookieSession, SecureCookieSessionInterface

from ..errors import ConfigurationError, OwnerRequiredError, StoreError
from ..keys.sessions import Sessions
from ..model.owner import Saved, SessionRef, Tier
from .problems import problem_response
from .session_guard import LostSession, UnavailableSession, guard_interface

#: Our entries in the host's session data: the ref, the identity of its signed-in user, whether ``BYOK_PROMOTE`` has
#: yet to be applied to what that user saved as a visitor, and under which ref keys were saved, for which providers.
MARKER, OWNER, DUE, SAVED = "_byok", "_byok_owner", "_byok_due", "_byok_saved"
# The marker of a session that was emptied while the store was down.
_TO_END = "to end"
_ENVIRON, _WITHIN = "flask_byok.session", "flask_byok.within"
# Flask-Session keeps this entry when a session is cleared.
_KEPT_ON_CLEAR = "_permanent"
_logger = logging.getLogger("flask_byok.web")

#: The advice wherever it is not known whose keys are meant.
SAY_WHOSE = (
    "It is not known whose keys are meant here. Write 'with byok.acting_for(user_id):' around the call for a person's "
    "keys, or 'with byok.as_operator():' for your own."
)
_RECONNECT = "The session has changed since this connection began. Load the page and connect again."

SERVER_SIDE_HELP = (
    "flask-byok needs a server-side session: Flask's own session is a cookie that anyone can read. Configure "
    "Flask-Session (for example SESSION_TYPE='redis' or 'cachelib') and call Session(app); or leave 'session' out of "
    "BYOK_PRECEDENCE, so that keys are kept in accounts only."
)


@dataclass(slots=True)
class _Seen:
    """The session as the store last saw it in this request.

    ``late`` is True if our hooks did not run, as in a socket's event: the session is then read, and never written.
    """

    session: Any
    sid: str
    marker: str | None
    keys: frozenset[str]
    late: bool = False
    filled: frozenset[str] = frozenset()
    emptied: bool = False
    unfinished: bool = False
    failed: bool = False
    named: SessionRef | None = None

    @classmethod
    def now(cls, session: Any) -> _Seen:
        """Read the session without marking it as accessed."""
        seen = cls(session, session.sid, None, _keys(session))
        if not seen.keys:  # new, or without anything of ours
            return seen
        seen.marker, seen.filled = dict.get(session, MARKER), _filled(session)
        if seen.marker == _TO_END:
            seen.marker, seen.unfinished = None, True
        if seen.marker is None:
            # Notice session.clear() even if a race has lost the marker.
            clear = session.clear

            def noting_clear() -> None:
                clear()
                seen.emptied = True

            session.clear = noting_clear
        return seen

    def was_cleared(self) -> bool:
        return (
            self.emptied if self.marker is None else dict.get(self.session, MARKER) != self.marker
        )

    def remember(self, ref: str) -> None:
        self.session[MARKER] = self.marker = ref


@dataclass(eq=False, repr=False)
class SessionBinding:
    """Follow the host's session of one app through each request.

    :param index_keys: hash session ids; the present key first, then those of ``SECRET_KEY_FALLBACKS``.
    :param identity: names the present user, or a visitor.
    :param is_required: False if no keys are kept in sessions: then Flask's cookie session will do, and is left alone.
    """

    store: Sessions
    index_keys: Sequence[bytes]
    identity: Callable[[], str]
    is_required: bool = True

    def current(
        self, identity: str, *, establish: bool = False, replace: bool = False, telling: bool = True
    ) -> SessionRef | None:
        """Return the session of this request, or None; ask the store only if a race lost the ref.

        :param establish: make a session if there is none.
        :param replace: make another one, as the store says that this one has ended.
        :param telling: off: leave it to a later call to say that the session's keys were lost.
        """
        seen = self._caught_up()
        if seen is None:
            return None
        if seen.late:
            return self._current_late(seen, identity, telling)
        if not establish and seen.marker is None and (ref := self._known_ref(seen)):
            seen.remember(ref)
        self._confirm(seen, identity)
        if replace or (establish and seen.marker is None):
            seen.remember(self.store.establish(self._hash(seen.sid), seen.marker))
        return None if seen.marker is None else self._ref(seen, seen.marker, telling)

    def claim(self, identity: str) -> bool:
        """Note that this user uses the session; return True if ``BYOK_PROMOTE`` has yet to be applied."""
        seen = kept()[_ENVIRON]
        if seen.late:
            return False
        if OWNER not in dict.keys(seen.session):
            seen.session[OWNER], seen.session[DUE] = identity, True
        return DUE in dict.keys(seen.session)

    def settle(self) -> None:
        """Note that ``BYOK_PROMOTE`` was applied."""
        kept()[_ENVIRON].session.pop(DUE, None)

    def end(self, sender: Flask | None = None, **facts: Any) -> None:
        """Delete this session's keys, at sign-out; Flask-Login's signal calls it too."""
        if not _has_request() or _ENVIRON not in request.environ:
            return  # such as a socket's event, which has a copy of the session
        seen = self._caught_up()
        if seen is not None and (seen.marker or seen.keys):
            self._end(seen)

    def begin(self, asked: Request) -> None:
        """Look at the session before anything of the host's does."""
        _shed_stale_context()
        asked.environ[_ENVIRON] = None
        asked.environ[_WITHIN] = weakref.ref(_behind(app_ctx))
        session = _session_of_request()
        if isinstance(session, UnavailableSession):
            session.until_answered()
        elif not isinstance(session, SecureCookieSession) and isinstance(
            getattr(session, "sid", None), str
        ):
            asked.environ[_ENVIRON] = _Seen.now(session)
        # The host's interface may keep no session for some paths.
        elif self.is_required and (
            asked.blueprint == "byok" or not isinstance(session, NullSession)
        ):
            raise ConfigurationError(SERVER_SIDE_HELP)

    def finish(self, response: Response) -> Response:
        """Follow what the host has done to the session."""
        seen: _Seen | None = kept().get(_ENVIRON)
        if seen is not None and not seen.late and (seen.marker or seen.keys):
            try:
                self._follow(seen)
                if seen.marker is not None:
                    self._follow_owner(seen)
            except StoreError as error:
                # A sign-out or renewal failed: the person must learn that.
                return problem_response(error)
        return response

    def _caught_up(self) -> _Seen | None:
        """Carry over to the store what this request has done to the session so far."""
        place = kept()
        if _ENVIRON not in place:
            place[_ENVIRON] = _read_late()
        seen: _Seen | None = place[_ENVIRON]
        if seen is None:
            if isinstance(_session_of_request(), LostSession):
                raise StoreError(tier=Tier.SESSION)
            return None
        if seen.late:
            return seen
        if seen.unfinished and not seen.failed:
            self._end(seen)
        self._follow(seen)
        return seen

    def _follow(self, seen: _Seen) -> None:
        if seen.failed:  # wait for the store once in a request
            raise StoreError(tier=Tier.SESSION)
        renewed = seen.session.sid != seen.sid
        if seen.was_cleared() or (renewed and seen.unfinished):
            self._end(seen)
        elif renewed:
            self._renew(seen)

    def _confirm(self, seen: _Seen, identity: str) -> None:
        """End the session if it belongs to another signed-in user."""
        if dict.get(seen.session, OWNER, identity) != identity:
            self._end(seen)

    def _current_late(self, seen: _Seen, identity: str, telling: bool) -> SessionRef | None:
        """Return the session of a request that our hooks did not see.

        :raises OwnerRequiredError: it has none, and no user; or the host's user is not the session's.
        """
        if dict.get(seen.session, OWNER, identity) != identity:
            raise OwnerRequiredError(_RECONNECT)
        if not identity and not seen.keys:
            raise OwnerRequiredError(SAY_WHOSE)
        ref = self._known_ref(seen) if seen.sid else None
        return None if ref is None else self._ref(seen, ref, telling)

    def _follow_owner(self, seen: _Seen) -> None:
        """Notice a host that signs people out by only removing their id from the session.

        And note whose a visitor's session has become, also if that user touches none of our routes.
        """
        is_owned = OWNER in dict.keys(seen.session)
        # Only if an entry was removed or emptied: otherwise the host may not know the user yet.
        if is_owned and not seen.filled - _filled(seen.session):
            return
        try:
            identity = self.identity()
        except Exception:
            if is_owned:
                _logger.exception("The owner loader failed after a request; its session stays.")
            return  # it may need what only some views prepare: then a later request tells
        if is_owned:
            self._confirm(seen, identity)
        elif identity:
            self.claim(identity)

    def _end(self, seen: _Seen) -> None:
        try:
            if ref := self._known_ref(seen):
                self.store.end(self._ref(seen, ref))
        except StoreError:
            # The session id lives on: when the store is back, it must not lead to these keys.
            seen.session[MARKER] = _TO_END
            seen.failed = True
            raise
        for ours in {MARKER, OWNER, DUE, SAVED} & dict.keys(seen.session):
            del seen.session[ours]
        seen.marker, seen.emptied, seen.unfinished, seen.named = None, False, False, None
        seen.sid, seen.keys = seen.session.sid, _keys(seen.session)
        seen.filled = _filled(seen.session)

    def _renew(self, seen: _Seen) -> None:
        if ref := self._known_ref(seen):
            self.store.renew(self._ref(seen, ref), self._hash(seen.session.sid))
            seen.remember(ref)
        seen.sid, seen.named = seen.session.sid, None

    def _known_ref(self, seen: _Seen) -> str | None:
        # A session that arrived empty is new: the store cannot know it.
        return seen.marker or (self.store.find(self._hash(seen.sid)) if seen.keys else None)

    def _ref(self, seen: _Seen, ref: str, telling: bool = True) -> SessionRef:
        if seen.named is None or seen.named.ref != ref:
            under, _, providers = str(dict.get(seen.session, SAVED, "")).partition(" ")

            def write(now_under: str | None, those: frozenset[str]) -> None:
                # A late session is a copy, which is not written back.
                seen.session[SAVED] = " ".join((now_under or "", *sorted(those)))

            saved = Saved(under or None, frozenset(providers.split()), write)
            seen.named = SessionRef(self._hash(seen.sid), ref, saved)
        if seen.named.saved is not None:
            seen.named.saved.telling = telling
        return seen.named

    def _hash(self, sid: str) -> str:
        return " ".join(hmac.digest(key, sid.encode(), "sha256").hex() for key in self.index_keys)


def index_key(secret_key: str | bytes) -> bytes:
    """Derive the key that hashes session ids; a rotation of the encryption key does not change it."""
    raw = secret_key.encode() if isinstance(secret_key, str) else secret_key
    return hmac.digest(raw, b"flask-byok session index", "sha256")


def secret_keys(app: Flask) -> list[str | bytes]:
    """Return the host's secret keys, the present one first."""
    return [*filter(None, [app.secret_key, *(app.config.get("SECRET_KEY_FALLBACKS") or ())])]


def app_name(secret_key: str | bytes) -> str:
    """Return a name for the app in a store that several apps share: 16 hex digits, the same in all its processes."""
    return hmac.digest(index_key(secret_key), b"app name", "sha256").hex()[:16]


def check_session_interface(app: Flask) -> None:
    """Refuse Flask's cookie session at start-up, unless the config announces a server-side one.

    :raises ConfigurationError: the session data would be in a cookie.
    """
    announced = str(app.config.get("SESSION_TYPE") or "null").lower() != "null"
    if isinstance(app.session_interface, SecureCookieSessionInterface) and not announced:
        raise ConfigurationError(SERVER_SIDE_HELP)


def _keys(session: Any) -> frozenset[str]:
    return frozenset(dict.keys(session)) - {_KEPT_ON_CLEAR, OWNER, DUE, SAVED}


def _filled(session: Any) -> frozenset[str]:
    """Return the entries that hold something: some hosts sign out by setting the id to None."""
    return frozenset(name for name in _keys(session) if dict.get(session, name))


def in_request() -> bool:
    """Return True in a request of the current app, and not in an app context that code within it has pushed.

    Such code is a job's that Celery runs eagerly: it finds what it would find in a worker.
    """
    if not _has_request():
        return False
    # From Flask 3.2 on such a context has no request. The request's own is the one it began in, or that came with it.
    own = [context for _, context in getattr(request_ctx, "_cv_tokens", ()) if context]
    if began_in := request.environ.get(_WITHIN):
        own.append(began_in())
    return not own or _behind(app_ctx) in own


def _behind(proxy: Any) -> Any:
    """Return the object that one of Flask's proxies stands for."""
    return proxy._get_current_object()


def _has_request() -> bool:
    # Code in another app's request may have pushed this app's context.
    return has_request_context() and request_ctx.app is _behind(current_app)


def kept() -> dict[str, Any]:
    """Return the place for what lasts as long as this request.

    It is the environ, except where our hooks did not run: all events of a socket have one environ.
    """
    asked: Request = _behind(request)
    return asked.environ if _ENVIRON in asked.environ else vars(asked)


def _read_late() -> _Seen:
    """Read the session of a request that our hooks did not see.

    :raises OwnerRequiredError: the session was one when the connection began, and is none now.
    :raises StoreError: the store of the host's sessions does not answer.
    """
    app, there = _behind(current_app), _session_of_request()
    session = there
    if not hasattr(session, "sid"):
        # Flask-SocketIO puts a copy in its place, made when the connection began.
        guard_interface(app)
        session = app.session_interface.open_session(app, request) or {}
        if isinstance(session, LostSession):
            raise StoreError(tier=Tier.SESSION)
    arrived = app.session_interface.get_cookie_name(app) in request.cookies
    keys = _keys(session) if arrived else frozenset()
    if there is not session and _keys(there) and not keys:
        raise OwnerRequiredError(_RECONNECT)
    sid, marker = getattr(session, "sid", ""), dict.get(session, MARKER)
    if marker == _TO_END:
        sid, marker = "", None
    return _Seen(dict(dict.items(session)), sid, marker, keys, late=True)


def _session_of_request() -> Any:
    # flask.session would mark the session as accessed, and every page would then say "Vary: Cookie".
    context = vars(_behind(request_ctx))
    return context["_session" if "_session" in context else "session"]  # Flask before 3.1.3


def _shed_stale_context() -> None:
    """Drop what another person's abandoned stream may have left on ``g`` (pallets/flask#6123)."""
    if left := vars(_behind(g)):
        token = current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
        for name in ("_login_user", "csrf_valid", token):
            left.pop(name, None)
