"""How calls with a key end, as counted: each once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from flask_byok.errors import EndpointNotAllowedError, InvalidFieldError
from flask_byok.http import Outbound
from flask_byok.http.transport import network_fault
from flask_byok.model.credential import Tokens, Verdict
from flask_byok.providers import make_provider
from flask_byok.providers.outcomes import Outcomes, one_call
from flask_byok.testing import FakeProviders

from .conftest import (
    CATALOG,
    HELLO,
    SDKS,
    Make,
    call_client,
    counting,
    credential_for,
    noting,
    stream_client,
)

BUSY = {"error": {"message": "busy", "status": "UNAVAILABLE"}}


def stream_whole(made: Any) -> None:
    """Chat to the end."""
    list(made.stream_chat(HELLO, "some-model"))


WAYS: list[Callable[[Any], object]] = [
    stream_whole,
    lambda made: call_client(made.name, made.client),
    lambda made: stream_client(made.name, made.client),
]


@pytest.mark.parametrize("provider", SDKS)
@pytest.mark.parametrize("way", WAYS, ids=["chat", "call", "stream"])
@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        ("good", "used"),
        ("bad", "rejected"),
        *((name, "failed") for name in ("overloaded", "rate_limited", "broke", "restricted")),
    ],
)
def test_a_call_has_the_outcome_that_its_answer_means(
    fake: FakeProviders,
    make: Make,
    provider: str,
    way: Callable[[Any], object],
    behaviour: str,
    outcome: str,
) -> None:
    """Answered, rejected or neither, the same for our streams as with the SDK's client; our streams have tokens too."""
    counted: list[Any] = []
    reported: list[Verdict] = []
    key = fake.api_key(provider, behaviour)
    made = make(provider, key, count=counted.append, report=noting(reported), max_retries=0)
    with suppress(Exception):
        way(made)
    tokens = counted.pop() if counted[1:] else None
    assert counted == [outcome]
    # The SDK's answers are not read.
    assert isinstance(tokens, Tokens) == (outcome == "used" and way is stream_whole)
    assert reported == ([Verdict.INVALID] if outcome == "rejected" else [])


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("way", WAYS[1:], ids=["call", "stream"])
def test_retries_are_one_call(
    fake: FakeProviders, make: Make, provider: str, way: Callable[[Any], object]
) -> None:
    """What an SDK tries again by itself counts once, as it ends; so do copies of its client."""
    counted: list[str] = []
    made = make(provider, fake.api_key(provider), count=counting(counted), max_retries=1)
    fake.answer_next(provider, 503, BUSY, retry_after_ms="1")
    way(made)
    assert counted == ["used"]
    fake.answer_next(provider, 503, BUSY, retry_after_ms="1")
    fake.answer_next(provider, 503, BUSY)
    with suppress(Exception):
        way(made)
    assert counted == ["used", "failed"]
    call_client(provider, made.client.with_options(timeout=20))
    assert counted == ["used", "failed", "used"]


@pytest.mark.parametrize("provider", SDKS)
def test_an_abandoned_stream_was_used(fake: FakeProviders, make: Make, provider: str) -> None:
    """The first piece counts, not the later ones; a stream that is never read was no call."""
    counted: list[Any] = []
    made = make(provider, fake.api_key(provider), count=counted.append)
    unread = made.stream_chat(HELLO, "some-model")
    del unread
    assert counted == []
    stream: Any = made.stream_chat(HELLO, "some-model")
    next(stream)
    assert counted == ["used"]
    stream.close()
    assert counted == ["used", *[Tokens(1, 0)] * (provider == "anthropic")], "told at the beginning"


def test_no_call_has_no_outcome(fake: FakeProviders, make: Make) -> None:
    """Messages that cannot be sent, and addresses that may not be called, are no calls."""
    counted: list[str] = []
    made = make("openai", fake.api_key("openai"), count=counting(counted))
    with pytest.raises(InvalidFieldError):
        made.stream_chat([{"role": "narrator", "content": "…"}], "some-model")
    credential = credential_for(fake, "custom", fake.api_key("custom"), "personal")
    for way in WAYS:
        with pytest.raises(EndpointNotAllowedError):
            way(
                make_provider(
                    CATALOG.get("custom"), credential, Outbound(), count=counting(counted)
                )
            )
    assert counted == []
    assert fake.calls == []


def test_another_key_is_not_counted_for_the_stored_one(fake: FakeProviders, make: Make) -> None:
    """After `set_api_key` nothing is counted or reported; what was begun before is counted."""
    counted: list[str] = []
    made = make("openai", fake.api_key("openai"), count=counting(counted), report=noting(counted))
    client = made.client
    made.set_api_key(fake.api_key("openai", owner="other"))
    stream_whole(made)
    call_client("openai", made.client)
    made.set_api_key(fake.api_key("openai", "bad"))
    for way in WAYS:
        with pytest.raises(Exception, match=r"401|rejected"):
            way(made)
    assert counted == []
    call_client("openai", client)
    assert counted == ["used"]


