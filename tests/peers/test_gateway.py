"""Clients for Node.js, and LiteLLM in Python, with the gateway as their base URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_byok.testing import FakeProviders
from tests.guarantees.wire import served
from tests.web.gateway_host import CHATS, GATEWAY, gateway_app

from .callers import error, final, run_client_often
from .test_clients import asking, calls_of, text_of

pytestmark = pytest.mark.usefixtures("peers")

#: Script, the provider that answers, the base URL below the gateway, and a model.
CLIENTS = [
    pytest.param("openai_chat", "openai", "openai", "gpt-4o-mini", id="openai"),
    pytest.param("openai_chat", "anthropic", "v1", "anthropic/claude-haiku-4-5", id="openai-v1"),
    pytest.param("ai_openai", "openai", "openai", "gpt-4o-mini", id="ai-sdk"),
    pytest.param("ai_openai", "google", "v1", "google/gemini-2.5-flash", id="ai-sdk-v1"),
    pytest.param("anthropic_messages", "anthropic", "anthropic", "claude-haiku-4-5", id="anthropic"),
    pytest.param("google_generate", "google", "google", "gemini-2.5-flash", id="google"),
]  # fmt: skip


@pytest.fixture
def url(tmp_path: Path, fake: FakeProviders) -> Iterator[str]:
    """Serve a host to ann and bob, who have keys for each wire, bob's wrong ones; return the gateway's address."""
    app = gateway_app(tmp_path, fake)
    for person, behaviour in (("ann", "good"), ("bob", "bad")):
        with app.app_context(), app.byok.acting_for(person):
            for provider in CHATS:
                app.byok.set(provider, fake.api_key(provider, behaviour), validate="off")
    with served(app) as port:
        yield f"http://127.0.0.1:{port}{GATEWAY}"


@pytest.mark.parametrize(("script", "provider", "where", "model"), CLIENTS)
def test_a_client_for_node(
    url: str, fake: FakeProviders, script: str, provider: str, where: str, model: str
) -> None:
    """A streamed answer, tool calls, a limit and a call of somebody without a key are read as what they are."""
    fake.stream_next(provider, "Hello", ", you.")
    fake.stream_next(provider, tool_calls=[("call_1", "weather", {"city": "Köln"})])
    call = {"api_key": "token-of-ann", "model": model, **asking(script, "hello")}
    said, called, keyless = run_client_often(
        script, f"{url}/{where}", call, call, {**call, "api_key": "token-of-eve"}
    )
    assert text_of(script, final(said)) == "Hello, you."
    assert calls_of(script, final(called)) == [("weather", {"city": "Köln"})]
    assert error(keyless)["status"] == 409
    fake.refuse_next(provider, "provider_rate_limited", 21)
    [limited] = run_client_often(script, f"{url}/{where}", call)
    assert error(limited)["status"] == 429
    assert {each.api_key for each in fake.calls_for(provider)} == {fake.api_key(provider)}


#: Where LiteLLM finds each wire: its name of the model, and the base URL below the gateway.
LITELLM = {
    "openai": ("openai/gpt-4o-mini", "/openai"),
    "anthropic": ("anthropic/claude-haiku-4-5", "/anthropic"),
    "google": ("gemini/gemini-2.5-flash", "/google/v1beta"),
    "v1": ("openai/anthropic/claude-haiku-4-5", "/v1"),
}


def test_litellm(url: str, fake: FakeProviders) -> None:
    """LiteLLM's client reads whole and streamed chats of each wire, a wrong key and a missing one as what they are."""
    calls = [
        {"model": model, "api_base": where, "api_key": f"token-of-{person}", "stream": stream}
        for model, where in LITELLM.values()
        for person, stream in [("ann", False), ("ann", True), ("bob", False), ("eve", True)]
    ]
    lines = iter(run_client_often("litellm_chat.py", url, *calls))
    for wire in LITELLM:
        provider = "anthropic" if wire == "v1" else wire
        for said in (next(lines), next(lines)):
            assert text_of("openai_chat", final(said)) == fake.reply_text(provider, "hello")
        refused, keyless = error(next(lines)), error(next(lines))
        # Anthropic's refusal has marked bob's key before the last wire asks for it: nothing is sent.
        name, status = ("APIError", 409) if wire == "v1" else ("AuthenticationError", 401)
        assert (refused["name"], refused["status"]) == (name, status)
        assert keyless["status"] == 409
        assert "No API key for" in keyless["message"]
    # The last one is the check of the refused key, as the address is the operator's.
    people = [fake.api_key("openai", behaviour) for behaviour in ("good", "good", "bad", "bad")]
    assert [call.api_key for call in fake.calls_for("openai")] == people
