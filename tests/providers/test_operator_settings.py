"""What the operator set for the SDKs stays out of calls with people's keys."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flask_byok.errors import ConfigurationError
from flask_byok.providers.base import IsolatedClient
from flask_byok.testing import FakeProviders
from flask_byok.testing.calls import RecordedCall

from .conftest import Make

HELLO = [{"role": "user", "content": "Hello"}]
NOWHERE = "http://poison.invalid"

# Every variable that the SDKs' sources read and that could change a call.
POISON = {
    "OPENAI_API_KEY": "sk-poison-0123456789",
    "OPENAI_ADMIN_KEY": "sk-admin-poison",
    "OPENAI_API_BASE": NOWHERE,
    "OPENAI_BASE_URL": NOWHERE,
    "OPENAI_CUSTOM_HEADERS": "X-Poison: 1\nauthorization: Bearer poison\nContent-Type: a/poison",
    "OPENAI_ORG_ID": "org-poison",
    "OPENAI_ORGANIZATION": "org-poison",
    "OPENAI_PROJECT_ID": "proj_poison",
    "OPENAI_PROXY": NOWHERE,
    "OPENAI_WEBHOOK_SECRET": "poison",
    "ANTHROPIC_API_KEY": "sk-ant-poison",
    "ANTHROPIC_API_URL": NOWHERE,
    "ANTHROPIC_AUTH_TOKEN": "poison",
    "ANTHROPIC_BASE_URL": NOWHERE,
    "ANTHROPIC_CUSTOM_HEADERS": "X-Poison: 1\nAuthorization: Bearer poison\nx-api-key: poison",
    "ANTHROPIC_FEDERATION_RULE_ID": "poison",
    "ANTHROPIC_IDENTITY_TOKEN": "poison",
    "ANTHROPIC_ORGANIZATION_ID": "poison",
    "ANTHROPIC_PROFILE": "poison",
    "ANTHROPIC_PROXY": NOWHERE,
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": "poison",
    "ANTHROPIC_WORKSPACE_ID": "poison",
    "GEMINI_API_KEY": "poison",
    "GOOGLE_API_KEY": "poison",
    "GOOGLE_API_USE_MTLS_ENDPOINT": "always",
    "GOOGLE_CLOUD_LOCATION": "poison",
    "GOOGLE_CLOUD_PROJECT": "poison",
    "GOOGLE_GEMINI_BASE_URL": NOWHERE,
    "GOOGLE_GENAI_API_VERSION": "poison",
    "GOOGLE_GENAI_CLIENT_MODE": "replay",
    "GOOGLE_GENAI_REPLAYS_DIRECTORY": "/poison",
    "GOOGLE_GENAI_REPLAY_ID": "poison",
    "GOOGLE_GENAI_USE_ENTERPRISE": "true",
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
    "GOOGLE_VERTEX_BASE_URL": NOWHERE,
    "LANGSMITH_API_KEY": "lsv2_poison",
    "LANGSMITH_GATEWAY": NOWHERE,
    "HTTP_PROXY": NOWHERE,
    "HTTPS_PROXY": NOWHERE,
    "ALL_PROXY": NOWHERE,
    "SSL_CERT_FILE": "/poison",
    "SSL_CERT_DIR": "/poison",
}


@pytest.fixture
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in POISON.items():
        monkeypatch.setenv(name, value)


def everything(call: RecordedCall) -> str:
    """Return all that was sent."""
    return f"{call.path} {call.headers} {call.query} {call.content}".lower()


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "groq", "custom"])
def test_nothing_of_the_environment_is_in_a_call(
    fake: FakeProviders, make: Make, provider: str
) -> None:
    """With every variable poisoned, a chat has the person's key and no poison."""
    api_key = fake.api_key(provider)
    assert list(make(provider, api_key).stream_chat(HELLO, "some-model"))
    (call,) = fake.calls
    assert call.api_key == api_key
    assert "poison" not in everything(call)
    assert call.headers["content-type"] == "application/json"
    assert (
        not {"openai-organization", "openai-project", "x-goog-user-project"} & call.headers.keys()
    )


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_nor_in_a_call_of_a_copied_client(fake: FakeProviders, make: Make, provider: str) -> None:
    """`client.with_options(…)` makes a new client, which looks at the environment no more than ours."""
    client = make(provider, fake.api_key(provider)).client
    client.with_options(timeout=5, default_headers={"X-Mine": "1"}).models.list()
    (call,) = fake.calls
    assert "poison" not in everything(call)
    assert call.headers["x-mine"] == "1"


@pytest.mark.usefixtures("_poisoned")
def test_what_a_developer_passes_is_sent(fake: FakeProviders, make: Make) -> None:
    """Explicit options are not the environment's."""
    options = {"organization": "org-mine", "default_headers": {"X-Mine": "1"}}
    list(make("openai", fake.api_key("openai"), **options).stream_chat(HELLO))
    headers = fake.calls[-1].headers
    assert (headers["openai-organization"], headers["x-mine"]) == ("org-mine", "1")
    assert "poison" not in everything(fake.calls[-1])


def test_an_sdk_that_cannot_be_silenced_is_refused() -> None:
    """If an SDK keeps its headers elsewhere one day, calls stop instead of leaking."""

    class Later(IsolatedClient, SimpleNamespace):
        silent = ()

    with pytest.raises(ConfigurationError, match="earlier release"):
        Later(api_key="sk-12345678")


def test_googles_async_side_is_closed(fake: FakeProviders, make: Make) -> None:
    """`client.aio` would go past the guarded transport, so it refuses every call."""
    import asyncio

    client = make("google", fake.api_key("google")).client

    async def call() -> None:
        await client.aio.models.generate_content(model="m", contents="Hello")

    with pytest.raises(Exception, match="synchronous"):
        asyncio.run(call())
    assert fake.calls == []
