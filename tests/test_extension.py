"""The extension as a host's developer meets it."""

from __future__ import annotations

import base64
import gc
import hashlib
import subprocess
import sys
import weakref
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_session import Session
from sqlalchemy import create_engine, select

from flask_byok import (
    BYOK,
    ConfigurationError,
    Credential,
    Field,
    InvalidFieldError,
    KeyRefusedError,
    MissingCredentialError,
    ProviderSpec,
    key_cleared,
    key_promoted,
    key_rejected,
    key_set,
    key_used,
    key_validated,
)
from flask_byok.accounts.wing import open_accounts
from flask_byok.model.credential import isoformat, utcnow
from flask_byok.model.owner import Caller
from flask_byok.storage.tables import metadata
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.accounts.account_kinds import KEYRING, event_of, make_record
from tests.app import Browser, HostApp, bare, browser, make_app
from tests.keeper import accounts_of


def test_init_app_twice(tmp_path: Path) -> None:
    """An app is set up once."""
    app = bare(tmp_path)
    byok = BYOK(app)
    with pytest.raises(ConfigurationError, match="once"):
        byok.init_app(app)


def test_config_of_a_provider_at_ones_own_address(tmp_path: Path) -> None:
    """The config of a personal endpoint has its base URL, and no field that was left empty."""
    app = make_app(tmp_path, BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_VALIDATE_ON_SET="off")
    app.byok.owner_loader(lambda: "ann")
    address, api_key = "https://llm.example.com/v1", "sk-my-gateways-0001"
    with app.test_request_context():
        app.byok.set("custom", fields={"api_key": api_key, "base_url": address}, persist=True)
        assert app.byok.get_service_config("custom") == {"api_key": api_key, "base_url": address}
        app.byok.set("openai", api_key, persist=True)
        assert app.byok.get_service_config("openai") == {"api_key": api_key}


def contents(url: str) -> dict[str, Any]:
    """Return everything that our tables hold."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = {t.name: connection.execute(select(t)).all() for t in metadata.sorted_tables}
    engine.dispose()
    return found


def try_out(directory: Path, url: str, mode: str) -> Flask:
    """Set an app up on a database, for trying out, without an encryption key."""
    app = bare(directory, BYOK_ENCRYPTION_KEY=None, BYOK_DATABASE_URL=url)
    setattr(app, mode, True)
    Session(app)
    with pytest.warns(UserWarning, match="accounts are kept in memory"):
        BYOK(app)
    return app


@pytest.mark.parametrize("mode", ["debug", "testing"])
def test_a_throw_away_key_leaves_the_database_alone(
    tmp_path: Path, database_url: str, mode: str
) -> None:
    """An app that makes an encryption key up works, and neither reads nor changes a real database's accounts."""
    live = open_accounts(database_url, KEYRING)
    live.put(make_record("system"), event_of())
    before = contents(database_url)
    for number in range(2):
        accounts = accounts_of(try_out(tmp_path / str(number), database_url, mode))
        assert accounts.find(["system"]) == []
        accounts.put(make_record("system"), event_of())
        assert accounts.audit.verify() == []
        accounts.engine.dispose()
    assert contents(database_url) == before
    live.put(make_record("system"), event_of())
    assert live.audit.verify() == []
    assert open_accounts(database_url, KEYRING).canary.secret() == live.canary.secret()
    live.engine.dispose()


