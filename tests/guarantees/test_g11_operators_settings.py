"""G11: what the operator set for own calls never reaches a call made with a person's key."""

from __future__ import annotations

import json

import pytest

from flask_byok import get_chat_model_with_api_key
from flask_byok.testing import FakeProviders
from flask_byok.testing.calls import RecordedCall
from tests.app import Browser, HostApp

MARK = "operatorsown"
KEYS = (
    "OPENAI_API_KEY",
    "OPENAI_ADMIN_KEY",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GROQ_API_KEY",
    "XAI_API_KEY",
    "OPENROUTER_API_KEY",
    "AZURE_OPENAI_API_KEY",
)
POISON = {
    **dict.fromkeys(KEYS, f"{MARK}-key-0123456789"),
    "OPENAI_ORG_ID": f"{MARK}-org",
    "OPENAI_ORGANIZATION": f"{MARK}-org",
    "OPENAI_PROJECT_ID": f"{MARK}-project",
    "OPENAI_WEBHOOK_SECRET": f"{MARK}-webhook",
    "OPENAI_BASE_URL": f"http://{MARK}.invalid/v1",
    "OPENAI_API_BASE": f"http://{MARK}.invalid/v1",
    "OPENAI_PROXY": f"http://{MARK}.invalid:3128",
    "OPENAI_CUSTOM_HEADERS": f"X-{MARK}: {MARK}",
    "ANTHROPIC_BASE_URL": f"http://{MARK}.invalid",
    "ANTHROPIC_API_URL": f"http://{MARK}.invalid",
    "ANTHROPIC_CUSTOM_HEADERS": f"X-{MARK}: {MARK}",
    "ANTHROPIC_PROXY": f"http://{MARK}.invalid:3128",
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
    "GOOGLE_GENAI_USE_ENTERPRISE": "true",
    "GOOGLE_CLOUD_PROJECT": f"{MARK}-project",
    "GOOGLE_CLOUD_LOCATION": f"{MARK}-location",
    "GOOGLE_GEMINI_BASE_URL": f"http://{MARK}.invalid",
    "GOOGLE_VERTEX_BASE_URL": f"http://{MARK}.invalid",
    "HTTP_PROXY": f"http://{MARK}.invalid:3128",
    "HTTPS_PROXY": f"http://{MARK}.invalid:3128",
    "ALL_PROXY": f"http://{MARK}.invalid:3128",
    "http_proxy": f"http://{MARK}.invalid:3128",
    "https_proxy": f"http://{MARK}.invalid:3128",
    "all_proxy": f"http://{MARK}.invalid:3128",
}
PROVIDERS = ("openai", "anthropic", "google", "groq", "xai", "openrouter")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set everything that the SDKs read from the environment."""
    for name, value in POISON.items():
        monkeypatch.setenv(name, value)


def _everything(call: RecordedCall) -> str:
    parts = [
        call.path,
        call.api_key,
        dict(call.headers),
        dict(call.query),
        dict(call.cookies),
        call.body,
    ]
    return json.dumps(parts).lower()


def _assert_clean(calls: list[RecordedCall], api_key: str) -> None:
    assert calls
    for call in calls:
        assert call.api_key == api_key
        assert MARK not in _everything(call)
        names = {
            name for name in call.headers if name.startswith(("openai-", "x-goog-user-project"))
        }
        assert names == set()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_checks_and_streams(visitor: Browser, fake: FakeProviders, provider: str) -> None:
    """A check and a stream with a person's key carry that key and nothing of the operator's."""
    api_key = fake.api_key(provider)
    assert visitor.save(api_key, provider).status_code == 200
    assert visitor.call("validate", provider=provider).get_json()["valid"] is True
    assert "event: done" in visitor.get(f"/chat/{provider}").text
    assert len(fake.calls) >= 3
    _assert_clean(fake.calls, api_key)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_langchain(app: HostApp, visitor: Browser, fake: FakeProviders, provider: str) -> None:
    """So does a LangChain model."""
    model = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}[provider]

    @app.get("/ask")
    def ask() -> str:
        return str(get_chat_model_with_api_key(provider, model).invoke("hello").content)

    api_key = fake.api_key(provider)
    visitor.save(api_key, provider, validate="off")
    assert visitor.get("/ask").status_code == 200
    _assert_clean(fake.calls, api_key)


def test_what_is_searched_for_would_be_found(fake: FakeProviders) -> None:
    """The SDK by itself does send what the operator set: the search above can fail."""
    import openai

    fake.add_key("openai", POISON["OPENAI_API_KEY"])
    with pytest.MonkeyPatch.context() as patch:
        for name in POISON:
            if "proxy" in name.lower():
                patch.delenv(name)
        client = openai.OpenAI(base_url=fake.base_url("openai"), max_retries=0)
        client.models.list()
        client.close()
    (call,) = fake.calls
    assert MARK in _everything(call)
    with pytest.raises(AssertionError):
        _assert_clean([call], fake.api_key("openai"))
