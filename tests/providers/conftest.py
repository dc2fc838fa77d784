"""Provider objects at the fake providers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flask_byok.catalog import Catalog
from flask_byok.catalog.verdicts import Judgement
from flask_byok.http import Outbound
from flask_byok.model.credential import Credential, Secret
from flask_byok.model.owner import Tier
from flask_byok.providers import BaseProvider, make_provider
from flask_byok.testing import FakeProviders

CATALOG = Catalog()
HELLO = [{"role": "user", "content": "Hello"}]
#: One for each SDK.
SDKS = ["openai", "anthropic", "google"]

#: One for each set of rules that the wires do not share.
CHATS = ["openai", "anthropic", "google", "groq", "xai", "openrouter", "custom"]

Make = Callable[..., BaseProvider]


def noting(refusals: list[Any]) -> Callable[[Judgement], None]:
    """Return a `report` that keeps the verdicts on keys that were rejected."""

    def report(judged: Judgement) -> None:
        if judged.verdict.valid is False:
            refusals.append(judged.verdict)

    return report


def credential_for(
    fake: FakeProviders, provider: str, api_key: str, trust: Any = "operator"
) -> Credential:
    """Make an opened credential for the fake provider."""
    return Credential(
        provider=provider,
        source=Tier.SESSION,
        owner="session:1",
        fields={"api_key": Secret(api_key)},
        base_url=fake.base_url(provider),
        trust=trust,
        hint="…1234",
        version="1",
    )


def counting(outcomes: list[Any]) -> Callable[[Any], None]:
    """Return a `count` that keeps outcomes, and no tokens."""
    return lambda what: outcomes.append(what) if isinstance(what, str) else None


@pytest.fixture
def make(fake: FakeProviders) -> Make:
    """Return a function that makes a provider object on one shared Outbound."""
    outbound = Outbound()

    def make(provider: str, api_key: str, **options: Any) -> BaseProvider:
        credential = credential_for(fake, provider, api_key)
        return make_provider(CATALOG.get(provider), credential, outbound, **options)

    return make


def call_client(provider: str, client: Any) -> Any:
    """Make a call with the SDK's own client."""
    if provider == "google":
        return client.models.generate_content(model="m", contents="Hello")
    if provider == "anthropic":
        return client.messages.create(model="m", max_tokens=9, messages=HELLO)
    return client.chat.completions.create(model="m", messages=HELLO)


def stream_client(provider: str, client: Any) -> Any:
    """Begin a stream with the SDK's own client."""
    if provider == "google":
        return next(client.models.generate_content_stream(model="m", contents="Hello"))
    if provider == "anthropic":
        return client.messages.create(model="m", max_tokens=9, messages=HELLO, stream=True)
    return client.chat.completions.create(model="m", messages=HELLO, stream=True)