def test_objects_on_one_pool_count_for_themselves(fake: FakeProviders, make: Make) -> None:
    """Objects share the pool's connections, not their clients and counts, and one without a count has none."""
    counted: dict[str, list[str]] = {"a": [], "b": []}
    key = fake.api_key("openai")
    a, b = (make("openai", key, count=counting(counted[name])) for name in counted)
    objects = [a, b, b, make("openai", key)]
    assert a.client is a.client is not b.client
    assert len({id(made.client._client._transport) for made in objects}) == 1
    for made in objects:
        call_client("openai", made.client)
    assert counted == {"a": ["used"], "b": ["used"] * 2}


def test_a_client_outlives_what_made_it(fake: FakeProviders) -> None:
    """A client that is counted keeps its pool, when the object and the Outbound are gone."""
    counted: list[str] = []
    credential = credential_for(fake, "custom", fake.api_key("custom"), "personal")
    outbound = Outbound(allow_private=True)
    client = make_provider(
        CATALOG.get("custom"), credential, outbound, count=counting(counted)
    ).client
    call_client("custom", client)
    del outbound
    gc.collect()
    call_client("custom", client)
    assert counted == ["used", "used"]


def test_calls_within_a_call_count_for_themselves(fake: FakeProviders) -> None:
    """Another key's request within a call is another call."""
    spec = CATALOG.get("openai")
    counted: dict[str, list[str]] = {"a": [], "b": []}
    a, b = (
        Outcomes(spec, credential_for(fake, "openai", "sk-12345678"), counted[name].append)
        for name in counted
    )
    request = httpx2.Request("POST", "https://x/v1")
    with one_call():
        a.observe(request, 500, b"")
        b.observe(request, 0, b"")
        with one_call():
            a.observe(request, 200, b"")
    assert counted == {"a": ["used"], "b": ["failed"]}


def test_quoted_words_are_no_verdict(fake: FakeProviders, make: Make) -> None:
    """A refusal that quotes the conversation says nothing about the key."""
    reported: list[Verdict] = []
    made = make("openai", fake.api_key("openai"), report=noting(reported), max_retries=0)
    message = "Rejected: the words 'Incorrect API key provided: invalid_api_key' were found."
    for status in (400, 401, 403):
        fake.answer_next("openai", status, {"error": {"message": message, "type": "moderation"}})
        with pytest.raises(Exception, match=r"."):
            call_client("openai", made.client)
    assert reported == []


@pytest.mark.parametrize(
    ("provider", "path", "rejects"),
    [
        ("anthropic", "/v1/organizations/users", False),
        ("anthropic", "/v1/models/m", False),
        ("openrouter", "/keys", False),
        ("openrouter", "/models", False),
        ("mistral", "/files", False),
        ("anthropic", "/v1/models?limit=5", True),
        ("anthropic", "/v1/messages", True),
        ("anthropic", "/v1/messages/count_tokens", True),
        ("openrouter", "/key", True),
        ("openrouter", "/chat/completions", True),
        ("mistral", "/models", True),
        ("mistral", "/responses", True),
        ("custom", "/embeddings", True),
        ("openai", "/organization/users", True),
    ],
)
def test_a_refusal_at_a_path(
    fake: FakeProviders, make: Make, provider: str, path: str, rejects: bool
) -> None:
    """A bare 401 means a bad key at the paths of checks and conversations; a code that says so means it anywhere."""
    told: list[str] = []
    api_key = fake.api_key(provider)
    made = make(provider, api_key, report=noting(told), count=counting(told), max_retries=0)
    code = {"code": "invalid_api_key"} if provider == "openai" else {}
    fake.answer_next(provider, 401, {"error": {"message": "No.", **code}})
    with pytest.raises(Exception, match=r"401"):
        made.client.get(path, cast_to=object)
    assert told == (["rejected", Verdict.INVALID] if rejects else ["failed"])


def test_another_keys_refusal_is_not_reported(fake: FakeProviders, make: Make) -> None:
    """A copy of the SDK's client may have another key, or another provider's address: that is no verdict on ours."""
    reported: list[Verdict] = []
    good, bad = fake.api_key("openai"), fake.api_key("openai", "bad")
    made = make("openai", good, report=noting(reported), max_retries=0)
    make("groq", fake.api_key("groq")).client  # noqa: B018  (its address may be called from now on)
    other = {"Authorization": f"Bearer {bad}"}
    for client in (
        made.client.with_options(api_key=bad),
        made.client.with_options(base_url=fake.base_url("groq")),
        made.client.with_options(default_headers=other),
    ):
        with pytest.raises(Exception, match=r"401"):
            call_client("openai", client)
    assert reported == []
    fake.add_key("openai", good, "bad")
    with pytest.raises(Exception, match=r"401"):
        call_client("openai", made.client.with_options(timeout=5))
    assert reported == [Verdict.INVALID]


def test_an_error_that_is_its_own_cause() -> None:
    """Causes that lead in a circle end the search for a fault of the network."""
    error = ValueError("odd")
    error.__cause__ = error
    assert network_fault(error) is None
