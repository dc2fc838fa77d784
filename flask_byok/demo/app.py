"""The application factory."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, current_app, render_template, request
from flask_wtf.csrf import CSRFError

from flask_byok import StoreError

from . import accounts, chat, shared_keys
from .extensions import byok, csrf, login_manager, server_side_session

# Strict: nothing inline, nothing foreign, and no script may turn a string into HTML.
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}' 'strict-dynamic'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def create_app(config: Mapping[str, Any]) -> Flask:
    """Make the chat app.

    :param config: at least ``SECRET_KEY``, a server-side ``SESSION_TYPE`` with what belongs to it, an encryption key
        for flask-byok, and ``DEMO_API_KEYS``: what to try, as ``{behaviour: key}``.
    """
    app = Flask(__name__, instance_path=config.get("INSTANCE_PATH"))
    app.config.from_mapping(
        SESSION_COOKIE_SAMESITE="Lax",
        BYOK_CSP_NONCE=csp_nonce,
        WTF_CSRF_TIME_LIMIT=None,  # a chat stays open for longer than an hour; tokens end with the session
    )
    app.config.from_mapping(config)

    server_side_session.init_app(app)
    csrf.init_app(app)
    login_manager.init_app(app)
    byok.init_app(app)

    app.register_blueprint(accounts.bp)
    app.register_blueprint(chat.bp)
    app.register_blueprint(shared_keys.bp)
    app.register_error_handler(CSRFError, _on_csrf_error)
    app.register_error_handler(StoreError, _on_store_error)
    app.jinja_env.globals["csp_nonce"] = csp_nonce
    app.after_request(_secure)
    return app


def csp_nonce() -> str:
    """Return this response's nonce, the same at every call."""
    return str(request.environ.setdefault("demo.csp_nonce", secrets.token_urlsafe(16)))


def _secure(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", _POLICY.format(nonce=csp_nonce()))
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    return response


def _on_csrf_error(error: CSRFError) -> tuple[str, int]:
    return render_template("sorry.html", reason=error.description), 400


def _on_store_error(error: StoreError) -> tuple[str, int, dict[str, str]]:
    """Show a page that needs no session; flask-byok's own routes go on answering in JSON."""
    # Not render_template: Flask-Login's context processor looks into the session.
    page = current_app.jinja_env.get_template("away.html").render(reason=str(error))
    return page, error.status, {"Retry-After": str(error.retry_after)}
