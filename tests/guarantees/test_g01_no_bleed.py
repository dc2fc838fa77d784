"""G1: a provider object belongs to one credential; nothing that is shared holds a key or a cookie."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, g, request, stream_with_context
from openai import OpenAI

from flask_byok import BYOK, get_provider_with_api_key
from flask_byok.testing import FakeProviders, assert_no_key_bleed
from tests.app import HostApp, browser, make_app

OWNERS = [str(number) for number in range(50)]
NOBODY = "nobody"
PROVIDERS = ("openai", "anthropic", "google")


@pytest.fixture
def fake() -> Iterator[FakeProviders]:
    """Serve providers that try to set a cookie with every answer."""
    with FakeProviders() as fake:
        fake.set_cookie = True
        fake.chunk_delay = 0.001
        yield fake


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch) -> HostApp:
    """Return a host without operator's keys."""
    for provider in PROVIDERS:
        monkeypatch.delenv(f"{provider.upper()}_API_KEY", raising=False)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    return make_app(tmp_path, fake, csrf_protect=False)


def keys(fake: FakeProviders, provider: str) -> dict[str, str | None]:
    """Return each owner's own key; nobody has none."""
    own = {owner: fake.api_key(provider, "good", owner=int(owner)) for owner in OWNERS}
    return {**own, NOBODY: None}


def chat(app: Flask, cookies: dict[str, Any], owner: str, provider: str) -> str:
    """Stream one answer as this owner and return it."""
    url = f"/chat/{provider}?message=owner:{owner}"
    response = cookies[owner].get(url)
    return response.get_data(as_text=True)


def everybody(app: HostApp, fake: FakeProviders, provider: str) -> dict[str, Any]:
    """Return a browser for each owner, in which the owner's key was saved."""
    browsers = {owner: browser(app) for owner in [*OWNERS, NOBODY]}
    for owner, api_key in keys(fake, provider).items():
        if api_key is not None:
            saved = browsers[owner].save(api_key, provider, validate="off")
            assert saved.status_code == 200, saved.text
    fake.clear_calls()
    return browsers


def interleaved(browsers: dict[str, Any], call: Callable[[str], str]) -> list[str]:
    """Let all owners call at once, several times each, in random order."""
    turns = [owner for owner in browsers for _ in range(3)]
    random.Random(1).shuffle(turns)
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(call, turns))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_interleaved_streams_carry_each_owners_key(
    app: HostApp, fake: FakeProviders, provider: str
) -> None:
    """Of 50 owners' interleaved streams each goes out with its own key, nobody's with none, and none with a cookie."""
    browsers = everybody(app, fake, provider)
    answers = interleaved(browsers, lambda owner: chat(app, browsers, owner, provider))
    assert sum("event: done" in answer for answer in answers) == 3 * len(OWNERS)
    assert sum("key_missing" in answer for answer in answers) == 3
    assert_no_key_bleed(fake.calls, {o: k for o, k in keys(fake, provider).items() if k})


@pytest.mark.parametrize("provider", PROVIDERS)
def test_whoever_has_no_key_sends_the_operators(
    app: HostApp, fake: FakeProviders, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among 50 owners with keys, the one without sends the operator's key, and never anybody else's."""
    operators = fake.api_key(provider, "good", owner=999)
    variable = {"google": "GEMINI_API_KEY"}.get(provider, f"{provider.upper()}_API_KEY")
    monkeypatch.setenv(variable, operators)
    browsers = everybody(app, fake, provider)
    answers = interleaved(browsers, lambda owner: chat(app, browsers, owner, provider))
    assert all("event: done" in answer for answer in answers)
    assert_no_key_bleed(fake.calls, {**keys(fake, provider), NOBODY: operators})


def test_a_cached_provider_object_bleeds(fake: FakeProviders) -> None:
    """The usual singleton, whose key each request sets, sends one owner's key with another owner's call."""
    singleton = OpenAI(api_key="sk-operator-operator", base_url=fake.base_url("openai"))

    def naive_call(owner: str) -> str:
        if (api_key := own[owner]) is not None:
            singleton.api_key = api_key
        return str(
            singleton.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": f"owner:{owner}"}]
            )
        )

    own = keys(fake, "openai")
    with singleton:
        interleaved(dict.fromkeys(own), naive_call)
    with pytest.raises(AssertionError, match="was served with the key of owner"):
        assert_no_key_bleed(fake.calls, {o: k for o, k in own.items() if k})


def test_each_call_of_the_factory_makes_a_new_object(app: HostApp, fake: FakeProviders) -> None:
    """Two calls of the factory share neither provider object nor SDK client."""
    made: list[Any] = []

    @app.get("/make")
    def make() -> str:
        made.append(get_provider_with_api_key("openai"))
        return "made"

    ada = browser(app)
    ada.save(fake.api_key("openai", "good"))
    ada.get("/make")
    ada.get("/make")
    assert made[0] is not made[1]
    assert made[0].client is not made[1].client


def abandon_stream(app: Flask, client: Any) -> Any:
    """Start a stream that keeps its context, and walk away from it; returns what must stay alive for the effect."""
    response = client.get("/endless")
    pieces = response.iter_encoded()
    next(pieces)
    return response, pieces


@pytest.fixture
def stuck_app(app: HostApp) -> HostApp:
    """Add a route that leaves its context behind when its stream is abandoned (pallets/flask#6123)."""

    @app.get("/endless")
    def endless() -> Response:
        g.left_behind = "by the first user"
        app.byok.resolve("openai")

        def pieces() -> Iterator[str]:
            while True:
                yield "piece"

        return Response(stream_with_context(pieces()))

    @app.get("/left-behind")
    def left_behind() -> str:
        return str(g.get("left_behind"))

    return app


def test_a_stuck_context_does_not_hand_on_the_key(stuck_app: HostApp, fake: FakeProviders) -> None:
    """After an abandoned stream left its context on the worker, the next user is nobody but himself."""
    ada, bob = browser(stuck_app), browser(stuck_app)
    ada.post("/sign-in/ada")
    ada.save(fake.api_key("openai", "good", owner=1))
    bob.load()
    fake.clear_calls()
    kept = abandon_stream(stuck_app, ada)
    assert bob.get("/left-behind").text == "by the first user", "the effect itself is gone"
    assert "key_missing" in bob.get("/chat/openai?message=owner:2").text
    assert bob.load()["authenticated"] is False
    assert fake.calls == []
    assert bob.status()["source"] is None
    del kept


def test_no_key_lies_on_the_context(stuck_app: HostApp, fake: FakeProviders) -> None:
    """What an abandoned stream leaves on `g` and on the request holds no key."""
    seen: list[str] = []

    @stuck_app.after_request
    def look(response: Response) -> Response:
        if request.endpoint == "endless":
            seen.append(repr(vars(g._get_current_object())) + repr(request.environ))
        return response

    ada = browser(stuck_app)
    api_key = fake.api_key("openai", "good", owner=1)
    ada.save(api_key)
    kept = abandon_stream(stuck_app, ada)
    assert seen
    assert not any(api_key in text for text in seen)
    del kept


def test_the_extension_holds_no_key(app: HostApp, fake: FakeProviders) -> None:
    """No object of the extension keeps a person's key between requests."""
    import gc

    ada = browser(app)
    api_key = fake.api_key("openai", "good", owner=1)
    ada.save(api_key)
    ada.get("/chat/openai?message=owner:1")
    gc.collect()
    from flask_byok.model.credential import all_alive

    assert api_key not in {one.reveal() for one in all_alive()}
    assert isinstance(app.byok, BYOK)
