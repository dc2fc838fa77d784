"""Refusals that are scripted: each with its provider's status and codes, as the real SDKs read them."""

from __future__ import annotations

import pytest

from flask_byok.testing import FakeProviders
from flask_byok.testing.wire import KINDS
from tests.providers.conftest import SDKS
from tests.testing.sdks import REFUSED, ask, sdk

#: The statuses of the refusals in the order of KINDS.
STATUSES = {
    "openai": (401, 401, 401, 401, 403, 429, 400, 429, 503, 500, 400, 404, 400, 400),
    "anthropic": (401, 400, 403, 403, 403, 400, 402, 429, 529, 504, 400, 404, 400, 400),
    "google": (400, 403, 403, 403, 400, 429, 403, 429, 503, 500, 400, 404, None, 400),
    "groq": (401, 400, 403, 403, 403, 400, 400, 429, 503, 500, 413, 404, 400, 422),
    "openrouter": (401, 401, 403, 403, 403, 402, 403, 429, 503, 502, 400, 404, 403, 422),
}


@pytest.mark.parametrize("provider", STATUSES)
def test_refusals_as_documented(fake: FakeProviders, provider: str) -> None:
    """Each kind of refusal has its provider's own status, in a conversation with a good key, and once."""
    client = sdk(fake, provider)
    for kind, status in zip(KINDS, STATUSES[provider], strict=True):
        if status is None:
            continue
        fake.refuse_next(provider, kind)
        with pytest.raises(REFUSED) as caught:
            ask(provider, client)
        found = caught.value.code if provider == "google" else caught.value.status_code
        assert found == status, kind
    assert ask(provider, client)


CODES = [
    ("openai", "context_too_long", "context_length_exceeded"),
    ("openai", "billing_limit", "billing_hard_limit_reached"),
    ("openai", "region_blocked", "unsupported_country_region_territory"),
    ("anthropic", "billing_limit", "billing_error"),
    ("anthropic", "model_unknown", "model: claude-0"),
    ("google", "billing_limit", "BILLING_DISABLED"),
    ("google", "model_unknown", "models/gemini-0 is not found"),
]


@pytest.mark.parametrize(("provider", "kind", "code"), CODES)
def test_refusals_have_their_codes(
    fake: FakeProviders, provider: str, kind: str, code: str
) -> None:
    """What tells the refusals of one status apart is in the SDK's error."""
    fake.refuse_next(provider, kind)
    with pytest.raises(REFUSED) as caught:
        ask(provider, sdk(fake, provider))
    assert code in f"{caught.value} {caught.value.code if provider == 'openai' else ''}"


def test_how_long_to_wait(fake: FakeProviders) -> None:
    """`retry_after` is sent as a header; by Google, which has no such header, as a RetryInfo."""
    for provider in SDKS:
        fake.refuse_next(provider, "provider_rate_limited", retry_after=30)
        with pytest.raises(REFUSED) as caught:
            ask(provider, sdk(fake, provider))
        if provider == "google":
            assert caught.value.details["error"]["details"][-1]["retryDelay"] == "30s"
        else:
            assert caught.value.response.headers["retry-after"] == "30"
