"""G8: a key is called bad only when its provider says so, and a verdict dies with the version it was about."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp, browser
from tests.verdicts import VERDICTS

PROVIDERS = ("openai", "anthropic", "google", "groq", "xai", "openrouter")
TOLD = [each for each in VERDICTS if each[0] in PROVIDERS]


@pytest.mark.parametrize(("provider", "behaviour"), TOLD)
def test_verdicts_over_http(
    visitor: Browser, fake: FakeProviders, provider: str, behaviour: str
) -> None:
    """Typed or stored, a key is called what its provider says, and only a key called bad is not stored."""
    api_key = fake.api_key(provider, behaviour)
    visitor.load()
    found = visitor.call("validate", provider=provider, api_key=api_key).get_json()
    verdict = VERDICTS[provider, behaviour]
    assert (found["verdict"], found["valid"]) == (verdict, verdict.valid)
    saved = visitor.call("set", provider=provider, api_key=api_key)
    assert saved.status_code == (422 if found["valid"] is False else 200)
    status = visitor.status(provider)
    assert status["has_key"] is (found["valid"] is not False)
    if status["has_key"]:
        assert status["validity"]["verdict"] == verdict
        assert status["state"] == "active"


def test_a_provider_that_is_down_says_nothing_about_the_key(
    visitor: Browser, fake: FakeProviders
) -> None:
    """Nobody there, nonsense and faults leave the question open: the key is stored, and not called bad."""
    visitor.load()
    api_key = fake.api_key("openai")
    answers = [
        ((500, "oops"), "unreachable"),
        ((502, None), "unreachable"),
        ((404, {}), "unchecked"),
        ((418, {"error": "teapot"}), "unchecked"),
    ]
    for answer, verdict in answers:
        for _ in range(2 if verdict == "unreachable" else 1):  # a fault is asked about twice
            fake.answer_next("openai", *answer)
        found = visitor.call("validate", provider="openai", api_key=api_key).get_json()
        assert (found["verdict"], found["valid"]) == (verdict, None)
    fake.stop()
    saved = visitor.call("set", provider="openai", api_key=api_key)
    assert saved.get_json()["validation"]["verdict"] == "unreachable"
    assert visitor.status()["state"] == "active"
    strict = visitor.call("set", provider="openai", api_key="k-0123456789", validate="require")
    assert (strict.status_code, strict.get_json()["code"]) == (422, "key_refused")


def test_a_verdict_dies_with_its_version(visitor: Browser, fake: FakeProviders) -> None:
    """A new key does not inherit what was found about the old one."""
    visitor.save(fake.api_key("openai", owner=1))
    assert visitor.status()["validity"]["verdict"] == "valid"
    visitor.call("set", provider="openai", api_key=fake.api_key("openai", owner=2), validate="off")
    assert visitor.status()["validity"] is None


def test_a_late_verdict_is_not_pinned_on_a_newer_key(
    app: HostApp, visitor: Browser, fake: FakeProviders
) -> None:
    """A check of the old key that ends after a new one was saved says nothing about the new one."""
    old, new = fake.api_key("openai", owner="old"), fake.api_key("openai", owner="new")
    visitor.save(old, validate="off")
    fake.add_key("openai", old, "bad")
    fake.latency = 0.4
    twin = browser(app)
    cookie = visitor.get_cookie("session")
    assert cookie is not None
    twin.set_cookie("session", cookie.value)
    twin.token = visitor.token
    with ThreadPoolExecutor(1) as pool:
        check = pool.submit(twin.call, "validate", provider="openai")
        while not fake.calls:
            pass
        visitor.call("set", provider="openai", api_key=new, validate="off")
    assert check.result().get_json()["verdict"] == "invalid"
    status = visitor.status()
    assert (status["state"], status["validity"]) == ("active", None)
    assert visitor.get("/used/openai").status_code == 200


def test_a_refusal_in_a_stream_is_about_that_version(visitor: Browser, fake: FakeProviders) -> None:
    """A stream that is refused after the key was replaced marks the old key, not the new one."""
    old, new = fake.api_key("openai", owner="old"), fake.api_key("openai", owner="new")
    visitor.save(old, validate="off")
    answer = visitor.get("/chat/openai?model=revoked-midstream", buffered=False)
    pieces = iter(answer.response)
    next(pieces)
    visitor.call("set", provider="openai", api_key=new, validate="off")
    assert b"key_rejected" in b"".join(pieces)
    assert visitor.status()["state"] == "active"
