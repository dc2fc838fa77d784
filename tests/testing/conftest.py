"""Fake providers for each test, and the real SDKs pointed at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import anthropic
import httpx2
import openai
import pytest
from google import genai

from flask_byok.testing import FakeProviders


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    """Provide a plain client without the environment's proxies."""
    with httpx2.Client(trust_env=False, timeout=10) as client:
        yield client


class Sdks:
    """Makes the real SDKs' clients for a fake server.

    :param closing: closes them; when one is collected, its sockets may be so before it can close them itself.
    """

    def __init__(self, fake: FakeProviders, closing: ExitStack) -> None:
        self.fake = fake
        self._closing = closing

    def openai(self, provider: str = "openai", api_key: str | None = None) -> openai.OpenAI:
        client = openai.OpenAI(
            api_key=api_key or self.fake.api_key(provider),
            base_url=self.fake.base_url(provider),
            max_retries=0,
        )
        self._closing.callback(client.close)
        return client

    def anthropic(self, api_key: str | None = None) -> anthropic.Anthropic:
        client = anthropic.Anthropic(
            api_key=api_key or self.fake.api_key("anthropic"),
            base_url=self.fake.base_url("anthropic"),
            max_retries=0,
        )
        self._closing.callback(client.close)
        return client

    def google(self, api_key: str | None = None) -> genai.Client:
        client = genai.Client(
            api_key=api_key or self.fake.api_key("google"),
            http_options={"base_url": self.fake.base_url("google")},
        )
        self._closing.callback(client.close)
        return client


@pytest.fixture
def sdks(fake: FakeProviders) -> Iterator[Sdks]:
    """Make the SDKs' clients."""
    with ExitStack() as closing:
        yield Sdks(fake, closing)
