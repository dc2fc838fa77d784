"""Bind the session store to the host's server-side session, and keep the host up while that session's store is down.

The host's session data holds one entry: the ``ref``, a random name for the session's document. If it is there at
the start of a request and gone at the end, the session was cleared; if the session id has changed, it was renewed.
Other requests that use no keys cost no round trip.

Flask opens the session first, outside of every error handler, so a dead session store turns each route with a session
cookie into a 500 after a long wait. Behind our guard the request goes on, with a session that raises ``StoreError``
when it is touched: routes that need no session work as before, the others answer 503.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from flask import Flask, Response, after_this_request, current_app, g, has_request_context, request
from flask.globals import app_ctx, request_ctx
from flask.sessions import (
    NullSession,
    SecureCookieSession,
    SecureCookieSessionInterface,
    SessionInterface,
    SessionMixin,
)

from ..errors import ConfigurationError, OwnerRequiredError, StoreError
from ..keys.sessions import Sessions
from ..model.owner import Saved, SessionRef, Tier
from ..storage.breaker import Breaker, Reporter, is_away
from ..storage.reasons import reason_of
from .problems import problem_response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: Our entries in the host's session data: the ref, the identity of its signed-in user, whether ``BYOK_PROMOTE`` has
#: yet to be applied to what that user saved as a visitor, and under which ref keys were saved, for which providers.
MARKER, OWNER, DUE, SAVED = "_byok", "_byok_owner", "_byok_due", "_byok_saved"
# The marker of a session that was emptied while the store was down.
_TO_END = "to end"
_ENVIRON = "flask_byok.session"
# Flask-Session keeps this entry when a session is cleared.
_KEPT_ON_CLEAR = "_permanent"
_logger = logging.getLogger("flask_byok.web")

# What a browser keeps (RFC 6265, sections 4.1.1 and 6.1): a driver may take a second to refuse a NUL.
_SESSION_ID = re.compile("[ -~]{0,4096}")

#: A session store that takes longer to fail, in seconds, is left alone for a while.
SLOW_FAULT = 0.05

_UNAVAILABLE = "The session store is not available right now. Please try again in a moment."

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

    @classmethod
    def now(cls, session: Any) -> _Seen:
        """Read the session without marking it as accessed."""
        marker = dict.get(session, MARKER)
        seen = cls(session, session.sid, marker, _keys(session), filled=_filled(session))
        if marker == _TO_END:
            seen.marker, seen.unfinished = None, True
        if seen.marker is None and seen.keys:
            # Notice session.clear() even if a race has lost the marker.
            clear = session.clear

            def noting_clear() -> None:
                clear()
                seen.emptied = True

            session.clear = noting_clear
        return seen

    def was_cleared(self) -> bool:
        if self.marker is not None:
            return dict.get(self.session, MARKER) != self.marker
        return self.emptied

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

    def init_app(
        self,
        app: Flask,
        without_session: Mapping[str, WSGIApplication],
        first: Callable[[], object],
    ) -> None:
        """Put our hooks outermost: first before a request, last after it.

        :param without_session: answers GET by path, before Flask knows of the request.
        :param first: is called at the first request.
        """
        guard_sessions(app, without_session, [first])
        app.before_request_funcs.setdefault(None, []).insert(0, self._before_request)
        app.after_request_funcs.setdefault(None, []).insert(0, self._after_request)
        with suppress(ImportError):
            from flask_login import user_logged_out

            # The signal, which all apps share, holds this method and the app weakly.
            user_logged_out.connect(self.end, app)

    def current(
        self, identity: str, *, establish: bool = False, replace: bool = False
    ) -> SessionRef | None:
        """Return the session of this request, or None; ask the store only if a race lost the ref.

        :param establish: make a session if there is none.
        :param replace: make another one, as the store says that this one has ended.
        """
        seen = self._caught_up()
        if seen is None:
            return None
        if seen.late:
            return self._current_late(seen, identity)
        if not establish and seen.marker is None and (ref := self._known_ref(seen)):
            seen.remember(ref)
        self._confirm(seen, identity)
        if replace or (establish and seen.marker is None):
            seen.remember(self.store.establish(self._hash(seen.sid), seen.marker))
        return None if seen.marker is None else self._ref(seen, seen.marker)

    def claim(self, identity: str) -> bool:
        """Note that this user uses the session; return True if ``BYOK_PROMOTE`` has yet to be applied."""
        seen = kept()[_ENVIRON]
        return not seen.late and self._claim(seen.session, identity)

    def _claim(self, data: Any, identity: str) -> bool:
        if OWNER not in dict.keys(data):
            data[OWNER], data[DUE] = identity, True
        return DUE in dict.keys(data)

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

    def _before_request(self) -> None:
        _shed_stale_context()
        request.environ[_ENVIRON] = None
        session = _session_of_request()
        if isinstance(session, NullSession) and request.blueprint != "byok":
            return  # the host's interface keeps no session for this path
        if isinstance(session, UnavailableSession):
            after_this_request(session.let_go)
            return
        if not _is_server_side(session):
            if self.is_required:
                raise ConfigurationError(SERVER_SIDE_HELP)
            return
        request.environ[_ENVIRON] = _Seen.now(session)

    def _after_request(self, response: Response) -> Response:
        try:
            if seen := request.environ.get(_ENVIRON):
                self._follow(seen)
                self._end_if_owner_left(seen)
                self._claim_if_signed_in(seen)
        except StoreError as error:
            # A sign-out or renewal failed: the person must learn that.
            return problem_response(error)
        return response

    def _caught_up(self) -> _Seen | None:
        """Carry over to the store what this request has done to the session so far."""
        if not _has_request():
            return None
        if _ENVIRON not in kept():
            kept()[_ENVIRON] = _read_late()
        seen: _Seen | None = kept()[_ENVIRON]
        if seen is None:
            if isinstance(_session_of_request(), _LostSession):
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
        owner = dict.get(seen.session, OWNER)
        if owner is not None and owner != identity:
            self._end(seen)

    def _current_late(self, seen: _Seen, identity: str) -> SessionRef | None:
        """Return the session of a request that our hooks did not see.

        :raises OwnerRequiredError: it has none, and no user; or the host's user is not the session's.
        """
        if dict.get(seen.session, OWNER, identity) != identity:
            raise OwnerRequiredError(_RECONNECT)
        if not identity and not seen.keys:
            raise OwnerRequiredError(SAY_WHOSE)
        ref = self._known_ref(seen) if seen.sid else None
        return None if ref is None else self._ref(seen, ref)

    def _claim_if_signed_in(self, seen: _Seen) -> None:
        """Note whose a visitor's session has become, also if that user touches none of our routes."""
        if seen.marker is None or OWNER in dict.keys(seen.session):
            return
        # The loader may need what only some views prepare: then a later request tells.
        with suppress(Exception):
            if identity := self.identity():
                self._claim(seen.session, identity)

    def _end_if_owner_left(self, seen: _Seen) -> None:
        """Notice a host that signs people out by only removing their id from the session."""
        # Only if an entry was removed or emptied: otherwise the host may not know the user yet.
        if seen.marker is None or not seen.filled - _filled(seen.session):
            return
        try:
            identity = self.identity()
        except Exception:
            _logger.exception("The owner loader failed after a request; its session stays.")
            return
        self._confirm(seen, identity)

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
        seen.marker, seen.emptied, seen.unfinished = None, False, False
        seen.sid, seen.keys = seen.session.sid, _keys(seen.session)
        seen.filled = _filled(seen.session)

    def _renew(self, seen: _Seen) -> None:
        if ref := self._known_ref(seen):
            self.store.renew(self._ref(seen, ref), self._hash(seen.session.sid))
            seen.remember(ref)
        seen.sid = seen.session.sid

    def _known_ref(self, seen: _Seen) -> str | None:
        # A session that arrived empty is new: the store cannot know it.
        return seen.marker or (self.store.find(self._hash(seen.sid)) if seen.keys else None)

    def _ref(self, seen: _Seen, ref: str) -> SessionRef:
        # A late session is a copy, which is not written back.
        under, _, providers = str(dict.get(seen.session, SAVED, "")).partition(" ")
        write = partial(_write_saved, seen.session)
        saved = Saved(under or None, frozenset(providers.split()), write)
        return SessionRef(self._hash(seen.sid), ref, saved)

    def _hash(self, sid: str) -> str:
        return " ".join(hmac.digest(key, sid.encode(), "sha256").hex() for key in self.index_keys)


