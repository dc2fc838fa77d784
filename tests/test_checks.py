"""Checks of keys, against a server that answers as the providers do."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from flask_byok.catalog import Catalog
from flask_byok.catalog.models import MAX_MODELS, read_models
from flask_byok.catalog.verdicts import Answer
from flask_byok.errors import RateLimitedError
from flask_byok.http import Endpoint, Outbound
from flask_byok.keys import checks
from flask_byok.keys.checks import check_api_key
from flask_byok.keys.typed import Typed
from flask_byok.model.credential import Secret, Validation, Verdict
from flask_byok.testing import FakeProviders
from tests.patience import soon

CATALOG = Catalog()
PROVIDERS = [spec.id for spec in CATALOG]


def ask(fake: FakeProviders, provider: str, api_key: str, url: str | None = None) -> Validation:
    """Check a key at the fake provider, or at another address."""
    endpoint = Endpoint(url or fake.base_url(provider), "operator")
    fields = {"api_key": Secret(api_key)}
    return check_api_key(CATALOG.get(provider), Typed(fields, fields, None, endpoint), Outbound())


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("behaviour", ["good", "slow"])
def test_a_good_key_is_valid_and_lists_models(
    fake: FakeProviders, provider: str, behaviour: str
) -> None:
    """A key that works is valid, also when the answer is slow, and its models are listed."""
    found = ask(fake, provider, fake.api_key(provider, behaviour))
    assert (found.provider, found.verdict, found.valid) == (provider, Verdict.VALID, True)
    assert found.models_available
    assert all(not name.startswith("models/") for name in found.models_available)
    assert found.latency_ms >= (200 if behaviour == "slow" else 0)


# What each provider's documents say about these keys; other providers see them as a plain 403.
VERDICTS = [
    ("openai", "restricted", Verdict.VALID_RESTRICTED),
    ("openai", "broke", Verdict.VALID_NO_CREDIT),
    ("openai", "rate_limited", Verdict.VALID_RATE_LIMITED),
    ("openai", "disabled", Verdict.DISABLED),
    ("anthropic", "restricted", Verdict.VALID_RESTRICTED),
    ("anthropic", "broke", Verdict.VALID_NO_CREDIT),
    ("anthropic", "rate_limited", Verdict.VALID_RATE_LIMITED),
    ("anthropic", "disabled", Verdict.DISABLED),
    ("google", "restricted", Verdict.VALID_RESTRICTED),
    ("google", "service_disabled", Verdict.VALID_RESTRICTED),
    ("google", "rate_limited", Verdict.VALID_RATE_LIMITED),
    ("google", "disabled", Verdict.DISABLED),
    ("groq", "restricted", Verdict.UNCHECKED),
    ("groq", "broke", Verdict.VALID_NO_CREDIT),
    ("groq", "rate_limited", Verdict.VALID_RATE_LIMITED),
    ("groq", "disabled", Verdict.DISABLED),
    ("xai", "restricted", Verdict.UNCHECKED),
    ("xai", "disabled", Verdict.DISABLED),
    ("xai", "blocked", Verdict.DISABLED),
    ("xai", "team_blocked", Verdict.DISABLED),
    ("xai", "rate_limited", Verdict.VALID_RATE_LIMITED),
    ("openrouter", "restricted", Verdict.UNCHECKED),
    ("openrouter", "broke", Verdict.VALID_NO_CREDIT),
    ("openrouter", "rate_limited", Verdict.VALID_RATE_LIMITED),
    ("custom", "restricted", Verdict.VALID_RESTRICTED),
    ("custom", "rate_limited", Verdict.UNCHECKED),
    *((provider, "overloaded", Verdict.UNREACHABLE) for provider in PROVIDERS),
    *((provider, "bad", Verdict.INVALID) for provider in PROVIDERS),
]


@pytest.mark.parametrize(("provider", "behaviour", "verdict"), VERDICTS)
def test_each_answer_gets_its_verdict(
    fake: FakeProviders, provider: str, behaviour: str, verdict: Verdict
) -> None:
    """The verdict is what the provider documents for the answer, and no guess."""
    api_key = fake.api_key(provider, behaviour)
    found = ask(fake, provider, api_key)
    assert found.verdict is verdict
    assert api_key not in repr(found)
    assert found.reason.endswith(".")


# All but xAI's 400, which it documents for a bad key.
UNCLEAR = [
    (provider, status)
    for provider in PROVIDERS
    for status in (400, 403, 404, 418, 429)
    if (provider, status) != ("xai", 400)
]


@pytest.mark.parametrize(("provider", "status"), UNCLEAR)
def test_an_answer_of_unknown_meaning_never_condemns_a_key(
    fake: FakeProviders, provider: str, status: int
) -> None:
    """A refusal that the provider does not document for a bad key is not called invalid."""
    fake.answer_next(provider, status, {"error": "something else"})
    assert ask(fake, provider, fake.api_key(provider)).valid is not False


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_key_goes_in_its_header_only(fake: FakeProviders, provider: str) -> None:
    """No key in a URL, no cookie, and no other header that holds it."""
    api_key = fake.api_key(provider)
    ask(fake, provider, api_key)
    for call in fake.calls:
        assert call.api_key == api_key
        assert api_key not in f"{call.path}{call.query}{call.content}{call.cookies}"
        assert len([value for value in call.headers.values() if api_key in value]) == 1


@pytest.mark.parametrize(
    ("provider", "whose", "name"),
    [
        ("openai", "groq", "Groq"),
        ("openai", "anthropic", "Anthropic"),
        ("openai", "openrouter", "OpenRouter"),
        ("groq", "xai", "xAI"),
        ("xai", "groq", "Groq"),
        ("openrouter", "openai", "OpenAI"),
        ("anthropic", "google", "Google Gemini"),
        ("custom", "openai", "OpenAI"),
    ],
)
def test_a_refused_key_of_another_provider_is_named(
    fake: FakeProviders, provider: str, whose: str, name: str
) -> None:
    """A key pasted into the wrong field is recognised once its provider refuses it."""
    found = ask(fake, provider, fake.api_key(whose))
    assert found.verdict is Verdict.WRONG_PROVIDER
    assert found.valid is False
    assert name in found.reason


def test_a_shape_alone_refuses_nothing(fake: FakeProviders) -> None:
    """A provider that accepts a key of another's shape is believed."""
    api_key = "gsk_" + "a" * 52
    fake.add_key("openai", api_key)
    assert ask(fake, "openai", api_key).verdict is Verdict.VALID


