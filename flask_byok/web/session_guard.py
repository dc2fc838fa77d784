"""Keep the host up while the store of its sessions is down.

Flask opens the session first, outside of every error handler, so a dead session store turns each route with a session
cookie into a 500 after a long wait. Behind our guard the request goes on, with a session that raises ``StoreError``
when it is touched: routes that need no session work as before, the others answer 503.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NoReturn, cast

from flask import Flask, Request, Response, after_this_request
from flask.sessions import SessionInterface, SessionMixin

from ..errors import StoreError
from ..storage.breaker import Breaker, Reporter, is_away, reason_of
from .problems import problem_response

#: A session store that takes longer to fail, in seconds, is left alone for a while.
SLOW_FAULT = 0.05

# What a browser keeps (RFC 6265, sections 4.1.1 and 6.1): a driver may take a second to refuse a NUL.
_SESSION_ID = re.compile("[ -~]{0,4096}")

_UNAVAILABLE = "The session store is not available right now. Please try again in a moment."


class LostSession(dict[str, Any], SessionMixin):
    """An empty session that is not saved."""

    modified = accessed = False


class UnavailableSession(LostSession):
    """A session whose store does not answer: reading or writing it raises ``StoreError``."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise StoreError(_UNAVAILABLE)

    __getitem__ = __setitem__ = __delitem__ = __contains__ = __len__ = __iter__ = _refuse
    get = pop = popitem = setdefault = update = clear = keys = values = items = _refuse
    sid = property(_refuse)

    def until_answered(self) -> None:
        """Refuse until the view has answered: after it only hooks read the session."""
        after_this_request(self.let_go)

    def let_go(self, response: Response) -> Response:
        """Become an empty session."""
        self.__class__ = LostSession  # type: ignore[assignment]  # of the same layout
        return response


class SessionGuard:
    """Wrap the host's session interface; all but opening and saving goes straight to it."""

    def __init__(self, inner: SessionInterface) -> None:
        self._inner = inner
        self._breaker, self._reporter = Breaker(), Reporter("The host's session store")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open_session(self, app: Flask, request: Request) -> SessionMixin | None:
        """Open the host's session, or an unavailable one."""
        if not self._breaker.allow():
            return UnavailableSession()
        started = time.monotonic()
        if "HTTP_COOKIE" in request.environ:
            _drop_impossible_id(request, self._inner.get_cookie_name(app))
        try:
            session = self._inner.open_session(app, request)
        except Exception as error:
            self._note(app, error, "opened", started)
            return UnavailableSession()
        if session:
            self._breaker.success()
            self._reporter.success(changed=False)
        elif self._breaker.is_open:
            # For a new session no store was asked: this takes back no fault, and keeps no other caller from asking.
            self._breaker.unasked()
        return session

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Save the host's session; if a change cannot be saved, the answer becomes a 503."""
        if isinstance(session, LostSession):
            return
        started, changed = time.monotonic(), session.modified
        if self._breaker.is_open and not (changed and self._breaker.allow()):
            if changed:
                _become_unavailable(response)
            return
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
            self._breaker.success()
            self._reporter.success(changed=True)

    def _note(self, app: Flask, error: Exception, what: str, started: float) -> None:
        away = is_away(error)
        if away or reason_of(error):
            self._reporter.failed(error, answered=not away)
        else:
            # The type alone: a driver's text may contain the store's URL with its password.
            app.logger.error("The session could not be %s: %s", what, type(error).__name__)
        # What one request brought itself says nothing about the store, and a quick fault costs other requests nothing.
        if away and time.monotonic() - started > SLOW_FAULT:
            self._breaker.fault()
        elif away:
            self._breaker.success()


def guard_sessions(
    app: Flask,
    health_path: str,
    answer_health: Callable[..., Iterable[bytes]],
    first: Callable[[], object],
) -> None:
    """Wrap the app's session interface, no matter when the host sets it.

    :param answer_health: answers GET of that path, before Flask knows of the request.
    :param first: is called at the first request.
    """
    inner_wsgi_app, steps = app.wsgi_app, [first]

    def wsgi_app(environ: Any, start_response: Any) -> Any:
        is_health = environ.get("PATH_INFO") == health_path
        if is_health and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return answer_health(app, environ, start_response)
        if steps:
            with suppress(IndexError):  # another thread was quicker
                steps.pop()()
        # At each request, since Session(app) may be called after byok.init_app(app).
        guard_interface(app)
        return inner_wsgi_app(environ, start_response)

    app.wsgi_app = wsgi_app  # type: ignore[method-assign]  # as Flask documents for middleware


def guard_interface(app: Flask) -> None:
    """Wrap the app's session interface, if it is not yet."""
    if not isinstance(app.session_interface, SessionGuard):
        app.session_interface = cast(SessionInterface, SessionGuard(app.session_interface))


def _drop_impossible_id(request: Any, cookie: str) -> None:
    """Take a cookie that can be no session's id off the request: the host makes a new session."""
    if not _SESSION_ID.fullmatch(request.cookies.get(cookie, "")):
        left = [pair for pair in request.cookies.items(multi=True) if pair[0] != cookie]
        request.cookies = request.dict_storage_class(left)


def _become_unavailable(response: Response) -> None:
    """Replace an answer that reports success."""
    problem = problem_response(StoreError(_UNAVAILABLE))
    response.close()
    response.direct_passthrough = False
    response.status_code, response.headers = problem.status_code, problem.headers
    response.response = problem.response