def index_key(secret_key: str | bytes) -> bytes:
    """Derive the key that hashes session ids; a rotation of the encryption key does not change it."""
    raw = secret_key.encode() if isinstance(secret_key, str) else secret_key
    return hmac.digest(raw, b"flask-byok session index", "sha256")


def secret_keys(app: Flask) -> list[str | bytes]:
    """Return the host's secret keys, the present one first."""
    keys = [app.secret_key, *(app.config.get("SECRET_KEY_FALLBACKS") or ())]
    return [key for key in keys if key]


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


def _write_saved(session: Any, ref: str | None, providers: frozenset[str]) -> None:
    if ref is None:
        session.pop(SAVED, None)
    else:
        session[SAVED] = " ".join((ref, *sorted(providers)))


def in_request() -> bool:
    """Return True in a request of the current app, and not in an app context that code within it has pushed.

    Such code is a job's that Celery runs eagerly: it finds what it would find in a worker.
    """
    if not _has_request():
        return False
    # From Flask 3.2 on such a context has no request.
    pushed = [context for _, context in getattr(request_ctx, "_cv_tokens", ()) if context]
    return not pushed or cast(Any, app_ctx)._get_current_object() in pushed


def _has_request() -> bool:
    # Code in another app's request may have pushed this app's context.
    return has_request_context() and request_ctx.app is cast(Any, current_app)._get_current_object()


