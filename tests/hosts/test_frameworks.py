"""The hosts of "In your framework" in the documentation: each runs, keeps keys and tells errors in its own way."""

from __future__ import annotations

import importlib.util
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from cachelib import FileSystemCache
from flask import Flask, session
from flask.testing import FlaskClient
from flask_security.utils import hash_password
from flask_session import Session
from werkzeug.test import TestResponse

from flask_byok import BYOK, ByokError
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import ENCRYPTION_KEY, KEYS, bare, problem_of

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "hosts"
SITE = "https://host.example"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an example write its files into a folder of its own."""
    monkeypatch.chdir(tmp_path)


def _host(name: str, directory: Path, fake: FakeProviders, **config: Any) -> Flask:
    """Return the app of an example, made afresh: some frameworks keep what belongs to one app in the module.

    :param config: settings that the framework needs.
    """
    spec = importlib.util.spec_from_file_location(f"host_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app: Flask = module.create_app(
        {
            "SECRET_KEY": "a host's own secret",
            "SESSION_TYPE": "cachelib",
            "SESSION_CACHELIB": FileSystemCache(str(directory / "sessions"), threshold=0),
            "BYOK_ENCRYPTION_KEY": ENCRYPTION_KEY,
            "BYOK_DATABASE_URL": f"sqlite:///{directory / 'byok.sqlite'}",
            "BYOK_BASE_URLS": {"openai": fake.base_urls["openai"]},
            "SQLALCHEMY_DATABASE_URI": f"sqlite:///{directory / 'host.db'}",
            **config,
        }
    )
    return app


class _Visitor:
    """A browser's side of a host, with the token that the list of keys brings.

    :param under: the path that the app is under.
    """

    def __init__(self, client: FlaskClient, under: str = "") -> None:
        self.client, self.under = client, under

    def get(self, path: str) -> TestResponse:
        return self.client.get(f"{self.under}{path}", base_url=SITE)

    @property
    def token(self) -> str:
        return str(self.get(KEYS).get_json()["csrf_token"])

    def post(self, path: str, **options: Any) -> TestResponse:
        headers = {"X-CSRFToken": self.token, "Referer": f"{SITE}/"}
        return self.client.post(f"{self.under}{path}", base_url=SITE, headers=headers, **options)

    def save(self, api_key: str, **options: Any) -> TestResponse:
        body = {"provider": "openai", "api_key": api_key, **options}
        return self.post(f"{KEYS}/set", json=body)


def _said(answer: TestResponse) -> str:
    """Return the text of a chat's answer, whole or in events."""
    if answer.is_json:
        return str(answer.get_json()["answer"])
    return "".join(re.findall(r'(?<="text":")[^"]*', answer.text))


@pytest.mark.parametrize(
    ("name", "under", "path"),
    [
        ("restx", "", "/chat"),
        ("smorest", "", "/chat"),
        ("apiflask_host", "", "/chat"),
        ("appbuilder", "", "/api/v1/chat/"),
        ("async_views", "", "/chat"),
        ("talisman", "", "/chat"),
        ("several_apps", "", "/chat"),
        ("several_apps", "/desk", "/chat"),
    ],
)
def test_framework_tells_problems_and_uses_the_persons_key(
    name: str, under: str, path: str, tmp_path: Path, byok_fake_providers: FakeProviders
) -> None:
    """Without a key a chat answers 409 with our code, with a key it uses that, in every framework."""
    fake = byok_fake_providers
    visitor = _Visitor(_host(name, tmp_path, fake).test_client(), under)
    missing = visitor.post(path, json=HELLO)
    assert (missing.status_code, missing.get_json()["code"]) == (409, "key_missing")
    api_key = fake.api_key("openai", "good")
    assert visitor.save(api_key).status_code == 200
    answer = visitor.post(path, json=HELLO)
    assert (answer.status_code, answer.headers["X-BYOK-Source"]) == (200, "session")
    assert fake.reply_text("openai", "hello") in _said(answer)
    assert fake.calls_for("openai")[-1].api_key == api_key
    unknown = visitor.post(f"{KEYS}/set", json={"provider": "nobody", "api_key": api_key})
    assert problem_of(unknown) == (404, "unknown_provider")


