"""The product at aimock: another author's idea of the providers' APIs."""

from __future__ import annotations

from typing import Any

import pytest

from flask_byok import get_provider_with_api_key
from flask_byok.errors import (
    ERRORS_OF_CALLS,
    ProviderError,
    RejectedCredentialError,
    StreamIncompleteError,
)
from flask_byok.providers import BaseProvider
from tests.app import Browser, HostApp

from .servers import Aimock

PROVIDERS = sorted(Aimock.API_KEYS)
#: One for each wire.
WIRES = ["openai", "anthropic", "google"]
TEXT = "Hi — “there”, it’s aimock."
#: Where aimock refuses a wrong key in OpenAI's way, which the provider does not have.
FOREIGN = {"google"}
#: What the check asks is not among what aimock answers.
NO_CHECK = {"google", "xai"}


def wrong(api_key: str) -> str:
    """Return another key of the same shape."""
    return api_key[:-4] + "0000"


@pytest.fixture
def make(aimock: Aimock, aimock_app: HostApp) -> Any:
    """Return a function that makes a provider object at aimock."""

    def make(provider: str, api_key: str = "", **options: Any) -> BaseProvider:
        with aimock_app.app_context():
            api_key = api_key or aimock.API_KEYS[provider]
            return get_provider_with_api_key(provider, api_key, max_retries=0, **options)

    return make


def ask(message: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": message}]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("size", [7, 1000])
def test_a_chat_gives_the_text_that_was_told(
    make: Any, aimock: Aimock, provider: str, size: int
) -> None:
    """Whatever the size of the pieces, the text is the one that aimock was told."""
    aimock.tell("hello", {"content": TEXT}, chunkSize=size)
    assert "".join(make(provider).stream_chat(ask("hello"))) == TEXT


@pytest.mark.parametrize("provider", WIRES)
def test_reasoning_is_not_taken_for_text(make: Any, aimock: Aimock, provider: str) -> None:
    """What a model thinks before it answers is not in the text."""
    aimock.tell("hello", {"content": TEXT, "reasoning": "The person greets me."})
    model = "o3" if provider == "openai" else None
    assert "".join(make(provider).stream_chat(ask("hello"), model)) == TEXT


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_wrong_key_is_told_as_rejected(make: Any, aimock: Aimock, provider: str) -> None:
    """A key that aimock does not know is rejected in a chat, if it says so in the provider's words."""
    aimock.tell("hello", {"content": TEXT})
    made = make(provider, wrong(aimock.API_KEYS[provider]))
    kind = ProviderError if provider in FOREIGN else RejectedCredentialError
    with pytest.raises(kind):
        list(made.stream_chat(ask("hello")))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_check_tells_a_good_key_from_a_bad_one(
    aimock_visitor: Browser, aimock: Aimock, provider: str
) -> None:
    """The verdicts are those of aimock's list of keys, where it answers what the check asks."""
    api_key = aimock.API_KEYS[provider]
    aimock_visitor.load()
    good, bad = (
        aimock_visitor.call("validate", provider=provider, api_key=tried).get_json()["verdict"]
        for tried in (api_key, wrong(api_key))
    )
    assert good == ("unchecked" if provider in NO_CHECK else "valid")
    assert bad == ("unchecked" if provider in FOREIGN else "invalid")


@pytest.mark.parametrize("provider", WIRES)
def test_a_cut_stream_is_an_error(make: Any, aimock: Aimock, provider: str) -> None:
    """When the connection breaks off, what came before is part of the text, and then an error is raised."""
    aimock.tell("cut", {"content": TEXT}, chunkSize=3, truncateAfterChunks=4, latency=10)
    pieces: list[str] = []
    with pytest.raises(StreamIncompleteError):
        pieces.extend(make(provider).stream_chat(ask("cut")))
    assert TEXT.startswith("".join(pieces))
    assert "".join(pieces) != TEXT


@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, "provider_rate_limited"),
        (500, "provider_unavailable"),
        (503, "provider_overloaded"),
        (529, "provider_overloaded"),
    ],
)
def test_a_refusal_is_not_the_keys_fault(
    make: Any, aimock: Aimock, provider: str, status: int, code: str
) -> None:
    """Too many calls and faults of the provider are no rejection, and their text is not repeated."""
    secret_text = "the text of the provider"
    aimock.tell("hello", {"error": {"message": secret_text}, "status": status})
    with pytest.raises(ERRORS_OF_CALLS[code]) as caught:
        list(make(provider).stream_chat(ask("hello")))
    assert secret_text not in str(caught.value)


@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_halves_of_a_character_are_joined(
    make: Any, aimock: Aimock, provider: str, size: int
) -> None:
    """A character that comes in two pieces, as programs in JavaScript cut texts, is whole in the text."""
    text = "Hi 🙂 there 👩‍💻."
    aimock.tell("hello", {"content": text}, chunkSize=size)
    assert "".join(make(provider).stream_chat(ask("hello"))) == text


@pytest.mark.parametrize("provider", WIRES)
def test_a_good_status_without_a_stream_is_an_error(
    make: Any, aimock: Aimock, provider: str
) -> None:
    """Broken JSON with status 200 is no answer, not an empty one."""
    aimock.tell("hello", {"content": TEXT}, chaos={"malformedRate": 1})
    with pytest.raises(StreamIncompleteError):
        list(make(provider).stream_chat(ask("hello")))


def test_comments_in_a_stream_are_not_text(make: Any, aimock: Aimock) -> None:
    """OpenRouter's comments, which keep the connection alive, are left out."""
    aimock.tell("hello", {"content": TEXT}, openRouterProcessing=True)
    assert "".join(make("openrouter").stream_chat(ask("hello"))) == TEXT
