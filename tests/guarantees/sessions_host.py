"""A host under gunicorn whose requests overlap: with flask-byok, and with keys kept in the session by hand.

The environment says where sessions and keys are kept. `wsgi:app` style: gunicorn imports `app` from here.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import redis
from cachelib import FileSystemCache
from flask import Flask, request, session
from flask_session import Session

from flask_byok import BYOK
from tests.patience import give_time

give_time()


def create_app(folder: Path, redis_url: str | None, database_url: str | None) -> Flask:
    """Return the host; its slow routes hold the session open for `ms` milliseconds."""
    app = Flask("sessions_host", instance_path=str(folder))
    app.config.update(
        SECRET_KEY="overlap" * 5,
        BYOK_ENCRYPTION_KEY="a88a7902cb4ef697ba0b6759c50e8c10297ff58f942243de19b984841bfe1f73",
        BYOK_SET_RATE="1000000/minute",
        WTF_CSRF_ENABLED=False,
    )
    if redis_url:
        app.config.update(SESSION_TYPE="redis", SESSION_REDIS=redis.Redis.from_url(redis_url))
    else:
        app.config.update(
            SESSION_TYPE="cachelib",
            SESSION_CACHELIB=FileSystemCache(str(folder / "sessions"), threshold=100_000),
            BYOK_DATABASE_URL=database_url,
        )
    byok = BYOK(app)
    byok.owner_loader(lambda: session.get("user"))
    Session(app)
    _add_host_routes(app)
    _add_naive_routes(app)
    return app


def _add_host_routes(app: Flask) -> None:
    @app.get("/slow-read")
    def slow_read() -> str:
        session.get("visits")
        return _linger()

    @app.get("/slow-write")
    def slow_write() -> str:
        session["visits"] = session.get("visits", 0) + 1
        return _linger()

    @app.post("/login/<user>")
    def login(user: str) -> str:
        session["user"] = user
        return "ok"

    @app.post("/logout")
    def logout() -> str:
        session.clear()
        return "ok"

    @app.post("/forget")
    def forget() -> str:
        session.pop("user", None)
        return "ok"

    @app.post("/logout-and-greet")
    def logout_and_greet() -> str:
        session.clear()
        session["visits"] = 1
        return "ok"

    @app.post("/regenerate")
    def regenerate() -> str:
        app.session_interface.regenerate(session)  # type: ignore[attr-defined]  # Flask-Session's
        return "ok"


def _add_naive_routes(app: Flask) -> None:
    @app.get("/naive/list")
    def naive_list() -> dict[str, str]:
        session.setdefault("keys", {})
        return dict(session["keys"])

    @app.post("/naive/set/<provider>/<value>")
    def naive_set(provider: str, value: str) -> str:
        session["keys"] = {**session.get("keys", {}), provider: value}
        return _linger()

    @app.post("/naive/clear/<provider>")
    def naive_clear(provider: str) -> str:
        session["keys"] = {k: v for k, v in session.get("keys", {}).items() if k != provider}
        return "ok"


def _linger() -> str:
    time.sleep(int(request.args.get("ms", 0)) / 1000)
    return "ok"


if folder := os.environ.get("SESSIONS_HOST_FOLDER"):
    app = create_app(
        Path(folder),
        os.environ.get("SESSIONS_HOST_REDIS"),
        os.environ.get("SESSIONS_HOST_DATABASE"),
    )