@pytest.mark.parametrize(
    ("path", "place"),
    [(f"{KEYS}/set", {}), (f"{KEYS}/set", {"persist": True}), ("/api/admin/keys", {})],
)
def test_two_apps_at_one_address_keep_their_own_keys(
    path: str, place: dict[str, bool], tmp_path: Path, byok_fake_providers: FakeProviders
) -> None:
    """A session's, an account's or a shared key of one app serves in no other, for a browser and user id in both."""
    app = _host("several_apps", tmp_path, byok_fake_providers)
    loaders = get_state(app).loaders
    loaders.owner, loaders.admin = lambda: "7", lambda: True
    shop = _Visitor(app.test_client())
    desk = _Visitor(shop.client, "/desk")
    key = {"provider": "openai", "api_key": byok_fake_providers.api_key("openai", "good")}
    assert shop.post(path, json=key | place).status_code in (200, 201)
    assert desk.post("/chat", json=HELLO).status_code == 409
    assert shop.post("/chat", json=HELLO).status_code == 200


def test_a_session_of_one_app_is_none_of_the_other(
    tmp_path: Path, byok_fake_providers: FakeProviders
) -> None:
    """The cookie of one app, sent as that of the other, is no session there."""
    app = _host("several_apps", tmp_path, byok_fake_providers)
    get_state(app).loaders.owner = lambda: session.get("user")
    app.add_url_rule("/in", view_func=lambda: str(session.update(user="7")))
    shop = _Visitor(app.test_client())
    shop.get("/in")
    assert shop.get(KEYS).get_json()["authenticated"]
    cookie = shop.client.get_cookie("shop", "host.example")
    assert cookie is not None
    shop.client.set_cookie("session", cookie.value, domain="host.example", path="/desk")
    assert not _Visitor(shop.client, "/desk").get(KEYS).get_json()["authenticated"]