def kept() -> dict[str, Any]:
    """Return the place for what lasts as long as this request.

    It is the environ, except where our hooks did not run: all events of a socket have one environ.
    """
    environ: dict[str, Any] = request.environ
    return environ if _ENVIRON in environ else cast(Any, request)._get_current_object().__dict__


def _read_late() -> _Seen | None:
    """Read the session of a request that our hooks did not see.

    :raises OwnerRequiredError: the session was one when the connection began, and is none now.
    """
    app, session = cast(Any, current_app)._get_current_object(), _session_of_request()
    there = session
    if isinstance(session, _LostSession):
        return None
    if not hasattr(session, "sid"):
        # Flask-SocketIO puts a copy in its place, made when the connection began.
        guard_interface(app)
        session = app.session_interface.open_session(app, request) or {}
        if isinstance(session, _LostSession):
            raise StoreError(tier=Tier.SESSION)
    arrived = app.session_interface.get_cookie_name(app) in request.cookies
    keys = _keys(session) if arrived else frozenset()
    if there is not session and _keys(there) and not keys:
        raise OwnerRequiredError(_RECONNECT)
    sid, marker = getattr(session, "sid", ""), dict.get(session, MARKER)
    if marker == _TO_END:
        sid, marker = "", None
    return _Seen(dict(dict.items(session)), sid, marker, keys, late=True)


def _is_server_side(session: Any) -> bool:
    in_cookie = isinstance(session, SecureCookieSession)
    return not in_cookie and isinstance(getattr(session, "sid", None), str)


def _session_of_request() -> Any:
    # flask.session would mark the session as accessed, and every page would then say "Vary: Cookie".
    context = vars(cast(Any, request_ctx)._get_current_object())
    return context["_session" if "_session" in context else "session"]  # Flask before 3.1.3


def _shed_stale_context() -> None:
    """Drop what another person's abandoned stream may have left on ``g`` (pallets/flask#6123)."""
    if left := vars(g._get_current_object()):
        token = current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
        for name in ("_login_user", "csrf_valid", token):
            left.pop(name, None)


class _LostSession(dict[str, Any], SessionMixin):
    """An empty session that is not saved."""

    modified = accessed = False