def test_two_processes_for_trying_out(tmp_path: Path) -> None:
    """Two processes that each make a key up, as the reloader's do, both keep keys and serve them."""
    script = """
import sys, warnings
from pathlib import Path
from flask_byok import BYOK
from flask_session import Session
from flask_byok.accounts.store import AuditEvent
from flask_byok.web.caller import get_state
from tests.accounts.account_kinds import make_record
from tests.app import bare
app = bare(Path(sys.argv[1]), BYOK_ENCRYPTION_KEY=None, DEBUG=True)
Session(app)
warnings.simplefilter("ignore")
BYOK(app)
accounts = get_state(app).service.accounts.store
for _ in range(20):
    accounts.put(make_record(), AuditEvent("cli", "set"))
assert app.test_client().get("/api/providers/keys").status_code == 200
assert accounts.audit.verify() == []
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [
        ("", 0)
    ] * 2


def test_no_place_for_accounts(tmp_path: Path, redis_url: str) -> None:
    """If the instance folder cannot be written and no database is set, init_app says what to do."""
    (tmp_path / "file").touch()
    app = bare(tmp_path, BYOK_REDIS=redis_url)
    app.instance_path = str(tmp_path / "file" / "instance")
    with pytest.raises(ConfigurationError, match="BYOK_DATABASE_URL"):
        BYOK(app)
    app.config["BYOK_PRECEDENCE"] = ["session", "env"]
    assert BYOK(app)


def in_view(app: HostApp, client: Browser, run: Callable[[], Any]) -> Any:
    """Do something in a view, at this client's request."""
    done: list[Any] = []
    app.view_functions["plain"] = lambda: (done.append(run()), "ok")[1]
    assert client.get("/plain").status_code == 200
    return done[0]


def test_verbs_in_python(app: HostApp, visitor: Browser, fake: FakeProviders) -> None:
    """The verbs do in views what they do over HTTP."""
    api_key = fake.api_key("openai")
    view, byok = partial(in_view, app, visitor), app.byok
    visitor.load()
    assert view(lambda: byok.missing_keys(["openai", "groq"])) == ["openai", "groq"]
    assert view(lambda: byok.set("openai", api_key, label="x"))["label"] == "x"
    assert view(lambda: byok.get_api_key("openai")) == api_key
    assert view(lambda: byok.get_api_keys(["openai", "groq"])) == {"openai": api_key}
    assert view(lambda: byok.get_service_config("openai")) == {"api_key": api_key}
    assert view(lambda: byok.missing_keys(["openai", "groq"])) == ["groq"]
    assert isinstance(view(lambda: byok.resolve("openai")), Credential)
    assert view(lambda: byok.validate("openai")).valid is True
    assert view(lambda: byok.validate("openai", fake.api_key("openai", "bad"))).valid is False
    assert {row["provider"]: row["has_key"] for row in view(byok.list_keys)}["openai"] is True
    assert view(lambda: byok.clear("openai")) == ["session"]
    assert view(lambda: byok.clear("openai")) == []


def test_set_in_python_says_what_was_found(app: HostApp, fake: FakeProviders) -> None:
    """The status comes with the check's result, if there was a check; every option has its effect."""
    app.byok.owner_loader(lambda: "ann")
    user = browser(app)
    user.load()
    view, byok = partial(in_view, app, user), app.byok
    ends, api_key = utcnow() + timedelta(days=3), fake.api_key("openai")
    options = {"label": "x", "persist": True, "expires_at": ends}
    checked = view(lambda: byok.set("openai", api_key, **options))
    unchecked = view(lambda: byok.set("openai", fields={"api_key": api_key}, validate="off"))

    def refuse() -> None:
        with pytest.raises(KeyRefusedError):
            byok.set("openai", fake.api_key("openai", "bad"), validate="require")

    view(refuse)
    assert (checked["validation"]["verdict"], checked["validation"]["valid"]) == ("valid", True)
    assert (checked["source"], checked["label"]) == ("user", "x")
    assert checked["expires_at"] == isoformat(ends)
    assert (unchecked["source"], unchecked["validation"]) == ("session", None)


def test_wrong_words_in_python(app: HostApp, visitor: Browser, fake: FakeProviders) -> None:
    """An unknown word is an error that names the field, and changes nothing."""
    byok, api_key = app.byok, fake.api_key("openai")
    wrong: dict[str, Callable[[], Any]] = {
        "tier": lambda: byok.clear("openai", tier="sesion"),
        "on_conflict": lambda: byok.promote(on_conflict="bogus"),
        "validate": lambda: byok.set("openai", api_key, validate="bogus"),  # type: ignore[arg-type]
        "expires_at": lambda: byok.set("openai", api_key, expires_at="2099-01-01"),  # type: ignore[arg-type]
        "label": lambda: byok.set("openai", api_key, label=f"my {api_key}"),
        "fields": lambda: byok.set("openai", api_key, fields={"api_key": api_key}),
    }

    def fail() -> None:
        for name, call in wrong.items():
            with pytest.raises(InvalidFieldError, match=name):
                call()
        with pytest.raises(TypeError, match="bogus"):
            byok.set("openai", api_key, bogus=1)  # type: ignore[call-arg]

    visitor.save(api_key)
    in_view(app, visitor, fail)
    assert visitor.status("openai")["label"] is None
    assert visitor.status("openai")["has_key"] is True


