"""Provider objects in event loops: the SDKs' asynchronous clients, and our own streams, on people's keys."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from flask_byok.errors import (
    ByokError,
    ProviderUnavailableError,
    RateLimitedError,
    RejectedCredentialError,
)
from flask_byok.http import Outbound, outbound
from flask_byok.http.outbound import Slots
from flask_byok.model.credential import Verdict
from flask_byok.providers import make_provider
from flask_byok.testing import FakeProviders, assert_no_key_bleed
from tests.http.hostile_server import HostileServer, chunk, chunked, hostile
from tests.patience import IN_TIME
from tests.poison import MARK, everything, set_poison

from .conftest import CATALOG, SDKS, Make, credential_for
from .test_adapters import chain

BUSY = {"error": {"message": "busy", "status": "UNAVAILABLE"}}


async def chat(made: Any, text: str = "Hello") -> str:
    """Chat with our own stream."""
    messages = [{"role": "user", "content": text}]
    return "".join([piece async for piece in made.astream_chat(messages, "some-model")])


async def call(made: Any, text: str = "Hello") -> str:
    """Call with the SDK's asynchronous client, and return the text of the answer."""
    client, messages = made.async_client, [{"role": "user", "content": text}]
    if made.name == "google":
        return str((await client.models.generate_content(model="m", contents=text)).text)
    if made.name == "anthropic":
        answer = await client.messages.create(model="m", max_tokens=9, messages=messages)
        return str(answer.content[0].text)
    answer = await client.chat.completions.create(model="m", messages=messages)
    return str(answer.choices[0].message.content)


async def pieces_of(made: Any, text: str) -> AsyncIterator[str | None]:
    """Yield the texts of a stream of the SDK's."""
    client, messages = made.async_client, [{"role": "user", "content": text}]
    if made.name == "google":
        async for part in await client.models.generate_content_stream(model="m", contents=text):
            yield part.text
    elif made.name == "anthropic":
        async with client.messages.stream(model="m", max_tokens=9, messages=messages) as stream:
            async for piece in stream.text_stream:
                yield piece
    else:
        chunks = await client.chat.completions.create(model="m", messages=messages, stream=True)
        async for part in chunks:
            if part.choices:
                yield part.choices[0].delta.content


async def stream(made: Any, text: str = "Hello") -> str:
    """Read a stream of the SDK's to its end."""
    return "".join([piece or "" async for piece in pieces_of(made, text)])


def outcomes_into(counted: list[str]) -> Callable[[Any], None]:
    """Return a `count` that keeps the outcomes of calls, without the tokens that they took."""
    return lambda what: counted.append(what) if isinstance(what, str) else None


Way = Callable[..., Coroutine[Any, Any, str]]
WAYS: list[Way] = [chat, call, stream]
every_way = pytest.mark.parametrize("way", WAYS)
every_sdk = pytest.mark.parametrize("provider", SDKS)


@every_sdk
@every_way
def test_one_object_answers_in_loops_one_after_another(
    fake: FakeProviders, make: Make, provider: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loop gets the whole answer with the person's key, and nothing of the operator's is sent."""
    set_poison(monkeypatch)
    api_key = fake.api_key(provider)
    made = make(provider, api_key)
    assert {asyncio.run(way(made)) for _ in range(3)} == {fake.reply_text(provider, "Hello")}
    assert len(fake.calls) == 3
    for seen in fake.calls:
        assert seen.api_key == api_key
        assert MARK not in everything(seen)


@every_sdk
@every_way
@pytest.mark.parametrize(
    ("behaviour", "outcome"), [("good", "used"), ("bad", "rejected"), ("overloaded", "failed")]
)
def test_a_call_counts_once(
    fake: FakeProviders, make: Make, provider: str, way: Way, behaviour: str, outcome: str
) -> None:
    """Answered, rejected or neither, as in synchronous code; a rejected key is reported."""
    counted: list[str] = []
    reported: list[Any] = []
    key = fake.api_key(provider, behaviour)
    made = make(provider, key, count=outcomes_into(counted), report=reported.append, max_retries=0)
    with suppress(Exception):
        asyncio.run(way(made))
    assert counted == [outcome]
    rejections = [judged for judged in reported if judged.verdict == Verdict.INVALID]
    assert len(rejections) == (outcome == "rejected")


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_retries_are_one_call(fake: FakeProviders, make: Make, provider: str) -> None:
    """What an SDK tries again by itself counts once, as it ends; so do copies of its client."""
    counted: list[str] = []
    made = make(provider, fake.api_key(provider), count=outcomes_into(counted), max_retries=1)
    fake.answer_next(provider, 503, BUSY, retry_after_ms="1")
    asyncio.run(call(made))
    assert counted == ["used"]
    made.async_client = made.async_client.with_options(timeout=20)
    asyncio.run(call(made))
    assert counted == ["used", "used"]


def test_two_hundred_streams_in_one_loop(fake: FakeProviders, make: Make) -> None:
    """They run at once, of each provider, with our reader and the SDKs': each with its own key, and no cookie."""
    fake.set_cookie = True
    counted: list[str] = []
    keys: dict[str, str] = {}

    async def one(number: int) -> bool:
        provider, way = SDKS[number % 3], (chat, stream)[number % 2]
        owner, text = str(number), f"owner:{number} hello"
        keys[owner] = fake.api_key(provider, owner=owner)
        made = make(provider, keys[owner], count=outcomes_into(counted))
        return await way(made, text) == fake.reply_text(provider, text)

    async def main() -> list[bool]:
        return await asyncio.gather(*map(one, range(200)))

    assert all(asyncio.run(main()))
    assert counted == ["used"] * 200
    assert_no_key_bleed(fake.calls, keys)


@every_sdk
def test_an_error_shows_no_key(fake: FakeProviders, make: Make, provider: str) -> None:
    """A rejected key is an error of the tree, which shows neither the key nor what the provider said."""
    api_key = fake.api_key(provider, "bad")
    with pytest.raises(RejectedCredentialError) as caught:
        asyncio.run(chat(make(provider, api_key)))
    assert api_key not in chain(caught.value)


def at(server: HostileServer, fake: FakeProviders, provider: str, **options: Any) -> Any:
    """Return a provider object at another server than the fake."""
    credential = credential_for(fake, provider, fake.api_key(provider))
    credential = dataclasses.replace(credential, base_url=server.origin)
    return make_provider(CATALOG.get(provider), credential, Outbound(), max_retries=0, **options)


@every_sdk
@every_way
@pytest.mark.parametrize("head", [b"", chunked() + chunk(b"\n")], ids=["before", "in"])
def test_cancelling_closes_the_connection(
    fake: FakeProviders, provider: str, way: Way, head: bytes
) -> None:
    """Before the answer's head and within its body the provider sees the end, and the call counts at most once."""
    counted: list[str] = []

    async def main() -> None:
        task = asyncio.create_task(way(at(server, fake, provider, count=outcomes_into(counted))))
        while not (server.heads or task.done()):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.left.wait, IN_TIME)

    with hostile(lambda: iter([head]), keep=True) as server:
        asyncio.run(main())
    assert len(counted) <= 1


