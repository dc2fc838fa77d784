"""A host application as its author would write it: one page with the dialog, under a strict policy."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cachelib.file import FileSystemCache
from flask import Flask, Response, g, redirect, render_template_string, session
from flask_session import Session
from werkzeug.serving import make_server

from flask_byok import BYOK
from flask_byok.catalog import ProviderSpec
from tests.app import FEW
from tests.keeper import close

POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}' 'strict-dynamic'; style-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

PAGE = """<!doctype html>
<html lang="en" dir="{{ request.args.get('dir', 'ltr') }}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>A host</title>
<link rel="stylesheet" href="/host.css">
{% if request.path == "/harsh" %}<link rel="stylesheet" href="/harsh.css">{% endif %}
<script nonce="{{ csp_nonce() }}">
  window.violations = [];
  addEventListener("securitypolicyviolation", (event) => {
    window.violations.push(`${event.effectiveDirective} ${event.blockedURI}`);
  });
</script>
{{ byok.head() }}
</head>
<body>
<main>
<h1>A host</h1>
<p>A page that needs keys. <a href="/elsewhere">Elsewhere</a></p>
{{ byok.button() }}
{% if request.path == "/inline" %}{{ byok.page() }}{% else %}{{ byok.dialog() }}{% endif %}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; font-family: system-ui, sans-serif; color: CanvasText; background: Canvas; }
main { padding: 1rem; }
"""


#: What style sheets of frameworks do to dialogs, buttons and everything, at their worst.
HARSH_STYLE = """
* { margin: 0; padding: 0; box-sizing: border-box; font: 9px/1 fantasy; }
*, ::before, ::after { border: 0 solid; }
dialog { display: flex; position: fixed; inset: 0; width: 100%; min-width: 100%; min-height: 100%; margin: 0;
  padding: 4rem; background: rgb(0 0 0 / 0.3); color: grey; text-align: center; text-transform: uppercase; }
dialog:not([open]) { display: none; }
button, input, [type="submit"] { width: 100%; margin-bottom: 2rem; background: navy; color: navy; border-radius: 0; }
form { display: grid; gap: 3rem; } p, li, h2, h3 { margin: 3rem; font-size: 3rem; } ul { padding: 5rem; }
"""


def csp_nonce() -> str:
    """Return this request's nonce, the same at every call."""
    if "csp_nonce" not in g:
        g.csp_nonce = secrets.token_urlsafe(16)
    return str(g.csp_nonce)


def create_host(directory: Path, register: Sequence[ProviderSpec] = (), **config: Any) -> Flask:
    """Make the application; its sessions and keys lie in files in `directory`."""
    app = Flask("host", instance_path=str(directory))
    app.config.update(
        SECRET_KEY="a host's secret",
        SESSION_TYPE="cachelib",
        SESSION_CACHELIB=FileSystemCache(str(directory / "sessions")),
        SESSION_COOKIE_SAMESITE="Lax",
        BYOK_ENCRYPTION_KEY="4fc82b26aecb47d2868c4efbe3581732a3e7cbcc6c2efb32062c08170a05eeb8",
        BYOK_DATABASE_URL=f"sqlite:///{directory / 'byok.sqlite'}",
        BYOK_PROVIDERS=[*FEW, *(spec.id for spec in register)],
        BYOK_SECRETS_DIR=str(directory / "secrets"),
        BYOK_CSP_NONCE=csp_nonce,
    )
    app.config.update(config)
    Session(app)
    byok = BYOK()
    for spec in register:
        byok.register_provider(spec)
    byok.init_app(app)
    byok.owner_loader(lambda: session.get("user"))
    app.jinja_env.globals["csp_nonce"] = csp_nonce
    _add_pages(app)
    return app


def _add_pages(app: Flask) -> None:
    @app.get("/")
    @app.get("/inline")
    @app.get("/harsh")
    def page() -> Response:
        response = Response(render_template_string(PAGE), mimetype="text/html")
        response.headers["Content-Security-Policy"] = POLICY.format(nonce=csp_nonce())
        return response

    @app.get("/host.css")
    def style() -> Response:
        return Response(STYLE, mimetype="text/css")

    @app.get("/harsh.css")
    def harsh_style() -> Response:
        return Response(HARSH_STYLE, mimetype="text/css")

    @app.get("/elsewhere")
    def elsewhere() -> str:
        return "<!doctype html><html lang=en><title>Elsewhere</title><h1>Elsewhere</h1>"

    @app.get("/sign-in/<user>")
    def sign_in(user: str) -> Any:
        session["user"] = user
        return redirect("/")

    @app.get("/sign-out")
    def sign_out() -> Any:
        session.clear()
        return redirect("/")


class Host:
    """The application, served on a free port by a thread; a context manager."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Host:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        close(self.app)
