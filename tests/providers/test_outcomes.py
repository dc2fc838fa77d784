"""How calls with a key end, as counted: each once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from flask_byok.catalog import ProviderSpec
from flask_byok.errors import ByokError, InvalidFieldError
from flask_byok.http import Endpoint, Outbound
from flask_byok.model.credential import Verdict
from flask_byok.providers import make_chat_model, make_provider
from flask_byok.providers.outcomes import Outcomes, one_call
from flask_byok.testing import FakeProviders

from .conftest import CATALOG, Make, credential_for

PROVIDERS = ["openai", "anthropic", "google"]
HELLO = [{"role": "user", "content": "Hello"}]
BUSY = {"error": {"message": "busy", "status": "UNAVAILABLE"}}


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


def stream_whole(made: Any) -> None:
    """Chat to the end."""
    list(made.stream_chat(HELLO, "some-model"))


WAYS: list[Callable[[Any], object]] = [
    stream_whole,
    lambda made: call_client(made.name, made.client),
    lambda made: stream_client(made.name, made.client),
]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("way", WAYS, ids=["chat", "call", "stream"])
@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        ("good", "used"),
        ("bad", "rejected"),
        ("overloaded", "failed"),
        ("rate_limited", "failed"),
        ("broke", "failed"),
        ("restricted", "failed"),
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
    """Answered, rejected or neither: the same for our streams and for calls with the SDK's client."""
    counted: list[str] = []
    reported: list[Verdict] = []
    key = fake.api_key(provider, behaviour)
    made = make(provider, key, count=counted.append, report=reported.append, max_retries=0)
    with suppress(Exception):
        way(made)
    assert counted == [outcome]
    assert reported == ([Verdict.INVALID] if outcome == "rejected" else [])


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("way", WAYS, ids=["chat", "call", "stream"])
def test_retries_are_one_call(
    fake: FakeProviders, make: Make, provider: str, way: Callable[[Any], object]
) -> None:
    """What an SDK tries again by itself counts once, as it ends; so do copies of its client."""
    counted: list[str] = []
    made = make(provider, fake.api_key(provider), count=counted.append, max_retries=1)
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


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_abandoned_stream_was_used(fake: FakeProviders, make: Make, provider: str) -> None:
    """The first piece counts, not the later ones; a stream that is never read was no call."""
    counted: list[str] = []
    made = make(provider, fake.api_key(provider), count=counted.append)
    unread = made.stream_chat(HELLO, "some-model")
    del unread
    assert counted == []
    stream: Any = made.stream_chat(HELLO, "some-model")
    next(stream)
    assert counted == ["used"]
    stream.close()
    assert counted == ["used"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_call_has_no_outcome(fake: FakeProviders, make: Make, provider: str) -> None:
    """Messages that cannot be sent, and addresses that may not be called, are no calls."""
    counted: list[str] = []
    made = make(provider, fake.api_key(provider), count=counted.append, max_retries=0)
    if provider != "openai":  # which takes messages of all kinds
        with pytest.raises(InvalidFieldError):
            list(made.stream_chat([{"role": "narrator", "content": "…"}], "some-model"))
    client = made.client
    endpoint = Endpoint(made.credential.base_url, made.credential.trust)
    made._outbound.client_for(endpoint).rules.clear()  # type: ignore[attr-defined]
    with pytest.raises(ByokError):
        stream_whole(made)
    with pytest.raises(Exception, match=r"."):
        call_client(provider, client)
    assert counted == []
    assert fake.calls == []


def test_another_key_is_not_counted_for_the_stored_one(fake: FakeProviders, make: Make) -> None:
    """After `set_api_key` nothing is counted or reported; what was begun before is counted."""
    counted: list[str] = []
    made = make("openai", fake.api_key("openai"), count=counted.append, report=counted.append)
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


def test_objects_on_one_pool_count_for_themselves(fake: FakeProviders) -> None:
    """Two objects share the pool's connections, not their counts, and one without a count has none."""
    outbound, spec = Outbound(), CATALOG.get("openai")
    counted: dict[str, list[str]] = {"a": [], "b": []}
    objects = {
        name: make_provider(
            spec,
            credential_for(fake, "openai", fake.api_key("openai", owner=name)),
            outbound,
            count=counted[name].append if name in counted else None,
        )
        for name in ("a", "b", "c")
    }
    transports = {id(made.client._client._transport) for made in objects.values()}
    assert len(transports) == 1
    for name, made in objects.items():
        for _ in range("_ab".find(name) + 1):
            call_client("openai", made.client)
    assert counted == {"a": ["used"] * 2, "b": ["used"] * 3}


def test_a_client_outlives_what_made_it(fake: FakeProviders) -> None:
    """A client that is counted keeps its pool, when the object and the Outbound are gone."""
    counted: list[str] = []
    credential = credential_for(fake, "custom", fake.api_key("custom"), "personal")
    outbound = Outbound(allow_private=True)
    client = make_provider(CATALOG.get("custom"), credential, outbound, count=counted.append).client
    call_client("custom", client)
    del outbound
    gc.collect()
    call_client("custom", client)
    assert counted == ["used", "used"]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_chat_models_of_langchain_count_and_report(fake: FakeProviders, provider: str) -> None:
    """Each call of a chat model counts, with its own outcome, and a rejected key is reported."""
    counted: list[str] = []
    reported: list[Verdict] = []
    for behaviour in ("good", "bad"):
        made = make_provider(
            CATALOG.get(provider),
            credential_for(fake, provider, fake.api_key(provider, behaviour)),
            Outbound(),
            count=counted.append,
            report=reported.append,
        )
        model = make_chat_model(made, "some-model")
        with suppress(Exception):
            model.invoke("Hello")
            list(model.stream("Hello"))
    assert counted == ["used", "used", "rejected"]
    assert reported == [Verdict.INVALID]


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


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (204, b"", "used"),
        (302, b"", "failed"),
        (401, b'{"error": {"code": "invalid_api_key", "message": "no"}}', "rejected"),
        (401, b"no JSON", "failed"),
        (403, b"[" * 100_000, "failed"),
        (400, b"[]", "failed"),
        (500, b"\xff", "failed"),
    ],
)
def test_refusals_are_read_as_they_come(
    fake: FakeProviders, status: int, body: bytes, outcome: str
) -> None:
    """An answer has an outcome with any body."""
    counted: list[str] = []
    spec: ProviderSpec = CATALOG.get("openai")
    credential = credential_for(fake, "openai", "sk-12345678")
    request = httpx2.Request("POST", "https://x/v1")
    Outcomes(spec, credential, counted.append).observe(request, status, body)
    assert counted == [outcome]


