"""A host application as its author would write it, and a browser's side of it; for every test."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import redis
from cachelib import FileSystemCache
from flask import Flask, Response, request, session
from flask.testing import FlaskClient
from flask_login import LoginManager, login_user, logout_user
from flask_session import Session
from flask_wtf.csrf import CSRFProtect
from redis.backoff import NoBackoff
from redis.retry import Retry
from werkzeug.test import TestResponse

from flask_byok import BYOK, get_provider_with_api_key
from flask_byok.testing import FakeProviders

KEYS = "/api/providers/keys"
#: What hosts in tests offer where the catalog is not the subject: some of each wire, and a server of one's own.
FEW = ("openai", "anthropic", "google", "groq", "xai", "openrouter", "custom")
ENCRYPTION_KEY = "6c43df135a998cf74c2277557c6c3f42a25a3912305ca537963fcd68fcd7660b"
OTHER_ENCRYPTION_KEY = "539406eaf2954061138c5ba822e52a42f54b2f6a085ac9df191bb304c28acbba"


class User:
    """A user of Flask-Login who is nothing but an id."""

    is_authenticated = is_active = True
    is_anonymous = False

    def __init__(self, user: str) -> None:
        self._id = user

    def get_id(self) -> str:
        return self._id


class HostApp(Flask):
    """A host with its extensions at hand."""

    byok: BYOK
    csrf: CSRFProtect


def make_app(
    directory: Path,
    fake: FakeProviders | None = None,
    *,
    redis_url: str | None = None,
    byok_redis_url: str | None = None,
    csrf_protect: bool = True,
    session_after: bool = False,
    **config: Any,
) -> HostApp:
    """Return a host with Flask-Session, CSRFProtect and Flask-Login, its files in ``directory``.

    Sessions and keys are in files (SQLite for keys).

    :param fake: stands for every provider.
    :param redis_url: keep sessions and keys there, the sessions over a client that waits half a second at most.
    :param byok_redis_url: keep the keys alone there.
    :param csrf_protect: let the host protect its own forms too.
    :param session_after: call ``Session(app)`` after ``BYOK(app)``.
    :param config: further settings; they win. ``SESSION_TYPE=None`` leaves Flask's own cookie session.
    """
    app = HostApp("host", instance_path=str(directory))
    app.config.update(
        SECRET_KEY="a host's own secret",
        BYOK_ENCRYPTION_KEY=ENCRYPTION_KEY,
        BYOK_PROVIDERS=FEW,
        BYOK_SECRETS_DIR=str(directory / "secrets"),
        BYOK_SET_RATE="100000/minute",
        BYOK_VALIDATE_RATE="100000/minute",
        **_storage(directory, redis_url, byok_redis_url),
    )
    if fake is not None:
        app.config["BYOK_BASE_URLS"] = fake.base_urls
    app.config.update(config)
    if not session_after and app.config["SESSION_TYPE"]:
        Session(app)
    app.byok = BYOK(app)
    if session_after:
        Session(app)
    LoginManager(app).user_loader(User)
    app.csrf = CSRFProtect()
    if csrf_protect:
        app.csrf.init_app(app)
    _add_routes(app)
    return app


def bare(directory: Path, **config: Any) -> Flask:
    """Return a host that has no extension yet, its sessions in files."""
    app = Flask("bare", instance_path=str(directory))
    app.config.update(SECRET_KEY="x", SESSION_TYPE="cachelib", BYOK_ENCRYPTION_KEY=ENCRYPTION_KEY)
    app.config.update(SESSION_CACHELIB=FileSystemCache(str(directory / "sessions")), **config)
    return app


def limited_redis(url: str) -> redis.Redis:
    """Return a client as a careful host makes it: no retries, half a second to connect and to wait."""
    return redis.Redis.from_url(
        url, socket_timeout=0.5, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0)
    )


def fingerprint(api_key: str) -> str:
    """Return what ``/used/<provider>`` says of a key."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def problem_of(answer: TestResponse) -> tuple[int, str]:
    """Return the status and the code of an answer that is a problem object."""
    assert answer.mimetype == "application/problem+json"
    return answer.status_code, answer.get_json()["code"]


