"""The real SDKs against the fake providers."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from flask_byok.errors import (
    ByokError,
    ProviderError,
    ProviderUnavailableError,
    RejectedCredentialError,
    StreamIncompleteError,
)
from flask_byok.http import transport
from flask_byok.model.credential import Verdict
from flask_byok.testing import FakeProviders

from .conftest import CATALOG, CHATS, HELLO, SDKS, Make, counting, noting


def chain(error: BaseException) -> str:
    """Write an error as a careless host would: text, repr, whole traceback with all contexts."""
    linked = [error, error.__cause__, error.__context__]
    lines = traceback.format_exception(error)
    return "".join([*lines, *map(repr, linked), *map(str, linked), repr(vars(error))])


@pytest.mark.parametrize("provider", CHATS)
def test_an_answer_comes_word_by_word(fake: FakeProviders, make: Make, provider: str) -> None:
    """Every adapter streams the provider's answer as text, in the pieces in which it came."""
    hello = [{"role": "user", "content": "hello\nwörld"}]
    pieces = list(make(provider, fake.api_key(provider)).stream_chat(hello, "some-model"))
    text = fake.reply_text(provider, "hello\nwörld")
    assert "hello\nwörld" in text
    assert "".join(pieces) == text
    assert len(pieces) == len(text.split())


@pytest.mark.parametrize("provider", SDKS)
def test_a_conversation_arrives_in_the_providers_own_form(
    fake: FakeProviders, make: Make, provider: str
) -> None:
    """System text and both roles are sent as each provider writes them."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": part} for part in ("Th", "ree")]},
    ]
    list(make(provider, fake.api_key(provider)).stream_chat(messages, "some-model"))
    body: Any = fake.calls[-1].body
    if provider == "openai":
        assert body["messages"] == messages
    elif provider == "anthropic":
        assert body["system"] == "Be brief.\n\nBe kind."
        assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
        assert "".join(part["text"] for part in body["messages"][2]["content"]) == "Three"
    else:
        assert body["systemInstruction"]["parts"][0]["text"] == "Be brief.\n\nBe kind."
        assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user"]


def fail(make: Make, provider: str, api_key: str, text: str = "Hello") -> tuple[Any, list[Any]]:
    """Return the error of a failing chat, and what was reported; it counts as one call."""
    reported: list[Any] = []
    counted: list[str] = []
    options = {"report": noting(reported), "count": counting(counted), "max_retries": 0}
    stream = make(provider, api_key, **options)
    with pytest.raises(ByokError) as caught:
        list(stream.stream_chat([{"role": "user", "content": text}], "some-model"))
    assert api_key not in chain(caught.value)
    assert caught.value.__context__ is None
    begun, rejected = text.endswith("-midstream"), caught.value.code == "key_rejected"
    assert counted == ["used" if begun else "rejected" if rejected else "failed"]
    return caught.value, reported


@pytest.mark.parametrize("provider", CHATS)
def test_a_refused_key_is_reported(fake: FakeProviders, make: Make, provider: str) -> None:
    """A key that its provider calls bad, at once or in mid-stream, raises `key_rejected` and is reported once."""
    good, bad = fake.api_key(provider), fake.api_key(provider, "bad")
    for api_key, text in ((bad, "Hello"), (good, "revoked-midstream"), (good, "Hello again")):
        error, reported = fail(make, provider, api_key, text)
        assert isinstance(error, RejectedCredentialError)
        assert (error.provider, error.tier) == (provider, "session")
        assert reported == [Verdict.INVALID]


#: What a provider's refusals mean; none says that the key is bad.
KINDS = [
    ("restricted", "not_permitted", "openai anthropic groq custom google"),
    ("service_disabled", "not_permitted", "google"),
    ("broke", "no_credit", "openai anthropic groq openrouter"),
    ("rate_limited", "provider_rate_limited", "openai anthropic google xai"),
    ("overloaded", "provider_overloaded", "openai anthropic google"),
]


@pytest.mark.parametrize(("behaviour", "code", "providers"), KINDS)
def test_other_failures_are_not_the_keys(
    fake: FakeProviders, make: Make, behaviour: str, code: str, providers: str
) -> None:
    """Scope, credit, rate and faults each have their own code, and no key is rejected for them."""
    for provider in providers.split():
        error, reported = fail(make, provider, fake.api_key(provider, behaviour))
        assert isinstance(error, ProviderError)
        assert (error.code, error.provider, error.tier) == (code, provider, "session")
        assert reported == []


# What rules look for, with the status that they look for it in.
SPOOFS = [
    (spec.id, status, rule.contains)
    for spec in map(CATALOG.get, CHATS)
    for rule in spec.check.rules
    for status in rule.status
    if rule.contains and status >= 400 and status != 401
]
QUOTES: list[Callable[[str], Any]] = [
    lambda text: {"error": {"message": f"messages[0]: unsupported content: {text!r}"}},
    lambda text: {"error": {"message": "bad", "code": f"cannot read {text}", "type": "x"}},
    lambda text: {"error": {"message": "bad", "code": "failed", "failed_generation": text}},
    lambda text: {"error": {"message": "bad", "metadata": {"raw": text, "reason": text}}},
    lambda text: {"error": {"message": "bad", "details": [{"description": text}, text]}},
    lambda text: {"code": "Client specified an invalid argument", "error": f"invalid: {text}"},
    lambda text: {"detail": [{"type": "x", "input": text}]},
    lambda text: text,
]


@pytest.mark.parametrize(("provider", "status", "words"), SPOOFS)
def test_quoted_words_condemn_no_key(
    fake: FakeProviders, make: Make, provider: str, status: int, words: str
) -> None:
    """An answer that quotes the conversation, wherever it does, says nothing about the key."""
    text = f"please summarise: {words}"
    for quote in QUOTES:
        fake.answer_next(provider, status, quote(text))
        error, reported = fail(make, provider, fake.api_key(provider), text)
        assert isinstance(error, ProviderError)
        assert reported == []


@pytest.mark.parametrize(
    ("provider", "status", "body"),
    [
        ("google", 403, {"details": [{"reason": "CONSUMER_SUSPENDED"}], "message": "x"}),
        ("openai", 401, {"message": "deactivated", "code": "account_deactivated"}),
        ("groq", 400, {"message": "x", "code": "organization_restricted"}),
    ],
)
def test_a_blocked_key_is_reported(
    fake: FakeProviders, make: Make, provider: str, status: int, body: Any
) -> None:
    """What an answer says in its codes is believed."""
    fake.answer_next(provider, status, {"error": body})
    error, reported = fail(make, provider, fake.api_key(provider))
    assert isinstance(error, RejectedCredentialError)
    assert reported == [Verdict.DISABLED]


@pytest.mark.parametrize("provider", CHATS)
def test_a_stream_that_breaks_off_says_so(fake: FakeProviders, make: Make, provider: str) -> None:
    """What came before the break is kept; the end is an error that is not the key's."""
    # xAI's codes are sentences.
    fault = "provider_unavailable" if provider == "xai" else "provider_overloaded"
    for ending, code in {"fail-midstream": "stream_incomplete", "error-midstream": fault}.items():
        error, reported = fail(make, provider, fake.api_key(provider), ending)
        assert error.code == code
        assert reported == []


