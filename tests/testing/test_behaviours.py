"""Each behaviour of a key is answered as the provider answers it."""

from __future__ import annotations

import time
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from google.genai import errors as google_errors

from flask_byok.testing import FakeProviders

from .conftest import Sdks

CHECKS = {
    "openai": "/models",
    "anthropic": "/v1/models",
    "google": "/v1beta/models?pageSize=1",
    "groq": "/models",
    "xai": "/api-key",
    "openrouter": "/key",
    "custom": "/models",
    "demo": "/models",
}

OPENAI_LIKE = {
    "good": (200, ""),
    "slow": (200, ""),
    "bad": (401, "invalid_api_key"),
    "restricted": (403, "Missing scopes"),
    "broke": (429, "insufficient_quota"),
    "rate_limited": (429, "rate_limit_exceeded"),
    "disabled": (401, "account_deactivated"),
    "overloaded": (503, "server_error"),
}

EXPECTED: dict[str, dict[str, tuple[int, str]]] = {
    "openai": OPENAI_LIKE,
    "custom": OPENAI_LIKE,
    "demo": OPENAI_LIKE,
    "anthropic": {
        "good": (200, ""),
        "bad": (401, "authentication_error"),
        "restricted": (403, "permission_error"),
        "broke": (400, "credit balance is too low"),
        "rate_limited": (429, "rate_limit_error"),
        "overloaded": (529, "overloaded_error"),
        "disabled": (400, "organization has been disabled"),
    },
    "google": {
        "good": (200, ""),
        "bad": (400, "API_KEY_INVALID"),
        "restricted": (403, "API_KEY_SERVICE_BLOCKED"),
        "service_disabled": (403, "SERVICE_DISABLED"),
        "disabled": (403, "CONSUMER_SUSPENDED"),
        "broke": (429, "RESOURCE_EXHAUSTED"),
        "rate_limited": (429, "RESOURCE_EXHAUSTED"),
        "overloaded": (503, "UNAVAILABLE"),
    },
    "groq": {
        "good": (200, ""),
        "bad": (401, "invalid_api_key"),
        "restricted": (403, "permissions_error"),
        "broke": (400, "blocked_api_access"),
        "rate_limited": (429, "rate_limit_exceeded"),
        "disabled": (400, "organization_restricted"),
        "overloaded": (503, ""),
    },
    "xai": {
        "good": (200, '"api_key_disabled": false'),
        "bad": (400, "Incorrect API key"),
        "restricted": (403, "does not have permission"),
        "disabled": (200, '"api_key_disabled": true'),
        "blocked": (200, '"api_key_blocked": true'),
        "team_blocked": (200, '"team_blocked": true'),
        "rate_limited": (429, "exhausted"),
    },
    "openrouter": {
        "good": (200, "limit_remaining"),
        "bad": (401, "User not found"),
        "restricted": (403, ""),
        "broke": (402, "Insufficient credits"),
        "rate_limited": (429, ""),
        "disabled": (401, "disabled"),
    },
}

CASES = [
    pytest.param(provider, behaviour, *answer, id=f"{provider}-{behaviour}")
    for provider, answers in EXPECTED.items()
    for behaviour, answer in answers.items()
]


def headers_for(provider: str, api_key: str) -> dict[str, str]:
    """Build the headers that the provider documents."""
    return {
        "anthropic": {"x-api-key": api_key, "anthropic-version": "2023-06-01"},
        "google": {"x-goog-api-key": api_key},
    }.get(provider, {"Authorization": f"Bearer {api_key}"})


@pytest.mark.parametrize(("provider", "behaviour", "status", "holds"), CASES)
def test_check_endpoint(
    fake: FakeProviders, http: httpx2.Client, provider: str, behaviour: str, status: int, holds: str
) -> None:
    """The endpoint of the cheap check answers as the provider does."""
    api_key = fake.api_key(provider, behaviour)
    url = fake.base_url(provider) + CHECKS[provider]
    answer = http.get(url, headers=headers_for(provider, api_key))
    assert answer.status_code == status
    assert holds in answer.text
    assert fake.calls_for(provider)[-1].api_key == api_key


@pytest.mark.parametrize("provider", CHECKS)
def test_no_key_at_all(fake: FakeProviders, http: httpx2.Client, provider: str) -> None:
    """A call without a key is refused and recorded with none."""
    answer = http.get(fake.base_url(provider) + CHECKS[provider])
    assert answer.status_code in (401, 403)
    assert fake.calls[-1].api_key is None


def test_openai_repeats_the_bad_key(fake: FakeProviders, http: httpx2.Client) -> None:
    """OpenAI's refusal repeats the key, so that passing it on is caught."""
    answer = http.get(
        fake.base_url("openai") + "/models", headers={"Authorization": "Bearer sk-who-knows"}
    )
    assert "sk-who-knows" in answer.json()["error"]["message"]


def test_openrouter_models_are_public(fake: FakeProviders, http: httpx2.Client) -> None:
    """OpenRouter lists its models to anyone, so the list says nothing about a key."""
    assert http.get(fake.base_url("openrouter") + "/models").status_code == 200


