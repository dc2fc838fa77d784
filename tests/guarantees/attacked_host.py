"""A host under gunicorn where people may use servers of their own. Its folder is in the environment."""

from __future__ import annotations

from pathlib import Path

from werkzeug.middleware.proxy_fix import ProxyFix

from tests.app import HostApp, make_app
from tests.patience import give_time

give_time()


def create_app(folder: Path) -> HostApp:
    """Return the host; a test says in ``X-Forwarded-For`` from which address a request comes."""
    app = make_app(
        folder,
        csrf_protect=False,
        WTF_CSRF_ENABLED=False,
        BYOK_ALLOW_CUSTOM_PROVIDERS=True,
        BYOK_ALLOW_PRIVATE_ENDPOINTS=True,
    )
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]  # as Flask documents for middleware
    return app