# verdicts


def test_quoted_words_are_no_verdict(fake: FakeProviders, make: Make) -> None:
    """A refusal that quotes the conversation says nothing about the key."""
    reported: list[Verdict] = []
    made = make("openai", fake.api_key("openai"), report=reported.append, max_retries=0)
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
        ("groq", "/files", False),
        ("anthropic", "/v1/models?limit=5", True),
        ("anthropic", "/v1/messages", True),
        ("anthropic", "/v1/messages/count_tokens", True),
        ("openrouter", "/key", True),
        ("openrouter", "/chat/completions", True),
        ("groq", "/models", True),
        ("groq", "/responses", True),
        ("custom", "/embeddings", True),
    ],
)
def test_a_bare_refusal(
    fake: FakeProviders, make: Make, provider: str, path: str, rejects: bool
) -> None:
    """A bare 401 means a bad key at the paths of checks and conversations; others want another kind of key."""
    told: list[str] = []
    api_key = fake.api_key(provider)
    made = make(provider, api_key, report=told.append, count=told.append, max_retries=0)
    fake.answer_next(provider, 401, {"error": {"message": "No."}})
    with pytest.raises(Exception, match=r"401"):
        made.client.get(path, cast_to=object)
    assert told == (["rejected", Verdict.INVALID] if rejects else ["failed"])


def test_a_refusal_that_names_the_key_counts_anywhere(fake: FakeProviders, make: Make) -> None:
    """A code that means a bad key means it at every path."""
    reported: list[Verdict] = []
    made = make("openai", fake.api_key("openai"), report=reported.append, max_retries=0)
    fake.answer_next("openai", 401, {"error": {"code": "invalid_api_key", "message": "No."}})
    with pytest.raises(Exception, match=r"401"):
        made.client.get("/organization/users", cast_to=object)
    assert reported == [Verdict.INVALID]


def test_another_keys_refusal_is_not_reported(fake: FakeProviders, make: Make) -> None:
    """A copy of the SDK's client may have another key, or another provider's address: that is no verdict on ours."""
    reported: list[Verdict] = []
    good, bad = fake.api_key("openai"), fake.api_key("openai", "bad")
    made = make("openai", good, report=reported.append, max_retries=0)
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