@every_sdk
def test_a_stream_that_is_left_is_closed(provider: str, fake: FakeProviders, make: Make) -> None:
    """Code that stops reading ends the call, which was used, and other calls of the loop go on."""
    counted: list[str] = []
    made = make(provider, fake.api_key(provider), count=outcomes_into(counted))

    async def main() -> str:
        messages = [{"role": "user", "content": "Hello"}]
        events = made.astream_events(messages, "some-model")
        seen = [(await anext(events)).type for _ in range(2)]
        await events.aclose()
        assert seen == ["start", "text"]
        return await chat(made)

    assert asyncio.run(main()) == fake.reply_text(provider, "Hello")
    assert counted == ["used"] * 2


@every_sdk
def test_a_server_that_is_away(fake: FakeProviders, provider: str) -> None:
    """Our stream raises the error of the tree, and the SDKs one of theirs; each is a failed call."""
    counted: list[str] = []
    with hostile(lambda: iter([])) as server:
        made = at(server, fake, provider, count=outcomes_into(counted))
    with pytest.raises(ProviderUnavailableError):
        asyncio.run(chat(made))
    for way in (call, stream):
        with pytest.raises(Exception, match=r".") as caught:
            asyncio.run(way(made))
        assert not isinstance(caught.value, ByokError)
    assert counted == ["failed"] * 3


@pytest.mark.parametrize("way", [chat, call, stream])
def test_too_many_calls_of_a_persons_own_server(
    fake: FakeProviders, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third call at once is refused by us, with the error of the tree in the SDK's client too."""
    monkeypatch.setattr(outbound, "personal_slots", Slots(4, 2, "calls"))
    credential = credential_for(fake, "custom", fake.api_key("custom"), "personal")
    made = make_provider(
        CATALOG.get("custom"), credential, Outbound(allow_private=True), counted_as="ann"
    )

    async def main() -> None:
        messages: Any = [{"role": "user", "content": "Hello"}]
        running = [made.astream_chat(messages, "m") for _ in range(2)]
        for each in running:
            await anext(each)
        with pytest.raises(RateLimitedError):
            await way(made)
        for each in running:
            await each.aclose()
        assert await way(made) == fake.reply_text("custom", "Hello")

    asyncio.run(main())


@pytest.mark.parametrize("provider", ["deepgram", "mistral", "anthropic", "google"])
def test_plain_http_clients(fake: FakeProviders, make: Make, provider: str) -> None:
    """They sign as the provider wants it, in both kinds of code, go nowhere else, and their calls count."""
    counted: list[str] = []
    made = make(provider, fake.api_key(provider), count=outcomes_into(counted))
    url = f"{made.credential.base_url}{CATALOG.get(provider).check.path}"

    async def main() -> None:
        assert (await made.async_http_client.get(url)).status_code == 200
        with pytest.raises(httpx2.UnsupportedProtocol):
            await made.async_http_client.get("https://elsewhere.example")

    asyncio.run(main())
    assert made.http_client.get(url).status_code == 200
    with pytest.raises(httpx2.UnsupportedProtocol):
        made.http_client.get("https://elsewhere.example")
    assert [seen.api_key for seen in fake.calls] == [fake.api_key(provider)] * 2
    assert counted == ["used"] * 2