@pytest.mark.parametrize("provider", CHATS)
def test_answers_are_explained_by_their_status(
    fake: FakeProviders, make: Make, provider: str
) -> None:
    """An unknown model, a bad request, a long conversation and a redirect are told apart."""
    codes = {404: "model_unknown", 400: "request_refused", 413: "context_too_long"}
    for status, code in {**codes, 302: "provider_unavailable"}.items():
        fake.answer_next(provider, status, {"error": {"message": "no", "code": "x"}})
        error, reported = fail(make, provider, fake.api_key(provider))
        assert error.code == code
        assert reported == []


@pytest.mark.parametrize("provider", SDKS)
def test_garbage_is_no_crash(
    fake: FakeProviders, make: Make, provider: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that is no stream is incomplete; no text of it is logged."""
    fake.answer_next(
        provider, 200, {"surprise": ["secret words"]}, Content_Type="text/event-stream"
    )
    with pytest.raises(StreamIncompleteError):
        list(make(provider, fake.api_key(provider)).stream_chat(HELLO))
    assert "secret words" not in caplog.text


@pytest.mark.parametrize("provider", SDKS)
def test_nobody_there_is_unavailable(make: Make, fake: FakeProviders, provider: str) -> None:
    """The error for a server that is gone is in our own words."""
    api_key = fake.api_key(provider)
    fake.stop()
    error, _ = fail(make, provider, api_key)
    assert isinstance(error, ProviderUnavailableError)
    assert "refused the connection" in str(error)


@pytest.mark.parametrize("provider", SDKS)
def test_a_hanging_provider_is_given_up_by_default(
    make: Make, fake: FakeProviders, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call has a time limit even if the caller sets none."""
    monkeypatch.setattr(transport, "TIMEOUT", httpx2.Timeout(0.2))
    fake.latency = 2
    stream = make(provider, fake.api_key(provider), max_retries=0).stream_chat(HELLO)
    with pytest.raises(ProviderUnavailableError, match="too long"):
        list(stream)