class UnavailableSession(_LostSession):
    """A session whose store does not answer: reading or writing it raises ``StoreError``."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise StoreError(_UNAVAILABLE)

    __getitem__ = __setitem__ = __delitem__ = __contains__ = __len__ = __iter__ = _refuse
    get = pop = popitem = setdefault = update = clear = keys = values = items = _refuse
    sid = property(_refuse)

    def let_go(self, response: Response) -> Response:
        """Become an empty session: the view has answered, and only hooks still read it."""
        self.__class__ = _LostSession  # type: ignore[assignment]  # of the same layout
        return response


class SessionGuard:
    """Wrap the host's session interface; all but opening and saving goes straight to it."""

    def __init__(self, inner: SessionInterface) -> None:
        self._inner = inner
        self._breaker, self._reporter = Breaker(), Reporter("The host's session store")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open_session(self, app: Flask, request: Any) -> SessionMixin | None:
        """Open the host's session, or an unavailable one."""
        if not self._breaker.allow():
            return UnavailableSession()
        started, cookie = time.monotonic(), self._inner.get_cookie_name(app)
        _drop_impossible_id(request, cookie)
        try:
            session = self._inner.open_session(app, request)
        except Exception as error:
            self._note(app, error, "opened", started)
            return UnavailableSession()
        was_asked = cookie in request.cookies or bool(session)
        # A visitor's new session takes back no fault: the store was not asked.
        if was_asked or self._breaker.is_open:
            self._breaker.success()
        if was_asked:
            self._reporter.success(changed=False)
        return session

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Save the host's session; if a change cannot be saved, the answer becomes a 503."""
        if isinstance(session, _LostSession):
            return
        started, changed = time.monotonic(), session.modified
        try:
            self._inner.save_session(app, session, response)
        except (TypeError, ValueError):
            raise  # a value cannot be serialized: the host's developer needs to see that
        except Exception as error:
            self._note(app, error, "saved", started)
            if changed:
                _become_unavailable(response)
            return
        if changed:
            self._reporter.success(changed=True)

    def _note(self, app: Flask, error: Exception, what: str, started: float) -> None:
        away = is_away(error)
        if away or reason_of(error):
            self._reporter.failed(error, answered=not away)
        else:
            # The type alone: a driver's text may contain the store's URL with its password.
            app.logger.error("The session could not be %s: %s", what, type(error).__name__)
        # What one request brought itself says nothing about the store.
        if not away:
            return
        # A quick fault costs other requests nothing.
        if time.monotonic() - started > SLOW_FAULT:
            self._breaker.fault()
        else:
            self._breaker.success()


def _drop_impossible_id(request: Any, cookie: str) -> None:
    """Take a cookie that can be no session's id off the request: the host makes a new session."""
    if not _SESSION_ID.fullmatch(request.cookies.get(cookie, "")):
        left = [pair for pair in request.cookies.items(multi=True) if pair[0] != cookie]
        request.cookies = request.dict_storage_class(left)


def guard_sessions(
    app: Flask,
    without_session: Mapping[str, WSGIApplication],
    first: list[Callable[[], object]],
) -> None:
    """Wrap the app's session interface, no matter when the host sets it; see ``SessionBinding.init_app``."""
    inner_wsgi_app = app.wsgi_app

    def wsgi_app(environ: Any, start_response: Any) -> Any:
        answer = without_session.get(environ.get("PATH_INFO", ""))
        if answer is not None and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return answer(environ, start_response)
        if first:
            with suppress(IndexError):  # another thread was quicker
                first.pop()()
        # At each request, since Session(app) may be called after byok.init_app(app).
        guard_interface(app)
        return inner_wsgi_app(environ, start_response)

    app.wsgi_app = wsgi_app  # type: ignore[method-assign]  # as Flask documents for middleware


def guard_interface(app: Flask) -> None:
    """Wrap the app's session interface, if it is not yet."""
    if not isinstance(app.session_interface, SessionGuard):
        app.session_interface = cast(SessionInterface, SessionGuard(app.session_interface))


def _become_unavailable(response: Response) -> None:
    """Replace an answer that reports success."""
    problem = problem_response(StoreError(_UNAVAILABLE))
    response.close()
    response.direct_passthrough = False
    response.status_code, response.headers = problem.status_code, problem.headers
    response.response = problem.response