def test_a_provider_with_other_fields_has_no_api_key(app: HostApp, fake: FakeProviders) -> None:
    """A provider without an API key is left out of several, is an error alone, and does not count as used."""
    fields = (Field(name="id", label="Id"), Field(name="secret", label="Secret"))
    app.byok.register_provider(
        ProviderSpec(id="pair", name="Pair", base_url="https://pair.example", fields=fields)
    )
    app.byok.owner_loader(lambda: "ann")
    pair = {"id": "id-12345678", "secret": "secret-12345678"}

    def use() -> None:
        app.byok.set("pair", fields=pair, validate="off", persist=True)
        assert app.byok.get_api_keys(["pair", "openai"]) == {}
        with pytest.raises(InvalidFieldError, match="api_key"):
            app.byok.get_api_key("pair")
        assert app.byok.get_service_config("pair") == pair

    user = browser(app)
    user.load()
    in_view(app, user, use)
    service = get_state(app).service
    service.traffic.flush()
    assert service.own_records(Caller(user="ann")).stats()["by_provider"]["pair"]["uses"] == 1


def test_require_keys(app: HostApp, visitor: Browser, fake: FakeProviders) -> None:
    """A view that requires keys answers 409 key_missing without them."""

    @app.get("/both")
    @app.byok.require_keys("openai", "groq")
    def both() -> str:
        """Keep this docstring."""
        return "both"

    visitor.save(fake.api_key("openai"))
    answer = visitor.get("/both")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "key_missing")
    assert answer.get_json()["provider"] == "groq"
    visitor.save(fake.api_key("groq"), "groq")
    assert visitor.get("/both").text == "both"
    assert both.__doc__ == "Keep this docstring."