def test_a_shared_beginning_names_nobody(fake: FakeProviders) -> None:
    """Many servers have keys that begin with `sk-`, so such a key is just invalid."""
    assert ask(fake, "groq", "sk-" + "a" * 32).verdict is Verdict.INVALID


def test_a_fault_is_asked_about_twice(fake: FakeProviders) -> None:
    """A provider that fails once is asked again, one that fails twice or refuses the key is not."""
    ask(fake, "openai", fake.api_key("openai", "bad"))
    assert len(fake.calls) == 1
    fake.answer_next("openai", 502)
    assert ask(fake, "openai", fake.api_key("openai")).verdict is Verdict.VALID
    fake.clear_calls()
    for _ in range(3):
        fake.answer_next("openai", 502)
    assert ask(fake, "openai", fake.api_key("openai")).verdict is Verdict.UNREACHABLE
    assert len(fake.calls) == 2


@pytest.mark.parametrize("kind", ["slow_headers", "slow_body"])
def test_a_check_ends_in_time(
    fake: FakeProviders, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both tries and the list of models share one limit, however slowly a server drips."""
    monkeypatch.setattr(checks, "CHECK_SECONDS", 1.5)
    with soon():
        found = ask(fake, "openai", fake.api_key("openai"), fake.hostile_url(kind))
    assert found.verdict is Verdict.UNREACHABLE


def test_a_web_page_is_no_provider(fake: FakeProviders) -> None:
    """A 200 that is not JSON does not make a key valid."""
    fake.answer_next("custom", 200, "just text")
    found = ask(fake, "custom", fake.api_key("custom"))
    assert found.verdict is Verdict.UNCHECKED


def test_a_key_that_the_answer_repeats_does_not_change_the_verdict(fake: FakeProviders) -> None:
    """An answer is judged without the key in it: a key named like an error code is no error."""
    api_key = "sk-proj-insufficient_quota"
    fake.answer_next("openai", 429, {"error": {"message": f"slow down, {api_key}", "code": None}})
    assert ask(fake, "openai", api_key).verdict is Verdict.VALID_RATE_LIMITED


def test_a_failing_list_of_models_leaves_the_verdict(fake: FakeProviders) -> None:
    """A key stays valid if its models cannot be listed."""
    fake.answer_next("xai", 200, {"api_key_blocked": False})
    fake.answer_next("xai", 500)
    found = ask(fake, "xai", fake.api_key("xai"))
    assert (found.verdict, found.models_available) == (Verdict.VALID, ())


def test_a_slow_server_of_ones_own_does_not_keep_all_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of many checks of a person's dripping server two run; other people and providers are not kept."""
    monkeypatch.setattr(checks, "CHECK_SECONDS", 1.0)
    outcomes: list[Any] = []

    def run(trust: Any, owner: str) -> None:
        endpoint = Endpoint(fake.hostile_url("slow_body"), trust)
        fields = {"api_key": Secret("key-0123456789")}
        typed = Typed(fields, fields, endpoint.base_url, endpoint)
        try:
            outcomes.append(check_api_key(spec, typed, outbound, owner=owner))
        except RateLimitedError as error:
            outcomes.append(error)

    spec, outbound = Catalog().get("custom"), Outbound(allow_private=True)
    with FakeProviders() as fake:
        threads = [threading.Thread(target=run, args=("personal", "me")) for _ in range(6)]
        threads += [threading.Thread(target=run, args=("personal", "you"))]
        threads += [threading.Thread(target=run, args=("operator", "me")) for _ in range(3)]
        with soon():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len([made for made in outcomes if isinstance(made, RateLimitedError)]) == 4
    assert len([made for made in outcomes if isinstance(made, Validation)]) == 6


# lists of models


def read(body: object) -> tuple[str, ...]:
    """Read a list from a good answer."""
    return read_models(Answer(200, json.dumps(body).encode()))


def test_lists_of_models() -> None:
    """Names stand in `data[].id`, or in `models[].name` after `models/`: each once, in order, at most 200."""
    assert read({"data": [{"id": "b"}, {"id": "a"}, {"id": "b"}]}) == ("b", "a")
    assert read({"models": [{"name": "models/gemini-2.5-pro"}]}) == ("gemini-2.5-pro",)
    assert (
        len(read({"data": [{"id": f"m{number}"} for number in range(MAX_MODELS + 9)]}))
        == MAX_MODELS
    )


@pytest.mark.parametrize(
    "body",
    [None, [], "x", {}, {"data": None}, {"data": "x"}, {"data": {"id": "x"}}, {"data": ["x", 1]}]
    + [{"data": [{"id": value}]} for value in (None, 1, "", "x" * 201, "a\nb", ["x"], {"x": 1})],
)
def test_anything_else_is_no_model(body: object) -> None:
    """What is not a printable name of 1 to 200 characters is left out."""
    assert read(body) == ()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, b'{"data": [{"id": "x"}]}'),
        Answer(200, b"<html>"),
        Answer(200, b"[" * 100_000),
        Answer(200, b""),
    ],
)
def test_a_bad_answer_has_no_models(answer: Answer) -> None:
    """An error, a web page, a bomb of brackets and nothing at all have none."""
    assert read_models(answer) == ()