class Browser(FlaskClient):
    """A client of the app that sends a CSRF token as the dialog's script does."""

    token: str | None = None

    @property
    def session_id(self) -> str:
        """Return the value of the session's cookie."""
        cookie = self.get_cookie("session")
        assert cookie is not None
        return cookie.value

    def twin(self) -> Browser:
        """Return another browser in the same session."""
        other = browser(self.application)
        other.set_cookie("session", self.session_id)
        return other

    def load(self) -> dict[str, Any]:
        """Load the list of keys, keep its CSRF token and return it."""
        response = self.get(KEYS)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.get_json()
        self.token = body["csrf_token"]
        return body

    def status(self, provider: str = "openai") -> dict[str, Any]:
        """Load the list and return one provider's status."""
        rows = self.load()["providers"]
        return next(row for row in rows if row["provider"] == provider)

    def call(self, verb: str, **body: Any) -> TestResponse:
        """Make one of the state-changing calls with the present CSRF token."""
        headers = {"X-CSRFToken": self.token} if self.token else {}
        return self.post(f"{KEYS}/{verb}", json=body, headers=headers)

    def save(self, api_key: str, provider: str = "openai", **body: Any) -> TestResponse:
        """Load the list, then store a key."""
        self.load()
        return self.call("set", provider=provider, api_key=api_key, **body)


def browser(app: Flask) -> Browser:
    """Return a browser with no cookie yet."""
    return Browser(app, Response, use_cookies=True)


def _storage(directory: Path, redis_url: str | None, byok_redis_url: str | None) -> dict[str, Any]:
    if redis_url is not None:
        return {"SESSION_TYPE": "redis", "SESSION_REDIS": limited_redis(redis_url)}
    files = {
        "SESSION_TYPE": "cachelib",
        "SESSION_CACHELIB": FileSystemCache(str(directory / "sessions"), threshold=10_000),
    }
    if byok_redis_url is not None:
        return {**files, "BYOK_REDIS": byok_redis_url}
    return {**files, "BYOK_DATABASE_URL": f"sqlite:///{directory / 'byok.sqlite'}"}


def _add_routes(app: HostApp) -> None:
    @app.get("/plain")
    def plain() -> str:
        return "plain"

    @app.get("/visit")
    def visit() -> str:
        session["visits"] = session.get("visits", 0) + 1
        return str(session["visits"])

    @app.post("/sign-in/<user>")
    def sign_in(user: str) -> str:
        login_user(User(user))
        return "signed in"

    @app.post("/sign-out")
    def sign_out() -> str:
        logout_user()
        return "signed out"

    @app.post("/empty")
    def empty() -> str:
        session.clear()
        if "then" in request.args:
            session["then"] = request.args["then"]
        return "emptied"

    @app.post("/renew")
    def renew() -> str:
        app.session_interface.regenerate(session)  # type: ignore[attr-defined]  # Flask-Session's
        return "renewed"

    for view in (sign_in, sign_out, empty, renew):
        app.csrf.exempt(view)

    @app.get("/used/<provider>")
    def used(provider: str) -> dict[str, str]:
        credential = app.byok.resolve(provider)
        return {"source": credential.source, "fingerprint": fingerprint(credential.api_key)}

    @app.get("/chat/<provider>")
    def chat(provider: str) -> Response:
        message = {"role": "user", "content": request.args.get("message", "hello")}
        chosen = get_provider_with_api_key(provider)
        protocol: Any = request.args.get("protocol", "byok")
        model = request.args.get("model")
        return app.byok.stream_response(chosen, [message], model, protocol=protocol)
