"""Pasted keys over HTTP and in Python, and the warning that says whose a key looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flask_byok.catalog import ProviderSpec
from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp, browser, fingerprint, make_app, problem_of
from tests.keeper import OWN, Keeper, keeper

ACME = ProviderSpec(id="acme", name="Acme", base_url="https://acme.example", prefixes=("acme_",))
GROQ = [{"code": "looks_like", "provider": "groq"}]


@pytest.fixture
def host(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Make a host with a provider of its own."""
    app = make_app(tmp_path, fake)
    app.byok.register_provider(ACME)
    return app


@pytest.fixture
def visitor(host: HostApp) -> Browser:
    """Return a browser with no session yet."""
    return browser(host)


def test_a_pasted_line_is_saved_as_its_key(visitor: Browser, fake: FakeProviders) -> None:
    """While the provider is away too, what is saved of a pasted line is the key alone."""
    api_key = fake.api_key("openai")
    for around in ('OPENAI_API_KEY="{}"', '{{"api_key": "{}"}}', "{},"):
        saved = visitor.save(around.format(api_key), validate="off").get_json()
        assert saved["warnings"] == []
        assert visitor.get("/used/openai").get_json()["fingerprint"] == fingerprint(api_key)
    refused = visitor.save(f"{api_key}\n{api_key[:-2]}")
    assert problem_of(refused) == (422, "malformed_api_key")
    assert "several keys" in refused.get_json()["detail"]
    assert api_key[8:20] not in refused.text


def test_a_warning_says_whose_a_key_looks_like(visitor: Browser, fake: FakeProviders) -> None:
    """A key that looks like another's is stored as the check says, with a warning beside the answer."""
    groq = fake.api_key("groq")
    saved = visitor.save(groq, validate="off")
    assert (saved.status_code, saved.get_json()["warnings"]) == (200, GROQ)
    assert visitor.get("/used/openai").get_json()["fingerprint"] == fingerprint(groq)
    named = visitor.save("GROQ_API_KEY=0123456789abcdef0123", validate="off")
    assert named.get_json()["warnings"] == GROQ
    checked = visitor.call("validate", provider="openai", api_key=groq).get_json()
    assert (checked["verdict"], checked["warnings"]) == ("wrong_provider", GROQ)
    assert visitor.call("validate", provider="openai").get_json()["warnings"] == []


def test_a_registered_providers_key_is_told(visitor: Browser, fake: FakeProviders) -> None:
    """A provider that the host registered is named too, in the warning and once the key is refused."""
    acme = "acme_0123456789abcdef"
    checked = visitor.save(acme, validate="off").get_json()["warnings"]
    assert checked == [{"code": "looks_like", "provider": "acme"}]
    found = visitor.call("validate", provider="openai", api_key=acme).get_json()
    assert (found["verdict"], "Acme" in found["reason"]) == ("wrong_provider", True)


def test_records_warn_too(host: HostApp, fake: FakeProviders) -> None:
    """A stored key's creation and replacement answer with the warning; a change beside it has none."""
    ann, groq = keeper(host, "ann"), fake.api_key("groq")
    body: dict[str, Any] = {"provider": "openai", "api_key": groq, "validate": "off"}
    made = ann.ask("POST", OWN, body).get_json()
    assert made["warnings"] == GROQ
    path = f"{OWN}/{made['id']}"
    assert ann.ask("PATCH", path, {"label": "mine"}).get_json()["warnings"] == []
    assert ann.ask("PATCH", path, {"api_key": " "}).get_json()["warnings"] == []
    change = {"api_key": f"key: {groq}", "validate": "off"}
    assert ann.ask("PUT", path, change).get_json()["warnings"] == GROQ
    assert_used(ann, groq)


def assert_used(person: Keeper, api_key: str) -> None:
    """Check which key serves."""
    assert person.get("/used/openai").get_json()["fingerprint"] == fingerprint(api_key)


def test_python_says_whose_it_looks_like(host: HostApp, fake: FakeProviders) -> None:
    """In Python the warning is in what ``set`` returns, and ``looks_like`` asks nobody."""
    groq = fake.api_key("groq")

    @host.post("/set")
    def set_here() -> dict[str, Any]:
        return {"saved": host.byok.set("openai", f"X_KEY={groq}", validate="off")["warnings"]}

    host.csrf.exempt(set_here)
    client = browser(host)
    client.load()
    fake.clear_calls()
    assert client.post("/set").get_json() == {"saved": GROQ}
    with host.app_context():
        assert host.byok.looks_like("openai", groq) == "groq"
        assert host.byok.looks_like("openai", fields={"api_key": groq}) == "groq"
        assert host.byok.looks_like("groq", groq) is None
    assert fake.calls == []


def test_the_form_shows_the_warning(tmp_path: Path, fake: FakeProviders) -> None:
    """Without a script the next page says whose key it looks like, also of a provider that is switched off."""
    visitor = browser(make_app(tmp_path, fake, BYOK_PROVIDERS=["openai"]))
    form = {"provider": "openai", "api_key": fake.api_key("groq")}
    form["csrf_token"] = visitor.load()["csrf_token"]
    for _ in range(2):
        fake.answer_next("openai", 503)
    for action, said in (("save", "Key saved."), ("validate", "OpenAI: ")):
        answer = visitor.post(f"/api/providers/settings/{action}", data=form)
        assert "byok_looks_like=groq" in answer.location
        page = visitor.get(answer.location).text
        assert said in page
        assert "This looks like a key for Groq." in page
