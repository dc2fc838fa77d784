"""Keep the host up while its session store is down.

Flask opens the session before anything else, outside every error handler, so a dead session store turns each route
with a session cookie into a 500 after a long wait. Behind this guard the request goes on with a session that raises
``StoreError`` when it is touched: routes that need no session answer as ever, the others answer 503.
"""

from __future__ import annotations

from typing import Any, NoReturn, cast

from flask import Flask, Request, Response
from flask.sessions import SessionInterface, SessionMixin

from ..errors import StoreError


class UnavailableSession(dict[str, Any], SessionMixin):
    """A session whose store does not answer; whoever reads or writes it gets ``StoreError``."""

    modified = False
    accessed = False

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise StoreError(
            "The session store is not available right now. Please try again in a moment."
        )

    __getitem__ = __setitem__ = __delitem__ = __contains__ = __len__ = __iter__ = _refuse
    get = pop = popitem = setdefault = update = clear = keys = values = items = _refuse


class SessionGuard:
    """Wraps the host's session interface; everything but opening and saving goes straight to it."""

    def __init__(self, inner: SessionInterface) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open_session(self, app: Flask, request: Request) -> SessionMixin | None:
        """Open the host's session, or one that refuses."""
        try:
            return self._inner.open_session(app, request)
        except Exception as error:
            # The type alone is logged: a driver's text may hold the store's URL with its password.
            app.logger.error("The session could not be opened: %s", type(error).__name__)
            return UnavailableSession()

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Save the host's session, unless it could not be opened."""
        if not isinstance(session, UnavailableSession):
            self._inner.save_session(app, session, response)


def guard_sessions(app: Flask) -> None:
    """Wrap the app's session interface, whenever the host sets it."""
    inner_wsgi_app = app.wsgi_app

    def wsgi_app(environ: Any, start_response: Any) -> Any:
        # At each request, since Session(app) may be called after byok.init_app(app).
        if not isinstance(app.session_interface, SessionGuard):
            app.session_interface = cast(SessionInterface, SessionGuard(app.session_interface))
        return inner_wsgi_app(environ, start_response)

    app.wsgi_app = wsgi_app  # type: ignore[method-assign]  # as Flask documents for middleware