def test_the_operators_keys_serve_code_that_says_so(
    app: HostApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within `as_operator` the operator's keys serve, and no personal key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-operator-0123456789")
    with app.app_context(), app.byok.as_operator():
        assert app.byok.resolve("openai").source == "env"
        with pytest.raises(MissingCredentialError):
            app.byok.resolve("groq")


def test_registered_providers(tmp_path: Path) -> None:
    """A provider registered before or after init_app is offered like the catalog's own."""
    byok = BYOK()
    byok.register_provider(
        ProviderSpec(id="early", name="Early", base_url="https://early.example/v1")
    )
    app = bare(tmp_path)
    byok.init_app(app)
    Session(app)
    byok.register_provider(ProviderSpec(id="late", name="Late", base_url="https://late.example/v1"))
    rows = app.test_client().get("/api/providers/keys").get_json()["providers"]
    assert {"early", "late", "openai"} <= {row["provider"] for row in rows}
    with pytest.raises(ConfigurationError, match="twice"):
        byok.register_provider(ProviderSpec(id="late", name="Again"))


def test_settings_name_providers_in_any_way(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings take ids in any case, with either dash, and aliases; a provider that is named twice is refused."""
    monkeypatch.setenv("XAI_API_KEY", fake.api_key("xai", owner="operator"))
    named = {
        "BYOK_PROVIDERS": ["Grok", " OpenAI", "Azure-OpenAI", "GEMINI"],
        "BYOK_LOCKED_PROVIDERS": ["GROK"],
        "BYOK_BASE_URLS": {"Gemini": fake.base_url("google"), "hugging-face": "http://gateway"},
    }
    app = make_app(tmp_path, **named)
    visitor = browser(app)
    rows = {row["provider"]: row["locked"] for row in visitor.load()["providers"]}
    assert rows == {"xai": True, "openai": False, "azure_openai": False, "google": False}
    assert visitor.save(fake.api_key("google"), "Google-Gemini").status_code == 200
    assert fake.calls_for("google")
    twice = {"gemini": "http://one", "google": "http://two"}
    for config in ({"BYOK_PROVIDERS": ["grok", "xai"]}, {"BYOK_BASE_URLS": twice}):
        with pytest.raises(ConfigurationError, match="twice"):
            make_app(tmp_path, **config)


def test_signals(app: HostApp, visitor: Browser, fake: FakeProviders) -> None:
    """Each signal has safe facts, and the app as its sender."""
    heard: list[tuple[str, dict[str, Any]]] = []
    signals = [key_set, key_cleared, key_validated, key_promoted, key_used, key_rejected]
    for signal in signals:

        def receive(sender: Any, _name: str = signal.name, **facts: Any) -> None:
            assert sender is app
            heard.append((_name, facts))

        signal.connect(receive, app, weak=False)
    api_key = fake.api_key("openai")
    visitor.save(api_key)
    visitor.post("/sign-in/a")
    visitor.load()
    visitor.call("promote")
    visitor.call("validate", provider="openai")
    visitor.get("/used/openai")
    fake.revoke("openai", api_key)
    assert "key_rejected" in visitor.get("/chat/openai").text
    visitor.call("clear", provider="openai")
    names = [name for name, _ in heard]
    assert "key_validated" in names  # at each check, also the one before saving
    assert [name for name in names if name != "key_validated"] == [
        "key_set",
        "key_promoted",
        "key_used",
        "key_used",
        "key_rejected",
        "key_cleared",
    ]
    assert all(facts["provider"] == "openai" for _, facts in heard)
    assert api_key not in repr(heard)


def test_an_app_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    """An app that is gone leaves nothing behind, no database connections either."""
    app = make_app(tmp_path)
    browser(app).load()
    left = [weakref.ref(part) for part in (app, get_state(app).service.sessions)]
    del app
    gc.collect()
    assert [ref() for ref in left] == [None, None]


def test_two_browsers_two_apps_one_extension(tmp_path: Path, fake: FakeProviders) -> None:
    """One BYOK object serves several apps, whose keys are apart."""
    byok = BYOK()
    apps = []
    for secret in ("1", "2"):
        urls = {"openai": fake.base_url("openai")}
        app = bare(tmp_path / secret, BYOK_BASE_URLS=urls, SECRET_KEY=secret)
        Session(app)
        byok.init_app(app)
        apps.append(app)
    first, second = map(browser, apps)
    assert first.save(fake.api_key("openai")).status_code == 200
    assert second.status()["has_key"] is False
    assert first.status()["has_key"] is True


def test_a_host_with_asynchronous_engines_only(tmp_path: Path) -> None:
    """An extension that has no synchronous engine does not stop the app from starting."""

    class Host:
        @property
        def engine(self) -> Any:
            raise KeyError("default")

    app = bare(tmp_path)
    app.extensions["sqlalchemy"] = Host()
    Session(app)
    BYOK(app)
    assert app.test_client().get("/api/providers/keys").status_code == 200


def test_packages_offer_providers_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package's entry point in the group `flask_byok.providers` adds its provider."""

    class Entry:
        def load(self) -> ProviderSpec:
            return ProviderSpec(id="packaged", name="Packaged", base_url="https://packaged.example")

    def entry_points(*, group: str) -> list[Entry]:
        return [Entry()] if group == "flask_byok.providers" else []

    monkeypatch.setattr("flask_byok.wiring.entry_points", entry_points)
    app = bare(tmp_path)
    Session(app)
    BYOK(app)
    assert "packaged" in get_state(app).service.catalog


def test_validate_takes_what_set_takes(tmp_path: Path, fake: FakeProviders) -> None:
    """The verb in Python checks fields and a base URL of one's own, as over HTTP."""
    app = make_app(
        tmp_path, fake, BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_ALLOW_PRIVATE_ENDPOINTS=True
    )
    fields = {"api_key": fake.api_key("custom", "good")}
    with app.app_context(), app.byok.as_operator():
        found = app.byok.validate("custom", fields=fields, base_url=fake.base_url("custom"))
    assert found.verdict == "valid"


def test_an_address_without_its_key_is_not_checked(tmp_path: Path, fake: FakeProviders) -> None:
    """A base URL alone is refused: the key in use goes only to the address that it was saved with."""
    visitor = browser(make_app(tmp_path, fake))
    visitor.save(fake.api_key("openai"))
    fake.clear_calls()
    answer = visitor.call("validate", provider="openai", base_url="https://elsewhere.example/v1")
    assert (answer.status_code, answer.get_json()["code"]) == (422, "endpoint_not_allowed")
    assert fake.calls == []


def test_the_operators_own_server_asks_nobody_for_its_address(
    tmp_path: Path, fake: FakeProviders
) -> None:
    """With an address set for `custom` people bring a key alone, and it goes there."""
    app = make_app(tmp_path, fake, BYOK_BASE_URLS={"custom": fake.base_url("custom")})
    visitor = browser(app)
    assert [f["name"] for f in visitor.status("custom")["fields"]] == ["api_key"]
    assert visitor.save(fake.api_key("custom"), "custom").status_code == 200
    assert {call.provider for call in fake.calls} == {"custom"}


def test_every_use_says_whose_key_served(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that was made with keys names their tiers, also where the view took the bare key; others name none."""
    monkeypatch.setenv("GROQ_API_KEY", fake.api_key("groq"))
    app = make_app(tmp_path, fake)
    app.add_url_rule("/both", view_func=lambda: str(len(app.byok.get_api_keys(["openai", "groq"]))))
    visitor = browser(app)
    visitor.save(fake.api_key("openai"))
    assert visitor.get("/used/openai").headers["X-BYOK-Source"] == "session"
    assert visitor.get("/both").headers["X-BYOK-Source"] == "session, env"
    for path in ("/plain", "/api/providers/keys"):
        assert "X-BYOK-Source" not in visitor.get(path).headers


def test_forgotten_user(tmp_path: Path, fake: FakeProviders, database_url: str) -> None:
    """A later user with a forgotten user's id has none of the keys; the log says who forgot them."""
    app = make_app(tmp_path, fake, BYOK_DATABASE_URL=database_url)
    client = browser(app)
    client.post("/sign-in/7")
    assert client.save(fake.api_key("openai"), persist=True).status_code == 200
    assert client.status("openai")["source"] == "user"
    with app.app_context():
        assert app.byok.forget_user("7") == ["openai"]
        assert app.byok.forget_user("7") == []
    another = browser(app)
    another.post("/sign-in/7")
    assert another.status("openai")["source"] is None
    accounts = accounts_of(app)
    newest = accounts.audit.entries("user:7")[0]
    assert (newest.actor, newest.action, newest.outcome) == ("system", "clear", "done")
    accounts.engine.dispose()
    without = make_app(tmp_path, BYOK_PRECEDENCE=["session", "env"])
    with without.app_context():
        assert without.byok.forget_user("7") == []


def test_longest_times(tmp_path: Path, fake: FakeProviders) -> None:
    """The longest times that can be set work."""
    longest = timedelta(days=36_500)
    app = make_app(tmp_path, fake, BYOK_SESSION_TTL=longest, BYOK_MAX_KEY_LIFETIME=longest)
    client = browser(app)
    assert client.save(fake.api_key("openai")).status_code == 200
    assert client.status("openai")["source"] == "session"


WEAK_KEYS = [
    "00" * 32,
    "5a" * 32,
    base64.urlsafe_b64encode(b"a" * 32).decode(),
    "0123456789abcdef" * 4,
    bytes(range(32)).hex(),
    bytes(range(255, 223, -1)).hex(),
    bytes(range(0, 256, 8)).hex(),
    b"secretsecretsecretsecretsecretse".hex(),
    hashlib.sha256(b"").hexdigest(),
    hashlib.sha256(b"\n").hexdigest(),
    "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=",
]


@pytest.mark.parametrize("weak", WEAK_KEYS)
def test_an_encryption_key_that_is_no_secret_is_refused(
    tmp_path: Path, weak: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A guessable encryption key stops the start and names the command for another; as a fallback it is warned of."""
    with pytest.raises(ConfigurationError, match="flask byok generate-key") as caught:
        BYOK(bare(tmp_path, BYOK_ENCRYPTION_KEY=weak))
    assert weak not in str(caught.value)
    BYOK(bare(tmp_path, BYOK_ENCRYPTION_KEY_FALLBACKS=[weak]))
    assert "BYOK_ENCRYPTION_KEY_FALLBACKS is no secret" in caplog.text
    assert weak not in caplog.text