@pytest.mark.parametrize(
    ("second", "config", "is_noticed"),
    [
        ("desk", {}, True),
        ("shop", {}, False),
        ("desk", {"BYOK_DATABASE_URL": "sqlite:///desk-keys.sqlite3"}, False),
        ("desk", {"BYOK_PRECEDENCE": "session"}, False),
    ],
)
def test_two_apps_on_one_default_file_are_noticed(
    second: str,
    config: dict[str, str],
    is_noticed: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has the line to write if the default is one file for two apps, and nothing about one app made twice."""
    apps = []
    for name, more in (("shop", {}), (second, config)):
        app = bare(tmp_path, **more)
        app.name = name
        Session(app)
        BYOK(app)
        apps.append(app)
    line = "app.config['BYOK_DATABASE_URL'] = 'sqlite:///desk.sqlite3'"
    assert (line in caplog.text) == is_noticed


def test_talisman_page_names_its_nonce(tmp_path: Path, byok_fake_providers: FakeProviders) -> None:
    """Under Flask-Talisman the page's script has the nonce of the policy in the same answer's header."""
    page = _Visitor(_host("talisman", tmp_path, byok_fake_providers).test_client()).get("/")
    nonce = re.search(r"'nonce-([^']+)'", page.headers["Content-Security-Policy"])
    assert nonce is not None
    assert f'nonce="{nonce[1]}"' in page.text


@pytest.mark.parametrize(
    ("name", "asked", "mimetype"),
    [
        ("restx", {"json": HELLO}, "application/problem+json"),
        ("smorest", {"json": HELLO}, "application/problem+json"),
        ("apiflask_host", {"json": HELLO}, "application/problem+json"),
        ("forms", {"data": {"question": "hello"}}, "text/html"),
    ],
)
def test_framework_tells_of_a_store_that_is_away(
    name: str,
    asked: dict[str, Any],
    mimetype: str,
    tmp_path: Path,
    byok_fake_providers: FakeProviders,
) -> None:
    """The answer is 503 in the host's own form, and says when to try again."""
    away = "postgresql://127.0.0.1:1/away"
    app = _host(name, tmp_path, byok_fake_providers, BYOK_DATABASE_URL=away)
    answer = app.test_client().post("/chat", base_url=SITE, **asked)
    assert (answer.status_code, answer.mimetype) == (503, mimetype)
    assert answer.headers["Retry-After"] == "1"
    assert "The key store is not available right now." in answer.text


def test_form_host_shows_the_problem_on_its_page(
    tmp_path: Path, byok_fake_providers: FakeProviders
) -> None:
    """A host of plain forms says on its page that a key is missing, and that the provider does not answer."""
    nowhere = {"openai": "http://127.0.0.1:1"}
    visitor = _Visitor(
        _host("forms", tmp_path, byok_fake_providers, BYOK_BASE_URLS=nowhere).test_client()
    )
    for status, sentence in (
        (409, "No API key for OpenAI is configured."),
        (502, "The provider's server refused the connection"),
    ):
        answer = visitor.post("/chat", data={"question": "hello"})
        assert (answer.status_code, answer.mimetype) == (status, "text/html")
        assert f'<p role="alert">{sentence}' in unescape(answer.text)
        visitor.save(byok_fake_providers.api_key("openai", "good"))


def test_handler_of_the_hosts_own_stays(tmp_path: Path) -> None:
    """A host that handles ByokError itself does so whether it says so before or after BYOK(app)."""

    def before(error: ByokError) -> tuple[str, int]:
        return f"ours: {error.code}", 418

    app = bare(tmp_path, BYOK_DATABASE_URL=f"sqlite:///{tmp_path / 'byok.sqlite'}")
    Session(app)
    app.register_error_handler(ByokError, before)
    byok = BYOK(app)
    app.add_url_rule("/used", view_func=lambda: byok.get_api_key("openai"))
    assert app.test_client().get("/used").text == "ours: key_missing"


def test_subpath_is_in_every_address(tmp_path: Path, byok_fake_providers: FakeProviders) -> None:
    """Behind a proxy that strips a path, script, style and calls of the page are below that path."""
    app = _host("subpath", tmp_path, byok_fake_providers)
    page = app.test_client().get("/", headers={"X-Forwarded-Prefix": "/chat"}).text
    ours = re.findall(r'(?:src|href|action)="([^"]*providers[^"]*)"', page)
    assert ours
    assert [address for address in ours if not address.startswith("/chat/api/")] == []


def test_appbuilders_user_has_an_account(
    tmp_path: Path, byok_fake_providers: FakeProviders
) -> None:
    """A person who signs in to Flask-AppBuilder keeps a key in the account, and another person does not have it."""
    app = _host("appbuilder", tmp_path, byok_fake_providers)
    with app.app_context():
        security = app.appbuilder.sm  # type: ignore[attr-defined]  # set by Flask-AppBuilder
        role = security.find_role("Admin")
        for name in ("ada", "grace"):
            security.add_user(name, name, "X", f"{name}@host.example", role, "a password")

    def signed_in(name: str) -> _Visitor:
        visitor = _Visitor(app.test_client())
        form = {"username": name, "password": "a password", "csrf_token": visitor.token}
        visitor.post("/login/", data=form)
        assert visitor.get(KEYS).get_json()["authenticated"]
        return visitor

    ada, grace = signed_in("ada"), signed_in("grace")
    assert ada.save(byok_fake_providers.api_key("openai", "good"), persist=True).status_code == 200
    assert signed_in("ada").post("/api/v1/chat/", json=HELLO).headers["X-BYOK-Source"] == "user"
    assert grace.post("/api/v1/chat/", json=HELLO).status_code == 409


def test_new_password_of_flask_security_keeps_the_account(
    tmp_path: Path, byok_fake_providers: FakeProviders
) -> None:
    """A person of Flask-Security keeps a key in the account, changes the password, and signs in to the same key."""
    app = _host(
        "security",
        tmp_path,
        byok_fake_providers,
        SECURITY_PASSWORD_SALT="made up",
        SECURITY_PASSWORD_HASH="pbkdf2_sha512",
        SECURITY_CHANGEABLE=True,
        SECURITY_SEND_PASSWORD_CHANGE_EMAIL=False,
    )
    with app.app_context():
        app.extensions["sqlalchemy"].create_all()
        users = app.extensions["security"].datastore
        for name in ("ada", "grace"):
            users.create_user(email=f"{name}@example.com", password=hash_password("long enough"))
        users.commit()

    def signed_in(name: str, password: str) -> _Visitor:
        visitor = _Visitor(app.test_client())
        form = {"email": f"{name}@example.com", "password": password, "csrf_token": visitor.token}
        visitor.post("/login", data=form)
        assert visitor.get(KEYS).get_json()["authenticated"]
        return visitor

    ada = signed_in("ada", "long enough")
    assert ada.save(byok_fake_providers.api_key("openai", "good"), persist=True).status_code == 200
    change = {"password": "long enough", "csrf_token": ada.token}
    change |= dict.fromkeys(("new_password", "new_password_confirm"), "another one")
    assert ada.post("/change", data=change).status_code == 302
    for person in (ada, signed_in("ada", "another one")):
        assert person.post("/chat", json=HELLO).headers["X-BYOK-Source"] == "user"
    grace = signed_in("grace", "long enough")
    assert problem_of(grace.post("/chat", json=HELLO)) == (409, "key_missing")
