"""Keep the host up while its session store is down.

Flask opens the session first, outside of every error handler, so a dead session store turns each route with a session
cookie into a 500 after a long wait. Behind this guard the request goes on, with a session that raises ``StoreError``
when it is touched: routes that need no session work as before, the others answer 503.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from flask import Flask, Request, Response
from flask.sessions import SessionInterface, SessionMixin

from ..errors import StoreError
from ..storage.protection import Breaker
from .problems import problem_response

#: A session store that takes longer to fail, in seconds, is left alone for a while.
SLOW_FAULT = 0.05

_MESSAGE = "The session store is not available right now. Please try again in a moment."


class UnavailableSession(dict[str, Any], SessionMixin):
    """A session whose store does not answer: reading or writing it raises ``StoreError``."""

    modified = False
    accessed = False
    answered = False

    @property
    def sid(self) -> str:
        """Raise: the id is unknown."""
        raise StoreError(_MESSAGE)

    def let_go(self, response: Response) -> Response:
        """Become an empty session: the view has answered, and only hooks still read it."""
        self.answered = True
        return response


def _refusing(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def refuse(self: UnavailableSession, *args: Any, **kwargs: Any) -> Any:
        if not self.answered:
            raise StoreError(_MESSAGE)
        return method(self, *args, **kwargs)

    return refuse


for _name in (
    *("__getitem__", "__setitem__", "__delitem__", "__contains__", "__len__", "__iter__"),
    *("get", "pop", "popitem", "setdefault", "update", "clear", "keys", "values", "items"),
):
    setattr(UnavailableSession, _name, _refusing(_name))


class SessionGuard:
    """Wrap the host's session interface; all but opening and saving goes straight to it."""

    def __init__(self, inner: SessionInterface) -> None:
        self._inner = inner
        self._breaker = Breaker()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open_session(self, app: Flask, request: Request) -> SessionMixin | None:
        """Open the host's session, or an unavailable one."""
        if not self._breaker.allow():
            return UnavailableSession()
        started = time.monotonic()
        try:
            session = self._inner.open_session(app, request)
        except Exception as error:
            self._note(app, error, "opened", started)
            return UnavailableSession()
        self._breaker.success()
        return session

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Save the host's session; if a change cannot be saved, the answer becomes a 503."""
        if isinstance(session, UnavailableSession):
            return
        started = time.monotonic()
        try:
            self._inner.save_session(app, session, response)
        except (TypeError, ValueError):
            raise  # a value cannot be serialized: the host's developer needs to see that
        except Exception as error:
            self._note(app, error, "saved", started)
            if session.modified:
                _become_unavailable(response)

    def _note(self, app: Flask, error: Exception, what: str, started: float) -> None:
        # Log the type alone: a driver's text may contain the store's URL with its password.
        app.logger.error("The session could not be %s: %s", what, type(error).__name__)
        # A quick fault costs other requests nothing, and may concern one session only.
        if time.monotonic() - started > SLOW_FAULT:
            self._breaker.fault()
        else:
            self._breaker.success()


def guard_sessions(app: Flask) -> None:
    """Wrap the app's session interface, no matter when the host sets it."""
    inner_wsgi_app = app.wsgi_app

    def wsgi_app(environ: Any, start_response: Any) -> Any:
        # At each request, since Session(app) may be called after byok.init_app(app).
        if not isinstance(app.session_interface, SessionGuard):
            app.session_interface = cast(SessionInterface, SessionGuard(app.session_interface))
        return inner_wsgi_app(environ, start_response)

    app.wsgi_app = wsgi_app  # type: ignore[method-assign]  # as Flask documents for middleware


def _become_unavailable(response: Response) -> None:
    """Replace an answer that reports success."""
    problem = problem_response(StoreError(_MESSAGE))
    response.close()
    response.direct_passthrough = False
    response.status_code = problem.status_code
    response.headers.clear()
    response.headers.extend(problem.headers)
    response.set_data(problem.get_data())
