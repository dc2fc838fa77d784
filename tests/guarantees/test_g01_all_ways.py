"""G1 and G2 on all ways to a provider: what goes out is the key that the list shows just before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Response, request

from flask_byok import get_provider_with_api_key
from flask_byok.testing import FakeProviders, assert_no_key_bleed
from tests.app import Browser, HostApp, browser, make_app
from tests.web.gateway_host import CHATS, GATEWAY, chat_of

PEOPLE = ("ada", "bob", "cyd", "dan", "eve")
OPERATOR = "operator"


@pytest.fixture
def fake() -> Iterator[FakeProviders]:
    """Serve providers that try to set a cookie with every answer, and that take their time."""
    with FakeProviders() as fake:
        fake.set_cookie = True
        fake.chunk_delay = 0.001
        yield fake


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Return a host with the gateway and with views of each kind, and the operator's key for one provider."""
    keys = {"OPENAI_API_KEY": fake.api_key("openai", "good", OPERATOR)}
    app = make_app(tmp_path, fake, csrf_protect=False, BYOK_GATEWAY=True, **keys)

    def asked() -> list[dict[str, str]]:
        return [{"role": "user", "content": request.args["message"]}]

    @app.get("/stream/<protocol>/<provider>")
    def stream(protocol: Any, provider: str) -> Response:
        chosen = get_provider_with_api_key(provider)
        return app.byok.stream_response(chosen, asked(), protocol=protocol)

    @app.get("/async/<provider>")
    async def in_async_view(provider: str) -> str:
        chosen = get_provider_with_api_key(provider)
        return "".join([piece async for piece in chosen.astream_chat(asked())])

    @app.get("/async-client/<provider>")
    async def with_async_client(provider: str) -> str:
        chosen = get_provider_with_api_key(provider)
        url = f"{chosen.credential.base_url}/{CHATS[provider]}"
        async with chosen.async_http_client as client:
            answer = await client.post(url, json=chat_of(provider, asked()[0]["content"]))
        return str(answer.text)

    @app.get("/sdk/<provider>")
    def with_client(provider: str) -> str:
        chosen = get_provider_with_api_key(provider)
        url = f"{chosen.credential.base_url}/{CHATS[provider]}"
        return str(chosen.http_client.post(url, json=chat_of(provider, asked()[0]["content"])).text)

    return app


#: Calls a provider with a message in a person's browser.
Way = Callable[[Browser, str, str], Any]


def view(path: str) -> Way:
    def call(person: Browser, provider: str, message: str) -> Any:
        return person.get(f"{path}/{provider}?message={message}")

    return call


def gateway(person: Browser, provider: str, message: str, *, stream: bool = False) -> Any:
    path, body = CHATS[provider], chat_of(provider, message)
    if stream and provider == "google":
        path = path.replace("generate", "streamGenerate") + "?alt=sse"
    elif stream:
        body["stream"] = True
    return person.post(f"{GATEWAY}/{provider}/{path}", json=body)


def gateway_v1(person: Browser, provider: str, message: str, *, stream: bool = False) -> Any:
    body = chat_of("openai", message, model=f"{provider}/small", stream=stream)
    return person.post(f"{GATEWAY}/v1/chat/completions", json=body)


def streamed(call: Callable[..., Any]) -> Way:
    return lambda person, provider, message: call(person, provider, message, stream=True)


WAYS: dict[str, Way] = {
    **{name: view(f"/stream/{name}") for name in ("byok", "openai", "ui-message", "text")},
    "async": view("/async"),
    "async client": view("/async-client"),
    "client": view("/sdk"),
    "gateway": gateway,
    "gateway, streamed": streamed(gateway),
    "v1": gateway_v1,
    "v1, streamed": streamed(gateway_v1),
}


class Person:
    """A person with one browser, who does things at random."""

    def __init__(self, app: HostApp, fake: FakeProviders, name: str, seed: int) -> None:
        self._fake = fake
        self._name = name
        self._random = random.Random(f"{name}{seed}")
        self._browser = browser(app)
        self._user: str | None = None
        #: This person's keys by provider and what the list shows of each.
        self._by_tail: dict[tuple[str, str], str] = {}
        #: What each call has to carry, by the name that its message tells; None for a call that is not to go out.
        self.expected: dict[str, str | None] = {}
        self.ways: set[str] = set()

    def walk(self, steps: int) -> None:
        """Do things, most of them calls."""
        others = (self._save, self._clear, self._sign_in_or_out, self._promote)
        for number in range(steps):
            step = self._call if self._random.random() < 0.6 else self._random.choice(others)
            step(self._random.choice(list(CHATS)), number)

    def _save(self, provider: str, number: int) -> None:
        api_key = self._fake.api_key(provider, "good", f"{self._name}{number}")
        persist = self._user is not None and self._random.random() < 0.5
        saved = self._browser.save(api_key, provider, validate="off", persist=persist)
        assert saved.status_code == 200, saved.text
        tail = provider, api_key[-4:]
        assert self._by_tail.setdefault(tail, api_key) == api_key, "two keys look alike"

    def _clear(self, provider: str, _: int) -> None:
        self._browser.load()
        assert self._browser.call("clear", provider=provider).status_code == 200

    def _promote(self, provider: str, _: int) -> None:
        self._browser.load()
        kept = self._browser.call("promote", providers=[provider], on_conflict="replace")
        assert kept.status_code == (401 if self._user is None else 200)

    def _sign_in_or_out(self, *_: object) -> None:
        self._user = None if self._user else self._name
        self._browser.post(f"/sign-in/{self._user}" if self._user else "/sign-out")

    def _call(self, provider: str, number: int) -> None:
        way = self._random.choice(list(WAYS))
        status = self._browser.status(provider)
        marker = f"{self._name}-{number}"
        self.expected[marker] = self._key_in(status, through_gateway=WAYS[way] in GATEWAYS)
        self.ways.add(way)
        WAYS[way](self._browser, provider, f"owner:{marker}").get_data()

    def _key_in(self, status: dict[str, Any], *, through_gateway: bool) -> str | None:
        """Return the key that a status shows as the one in use."""
        if status["state"] != "active":
            return None
        if status["source"] == "env":
            is_stranger = through_gateway and self._user is None
            return None if is_stranger else self._fake.api_key("openai", "good", OPERATOR)
        return self._by_tail[status["provider"], status["hint"][-4:]]


GATEWAYS = {call for way, call in WAYS.items() if way.startswith(("gateway", "v1"))}


def walk_all(app: HostApp, fake: FakeProviders, seed: int, steps: int) -> None:
    """Let all people walk at once, then look at every request that went out."""
    people = [Person(app, fake, name, seed) for name in PEOPLE]
    with ThreadPoolExecutor(len(people)) as pool:
        list(pool.map(lambda person: person.walk(steps), people))
    expected = {marker: key for person in people for marker, key in person.expected.items()}
    assert set().union(*(person.ways for person in people)) == set(WAYS)
    assert None in expected.values()
    assert_no_key_bleed(fake.calls, {marker: key for marker, key in expected.items() if key})


def test_random_steps_of_several_people(app: HostApp, fake: FakeProviders) -> None:
    """People save, keep, clear, sign in and out, and call in every way: each request has the key of the list."""
    walk_all(app, fake, seed=1, steps=40)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(2, 6))
def test_long_walks(app: HostApp, fake: FakeProviders, seed: int) -> None:
    """The same in long walks."""
    walk_all(app, fake, seed, steps=300)
