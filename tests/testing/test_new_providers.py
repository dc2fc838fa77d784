"""A provider that nobody here has heard of is one row: each door serves it, for each adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask import Response
from flask_session import Session

from docs import catalog_table
from flask_byok import (
    BYOK,
    Auth,
    CheckSpec,
    Field,
    ProviderSpec,
    Rule,
    Verdict,
    get_provider_with_api_key,
)
from flask_byok.testing import FakeProviders
from tests.app import Browser, bare, browser
from tests.cli.host import run

#: What a chat goes to below the base URL, and its body.
MESSAGES = [{"role": "user", "content": "hello"}]
CHATS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("chat/completions", {"model": "m", "messages": MESSAGES}),
    "anthropic": ("v1/messages", {"model": "m", "max_tokens": 9, "messages": MESSAGES}),
    "google": (
        "v1beta/models/m:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    ),
}
ADAPTERS = (*CHATS, "http")


def row(adapter: Any) -> ProviderSpec:
    """Return a provider of this format with an address, a header, a prefix, a check and words of its own."""
    rules = (
        Rule((409,), Verdict.INVALID, "Nobody at {name} knows this key.", contains="no such key"),
        Rule((402,), Verdict.VALID_NO_CREDIT, path="wallet.left", equals=0),
    )
    return ProviderSpec(
        id=f"new_{adapter}",
        name=f"New {adapter}",
        base_url="https://{region}.new.example/api",
        adapter=adapter,
        fields=(
            Field(),
            Field("region", "Region", kind="choice", choices=("north", "south"), default="north"),
        ),
        auth=Auth("X-New-Key", "Key {api_key}"),
        headers={"anthropic-version": "2023-06-01"} if adapter == "anthropic" else {},
        env=(f"NEW_{adapter.upper()}_KEY",),
        prefixes=(f"new-{adapter}-",),
        default_model="" if adapter == "http" else "new-small",
        docs="https://new.example/docs",
        check=CheckSpec(path="/whoami", good="me.id", models_path=None, rules=rules),
    )


@pytest.fixture
def visitor(tmp_path: Path, fake: FakeProviders) -> Browser:
    """Return a visitor of a host that has registered a new provider of each format."""
    byok, rows = BYOK(), [row(adapter) for adapter in ADAPTERS]
    for spec in rows:
        byok.register_provider(spec)
        fake.add_provider(spec)
    app = bare(
        tmp_path,
        BYOK_PROVIDERS=[spec.id for spec in rows],
        BYOK_BASE_URLS=fake.base_urls,
        BYOK_DATABASE_URL=f"sqlite:///{tmp_path / 'byok.sqlite'}",
        BYOK_GATEWAY=True,
    )
    Session(app)
    byok.init_app(app)

    @app.get("/chat/<provider>")
    def chat(provider: str) -> Response:
        return byok.stream_response(get_provider_with_api_key(provider), MESSAGES)

    return browser(app)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_keys_are_checked_by_the_row(visitor: Browser, fake: FakeProviders, adapter: str) -> None:
    """A check knows a good key, a bad one and one without credit by the row's rules; the key goes as the row says."""
    provider = f"new_{adapter}"
    visitor.load()
    for behaviour, verdict in {
        "good": "valid",
        "bad": "invalid",
        "broke": "valid_no_credit",
    }.items():
        key = fake.api_key(provider, behaviour)
        found = visitor.call("validate", provider=provider, api_key=key).get_json()
        assert (behaviour, found["verdict"]) == (behaviour, verdict)
        call = fake.calls_for(provider)[-1]
        assert (call.path, call.headers["x-new-key"]) == (f"/{provider}/api/whoami", f"Key {key}")
        assert "authorization" not in call.headers
    bad = visitor.call("validate", provider=provider, api_key=fake.api_key(provider, "bad"))
    assert bad.get_json()["reason"] == f"Nobody at New {adapter} knows this key."


@pytest.mark.parametrize("adapter", CHATS)
def test_chats_stream(visitor: Browser, fake: FakeProviders, adapter: str) -> None:
    """A chat streams with the person's key, in the row's header and with its default model."""
    provider, key = f"new_{adapter}", fake.api_key(f"new_{adapter}")
    assert visitor.save(key, provider).status_code == 200
    fake.stream_next(provider, "Once", " upon")
    answer = visitor.get(f"/chat/{provider}").text
    texts = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    assert "".join(each.get("text", "") for each in texts) == "Once upon"
    call = fake.calls_for(provider)[-1]
    assert call.api_key == key
    assert "new-small" in f"{call.path}{call.content}"
    fake.refuse_next(provider, "key_rejected")
    assert "key_rejected" in visitor.get(f"/chat/{provider}").text


@pytest.mark.parametrize("adapter", CHATS)
def test_the_gateway_passes_calls(visitor: Browser, fake: FakeProviders, adapter: str) -> None:
    """The provider's own API is behind the gateway, with the person's key put in."""
    provider, key = f"new_{adapter}", fake.api_key(f"new_{adapter}")
    visitor.save(key, provider)
    path, body = CHATS[adapter]
    fake.stream_next(provider, "Passed")
    answer = visitor.post(f"/api/gateway/{provider}/{path}", json=body)
    assert (answer.status_code, "Passed" in answer.text) == (200, True)
    assert fake.calls_for(provider)[-1].api_key == key


def test_a_plain_client_has_the_key(visitor: Browser, fake: FakeProviders) -> None:
    """The client of a service without conversations calls its address with the key in the row's header."""
    key = fake.api_key("new_http")
    visitor.save(key, "new_http")
    with visitor.application.test_request_context(
        headers={"Cookie": f"session={visitor.session_id}"}
    ):
        answer = get_provider_with_api_key("new_http").client.post("/things")
    assert answer.status_code == 200
    assert fake.calls_for("new_http")[-1].headers["x-new-key"] == f"Key {key}"


def test_it_is_listed(
    visitor: Browser, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings page, the commands and the table in the docs show it with its fields and variables."""
    for adapter in ADAPTERS:
        monkeypatch.setenv(f"NEW_{adapter.upper()}_KEY", fake.api_key(f"new_{adapter}"))
    listed = run(visitor.application, "providers").output.splitlines()
    monkeypatch.setattr(catalog_table, "PROVIDERS", [row(adapter) for adapter in ADAPTERS])
    table, page = catalog_table.catalog_table(), visitor.get("/api/providers/settings").text
    for adapter, line in zip(ADAPTERS, listed, strict=True):
        variable = f"NEW_{adapter.upper()}_KEY"
        assert line.split() == [f"new_{adapter}", "New", adapter, "env", variable]
        assert f"`New {adapter} <https://new.example/docs>`__" in table
        assert variable in table
        assert f'data-byok-provider="new_{adapter}"' in page
    assert page.count('<option value="south"') >= len(ADAPTERS)
