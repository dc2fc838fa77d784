"""Checks of keys, against a server that answers as the providers do."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from flask_byok.catalog import Catalog, CheckSpec
from flask_byok.catalog.models import MAX_MODELS, read_models
from flask_byok.catalog.verdicts import Answer
from flask_byok.errors import EndpointNotAllowedError, RateLimitedError
from flask_byok.http import Endpoint, Outbound, endpoint_for, full_url
from flask_byok.http.outbound import request_about
from flask_byok.keys import checks
from flask_byok.keys.checks import Check
from flask_byok.keys.typed import Typed
from flask_byok.model.credential import Credential, Secret, Validation, Verdict
from flask_byok.providers import make_provider
from flask_byok.testing import FakeProviders
from tests.patience import soon
from tests.verdicts import VERDICTS

CATALOG = Catalog()
PROVIDERS = [spec.id for spec in CATALOG]


def ask(fake: FakeProviders, provider: str, api_key: str, url: str | None = None) -> Validation:
    """Check a key at the fake provider, or at another address."""
    spec, endpoint = CATALOG.get(provider), Endpoint(url or fake.base_url(provider), "operator")
    values = {**fake.fields(provider), spec.main_field.name: api_key}
    fields = {name: Secret(value) for name, value in values.items()}
    return Check(spec, Typed(fields, fields, None, endpoint), Outbound()).validation()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_good_key_is_valid_and_lists_models(fake: FakeProviders, provider: str) -> None:
    """A key that works is valid, and its models are listed if its provider lists any."""
    found = ask(fake, provider, fake.api_key(provider))
    verdict = VERDICTS[provider, "good"]
    assert (found.provider, found.verdict) == (provider, verdict)
    listed = verdict.valid and CATALOG.get(provider).check.models_path is not None
    assert bool(found.models_available) is bool(listed)
    assert all(not name.startswith("models/") for name in found.models_available)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "elevenlabs"])
def test_a_slow_answer_counts(fake: FakeProviders, provider: str) -> None:
    """A good key is valid also when the answer is slow, on every wire."""
    found = ask(fake, provider, fake.api_key(provider, "slow"))
    assert found.verdict is Verdict.VALID
    assert found.latency_ms >= 200


def test_the_table_has_the_whole_catalog() -> None:
    """A new provider needs a line in the table, and one that is gone has none."""
    assert {provider for provider, _ in VERDICTS} == set(PROVIDERS)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_answer_gets_its_verdict(fake: FakeProviders, provider: str) -> None:
    """The verdict is what the provider documents for the answer, and no guess."""
    for behaviour in [one for name, one in VERDICTS if name == provider and one != "slow"]:
        api_key = fake.api_key(provider, behaviour)
        found = ask(fake, provider, api_key)
        assert (behaviour, found.verdict) == (behaviour, VERDICTS[provider, behaviour])
        assert api_key not in repr(found)
        assert found.reason.endswith(".")


#: Answers that say the same whatever their words are: Google has no such account.
BY_STATUS = {("vertex", 404): Verdict.INVALID, ("google_speech", 404): Verdict.INVALID}
#: Of these a 429 to a check says nothing.
UNLIMITED = {
    *(one for one in PROVIDERS if VERDICTS[one, "rate_limited"] is not Verdict.VALID_RATE_LIMITED),
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_of_unknown_meaning_never_condemns_a_key(
    fake: FakeProviders, provider: str
) -> None:
    """A refusal that the provider does not document for a bad key is not called invalid."""
    for status in (400, 403, 404, 418, 429):
        fake.answer_next(provider, status, {"error": "something else"})
        verdict = BY_STATUS.get((provider, status), Verdict.UNCHECKED)
        if status == 429 and provider not in UNLIMITED:
            verdict = Verdict.VALID_RATE_LIMITED
        found = ask(fake, provider, fake.api_key(provider))
        assert (status, found.verdict) == (status, verdict)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_key_goes_in_its_header_only(fake: FakeProviders, provider: str) -> None:
    """No secret in a URL, no cookie, and one header that holds the key; a service account's is not sent at all."""
    spec, fields = CATALOG.get(provider), fake.fields(provider)
    main = spec.main_field
    ask(fake, provider, fields[main.name])
    secrets = [fields[each.name] for each in spec.fields if each.secret and each.name in fields]
    if main.kind == "json":
        secrets = json.loads(secrets[0])["private_key"].splitlines()[1:-1]
    assert fake.calls
    for call in fake.calls:
        elsewhere = f"{call.path}{call.query}{call.content}{call.cookies}"
        assert not any(secret in elsewhere for secret in secrets)
        held = [sum(secret in value for value in call.headers.values()) for secret in secrets]
        assert held == [1, *[0] * (len(secrets) - 1)] if main.kind != "json" else not any(held)


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


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_operators_address_takes_over_the_paths(fake: FakeProviders, provider: str) -> None:
    """At an address without a path a check goes to the path that the provider's own has, once, with its fields."""
    spec, plain = CATALOG.get(provider), fake.fields(provider)
    fields = {name: Secret(value) for name, value in plain.items()}
    endpoint = endpoint_for(spec, {provider: "http://gateway:8080"}, fields=fields)
    path = spec.url(spec.check.path, plain)
    own = spec.url(spec.base_url, plain) + path if path.startswith("/") else path
    wanted = urlsplit(own)._replace(scheme="http", netloc="gateway:8080").geturl()
    assert full_url(spec, endpoint, path) == wanted


@pytest.mark.parametrize("trust", ["catalog", "operator", "personal"])
@pytest.mark.parametrize(
    "path",
    ["m/list", ".evil.example/x", "@evil.example/x", ":8443/x", "//evil.example/x", "/\\evil"],
)
def test_no_path_changes_the_host(trust: Any, path: str) -> None:
    """A key never goes to a host that a path has made of its endpoint's, whatever the row and the call say."""
    spec = replace(CATALOG.get("groq"), check=CheckSpec(path=path, models_path=path))
    endpoint, outbound = Endpoint("https://api.acme.co", trust), Outbound()
    fields = {"api_key": Secret("k" * 40)}
    credential = Credential("groq", "argument", "", fields, endpoint.base_url, trust)
    provider = make_provider(spec, credential, outbound)
    for call in (
        lambda: Check(spec, Typed(fields, fields, None, endpoint), outbound).validation(),
        lambda: request_about(spec, endpoint, {}, path),
        lambda: provider.forward("GET", path, b"", {}),
    ):
        with pytest.raises(EndpointNotAllowedError):
            call()


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
            outcomes.append(Check(spec, typed, outbound, owner).validation())
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
