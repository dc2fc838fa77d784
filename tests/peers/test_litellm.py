"""The product at LiteLLM's proxy, and Node.js clients through it, with fake providers behind it.

All tests of the proxy are in this file, because each process that uses it starts its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flask_byok import get_provider_with_api_key
from flask_byok.errors import ProviderError, ProviderUnavailableError
from flask_byok.providers import BaseProvider
from tests.app import HostApp, browser, make_app

from .callers import final, run_client
from .servers import LiteLLM

HELLO = [{"role": "user", "content": "hello"}]
WRONG_KEY = "sk-litellm-wrong-0000000000000000"
#: Each model on OpenAI's wire, and each wire with its own provider's model.
ROUTES = [
    *(("openai", upstream) for upstream in LiteLLM.MODELS),
    ("anthropic", "anthropic"),
    ("google", "google"),
]


@pytest.fixture
def app(tmp_path: Path, litellm: LiteLLM) -> HostApp:
    """Return a host whose providers are all behind the proxy."""
    return make_app(tmp_path, BYOK_BASE_URLS=litellm.base_urls)


@pytest.fixture
def make(app: HostApp) -> Any:
    """Return a function that makes a provider object at the proxy."""

    def make(provider: str, api_key: str = LiteLLM.MASTER_KEY) -> BaseProvider:
        with app.app_context():
            return get_provider_with_api_key(provider, api_key, max_retries=0)

    return make


@pytest.mark.parametrize(("wire", "upstream"), ROUTES)
def test_a_chat_through_the_proxy_gives_the_providers_text(
    make: Any, litellm: LiteLLM, wire: str, upstream: str
) -> None:
    """On each wire that the proxy speaks, and for each provider behind it, the text arrives whole."""
    text = "".join(make(wire).stream_chat(HELLO, litellm.MODELS[upstream]))
    assert text == litellm.upstream.reply_text(upstream, "hello")
    assert [call.provider for call in litellm.upstream.calls] == [upstream]


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_the_proxys_own_key_is_checked(app: HostApp, litellm: LiteLLM, wire: str) -> None:
    """The master key is valid. Another is unchecked: without a database, LiteLLM does not say that it is wrong."""
    visitor = browser(app)
    visitor.load()
    verdicts = [
        visitor.call("validate", provider=wire, api_key=api_key).get_json()["verdict"]
        for api_key in (litellm.MASTER_KEY, WRONG_KEY)
    ]
    assert verdicts == ["valid", "unchecked"]
    assert litellm.upstream.calls == []


@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_a_refusal_from_behind_the_proxy_is_not_the_keys_fault(
    make: Any, litellm: LiteLLM, status: int
) -> None:
    """The proxy passes on what its own key met; the person's key for the proxy is not called rejected."""
    litellm.upstream.answer_next("openai", status, {"error": {"message": "No.", "code": "no"}})
    with pytest.raises(ProviderError):
        list(make("openai").stream_chat(HELLO, litellm.MODELS["openai"]))


@pytest.mark.parametrize("upstream", LiteLLM.MODELS)
@pytest.mark.parametrize("ending", ["error-midstream", "fail-midstream"])
def test_a_stream_that_fails_behind_the_proxy_is_an_error(
    make: Any, litellm: LiteLLM, upstream: str, ending: str
) -> None:
    """An error event or a broken connection behind the proxy ends the chat with an error, after its first words."""
    pieces: list[str] = []
    messages = [{"role": "user", "content": ending}]
    with pytest.raises(ProviderUnavailableError):
        pieces.extend(make("openai").stream_chat(messages, litellm.MODELS[upstream]))
    assert litellm.upstream.reply_text(upstream, ending).startswith("".join(pieces))


@pytest.mark.parametrize("upstream", LiteLLM.MODELS)
def test_openais_node_client_reads_our_fakes_through_the_proxy(
    litellm: LiteLLM, upstream: str
) -> None:
    """openai-node, LiteLLM and the fake providers understand each other without us."""
    lines = run_client(
        "openai_chat",
        litellm.base_urls["openai"],
        api_key=litellm.MASTER_KEY,
        model=litellm.MODELS[upstream],
    )
    message = final(lines)["choices"][0]["message"]
    assert message["content"] == litellm.upstream.reply_text(upstream, "hello")