def test_google_refusal_has_the_error_info(fake: FakeProviders, http: httpx2.Client) -> None:
    """Google's reason is in an ErrorInfo among the details; `?key=` counts as no key."""
    url = fake.base_url("google") + "/v1beta/models"
    error = http.get(url, headers={"x-goog-api-key": "AIzaNobody"}).json()["error"]
    info = error["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (info["reason"], info["domain"]) == ("API_KEY_INVALID", "googleapis.com")
    assert http.get(url, params={"key": fake.api_key("google")}).status_code == 403


CHAT_ERRORS = [
    ("openai", "bad", openai.AuthenticationError),
    ("openai", "restricted", openai.AuthenticationError),
    ("openai", "broke", openai.RateLimitError),
    ("openai", "rate_limited", openai.RateLimitError),
    ("xai", "bad", openai.BadRequestError),
    ("xai", "disabled", openai.PermissionDeniedError),
    ("openrouter", "broke", openai.APIStatusError),
    ("anthropic", "bad", anthropic.AuthenticationError),
    ("anthropic", "restricted", anthropic.PermissionDeniedError),
    ("anthropic", "broke", anthropic.BadRequestError),
    ("anthropic", "overloaded", anthropic.InternalServerError),
    ("google", "bad", google_errors.ClientError),
    ("google", "restricted", google_errors.ClientError),
    ("google", "overloaded", google_errors.ServerError),
]


@pytest.mark.parametrize(("provider", "behaviour", "error"), CHAT_ERRORS)
def test_chat_raises_the_sdks_error(
    sdks: Sdks, provider: str, behaviour: str, error: type[Exception]
) -> None:
    """A chat with such a key raises what the real service makes the SDK raise."""
    with pytest.raises(error):
        chat(sdks, provider, sdks.fake.api_key(provider, behaviour))


def chat(sdks: Sdks, provider: str, api_key: str) -> None:
    """Begin a chat through the provider's own SDK."""
    message: list[Any] = [{"role": "user", "content": "hi"}]
    if provider == "anthropic":
        sdks.anthropic(api_key).messages.create(model="m", max_tokens=9, messages=message)
    elif provider == "google":
        sdks.google(api_key).models.generate_content(model="m", contents="hi")
    else:
        client = sdks.openai(provider, api_key)
        client.chat.completions.create(model="m", messages=message, stream=True)


def test_slow_key_waits(fake: FakeProviders, http: httpx2.Client) -> None:
    """A slow key is good, after `slow_seconds`."""
    headers = headers_for("demo", fake.api_key("demo", "slow"))
    started = time.monotonic()
    answer = http.get(fake.base_url("demo") + "/models", headers=headers)
    assert answer.status_code == 200
    assert time.monotonic() - started >= fake.slow_seconds


def test_latency_and_chunk_delay(sdks: Sdks) -> None:
    """`latency` delays each answer and `chunk_delay` each event."""
    sdks.fake.latency, sdks.fake.chunk_delay = 0.1, 0.01
    started = time.monotonic()
    answer = sdks.openai().chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    chunks = list(answer)
    assert time.monotonic() - started >= 0.1 + 0.01 * len(chunks)


def test_keys_are_the_same_on_every_run_and_differ_by_owner(fake: FakeProviders) -> None:
    """A key depends on provider, behaviour and owner only, and has the provider's prefix."""
    with FakeProviders() as other:
        assert other.api_key("openai", owner=7) == fake.api_key("openai", owner=7)
    api_keys = {
        fake.api_key(p, b, owner=o) for p in CHECKS for b in ("good", "broke") for o in (1, 2)
    }
    assert len(api_keys) == len(CHECKS) * 4
    assert fake.api_key("anthropic").startswith("sk-ant-api03-")
    assert "T3BlbkFJ" in fake.api_key("openai")


def test_default_keys_are_known_before_they_are_asked_for(
    fake: FakeProviders, http: httpx2.Client
) -> None:
    """A key printed by one server is good at the next, as the demo needs after a restart."""
    with FakeProviders() as other:
        api_key = other.api_key("demo")
    url = fake.base_url("demo") + "/models"
    assert http.get(url, headers=headers_for("demo", api_key)).status_code == 200


def test_added_and_revoked_keys(fake: FakeProviders, http: httpx2.Client) -> None:
    """A key of one's own works from `add_key` until `revoke`, and stays revoked."""
    url, headers = fake.base_url("groq") + "/models", headers_for("groq", "gsk_mine")
    assert http.get(url, headers=headers).status_code == 401
    fake.add_key("groq", "gsk_mine")
    assert http.get(url, headers=headers).status_code == 200
    fake.revoke("groq", "gsk_mine")
    assert http.get(url, headers=headers).status_code == 401
    fake.revoke("groq", fake.api_key("groq"))
    headers = headers_for("groq", fake.api_key("groq"))
    assert http.get(url, headers=headers).status_code == 401


def test_unknown_names_are_refused(fake: FakeProviders) -> None:
    """A misspelt behaviour or provider raises instead of making a bad key."""
    with pytest.raises(ValueError, match="brok"):
        fake.add_key("openai", "sk-x", "brok")
    with pytest.raises(ValueError, match="opneai"):
        fake.revoke("opneai", "sk-x")


def test_answer_next(fake: FakeProviders, http: httpx2.Client) -> None:
    """Scripted answers are given once each, in order, for any key."""
    fake.answer_next("custom", 404, {"error": "no listing"})
    fake.answer_next("custom", 503, None, Retry_After="7")
    url, headers = (
        fake.base_url("custom") + "/models",
        headers_for("custom", fake.api_key("custom")),
    )
    answers = [http.get(url, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [404, 503, 200]
    assert answers[1].headers["retry-after"] == "7"
