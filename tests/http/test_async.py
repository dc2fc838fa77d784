"""The guarded client in event loops: many streams at once, an end when a task is cancelled, the same refusals."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from flask_byok.errors import RateLimitedError
from flask_byok.http import Endpoint, Outbound, transport
from flask_byok.http.aio import KeylessAsyncClient, iterate
from flask_byok.http.outbound import Slots
from flask_byok.http.transport import PERSONAL, REFUSED
from flask_byok.testing import FakeProviders
from tests.patience import IN_TIME

from .hostile_server import HostileServer, chunk, chunked, head, hostile

END = b"0\r\n\r\n"
KEY = {"Authorization": "Bearer sk-secret"}


def client_of(server: HostileServer, trust: Any = "operator", **options: Any) -> httpx2.AsyncClient:
    """Return the async client of a server's endpoint."""
    outbound = Outbound(allow_private=True)
    return KeylessAsyncClient(outbound.client_for(Endpoint(server.origin, trust), **options))


async def read(client: httpx2.AsyncClient, url: str) -> bytes:
    """Read a stream to its end."""
    async with client.stream("POST", url, headers=KEY, content=b"{}") as response:
        return b"".join([piece async for piece in response.aiter_bytes()])


def counting() -> Iterator[bytes]:
    """Answer with ten pieces."""
    yield chunked()
    yield from (chunk(b"%d" % number) for number in range(10))
    yield END


def test_two_hundred_streams_in_one_loop() -> None:
    """They run at once, as none of them ends before all have begun, and each has its own pieces."""
    all_begun = threading.Barrier(200)

    def script() -> Iterator[bytes]:
        yield chunked()
        all_begun.wait()
        yield from (chunk(b"%d" % number) for number in range(10))
        yield END

    async def main() -> None:
        urls = [server.origin] * 200
        assert await asyncio.gather(*(read(client, url) for url in urls)) == [b"0123456789"] * 200

    with hostile(script, keep=True) as server:
        client = client_of(server)
        asyncio.run(main())
        assert server.connections == 200


def test_two_loops_one_after_another() -> None:
    """A client serves any loop, also after an SDK has closed it, and on the connection of the loop before."""

    async def main() -> bytes:
        async with client:
            return await read(client, server.origin)

    with hostile(counting, keep=True) as server:
        client = client_of(server)
        assert [asyncio.run(main()) for _ in range(2)] == [b"0123456789"] * 2
        assert server.connections == 1


@pytest.mark.parametrize("first", [b"", None])
def test_cancelling_closes_the_connection(first: bytes | None, slots: Slots) -> None:
    """Before the head and in the midst of the body the provider sees the end, and the slot comes back."""

    async def main() -> None:
        task = asyncio.create_task(read(client, server.origin))
        while not server.heads:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.left.wait, IN_TIME)

    script = iter([chunked() + chunk(b"a")]) if first is None else iter([first])
    with hostile(lambda: script, keep=True) as server:
        client = client_of(server, "personal", owner="ann")
        asyncio.run(main())
    assert not slots._running


def test_an_answer_that_is_dropped_is_closed() -> None:
    """Code that forgets a stream leaves no connection behind."""

    async def main() -> None:
        request = client.build_request("POST", server.origin, content=b"{}")
        response: Any = await client.send(request, stream=True)
        assert response.status_code == 200
        del response
        gc.collect()
        assert await asyncio.to_thread(server.left.wait, IN_TIME)

    with hostile(lambda: iter([chunked()]), keep=True) as server:
        client = client_of(server)
        asyncio.run(main())


def test_a_reader_that_blocks_is_read_in_a_loop(quick: None) -> None:
    """A live call's silence is seen in the loop, and cancelling the reader closes the call."""

    async def main() -> None:
        seen: list[bytes | None] = []

        task = asyncio.create_task(body_after_head(live, seen))
        while seen[:1] != [b"a"] or None not in seen:
            await asyncio.sleep(0.01)
        task.cancel()
        assert await asyncio.to_thread(server.left.wait, IN_TIME)

    with hostile(lambda: iter([chunked() + chunk(b"a")]), keep=True) as server:
        live = Outbound().open(
            Endpoint(server.origin, "operator"), "POST", server.origin, headers=KEY
        )
        asyncio.run(main())


async def body_after_head(live: Any, seen: list[bytes | None]) -> None:
    """Note what a live call's body yields."""
    for _ in live.head():
        await asyncio.sleep(0)
    async for piece in iterate(live.body(), live.close):
        seen.append(piece)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_and_other_origins(status: int) -> None:
    """A redirect comes back as it is, also where a caller asks to follow it; another origin is refused."""

    async def main() -> None:
        answer = await client.get(server.origin, headers=KEY, follow_redirects=True)
        assert (answer.status_code, answer.headers["location"]) == (status, other.origin)
        with pytest.raises(httpx2.UnsupportedProtocol):
            await client.get(other.origin, headers=KEY)

    with hostile(lambda: iter([head(200)])) as other:
        to = head(status, f"Location: {other.origin}", "Set-Cookie: a=b")
        with hostile(lambda: iter([to])) as server:
            client = client_of(server)
            asyncio.run(main())
            assert not client.cookies
        assert other.connections == 0


def test_refusals_of_ours_reach_the_sdk(slots: Slots) -> None:
    """The third call of an owner is answered with 429 by us, if the client is observed."""
    seen: list[int] = []

    def observe(request: Any, status: int, body: bytes) -> None:
        seen.append(status)

    async def main() -> None:
        requests = [client.build_request("POST", server.origin) for _ in range(3)]
        running = [await client.send(request, stream=True) for request in requests]
        assert [answer.status_code for answer in running] == [200, 200, 429]
        assert isinstance(running[2].extensions[REFUSED], RateLimitedError)
        assert b"rate_limited" in await running[2].aread()
        for answer in running:
            await answer.aclose()

    with hostile(lambda: iter([chunked()]), keep=True) as server:
        client = client_of(server, "personal", owner="ann", observe=observe)
        asyncio.run(main())
    assert seen == [200, 200]
    assert not slots._running


def test_a_long_answer_that_is_no_stream_is_read(slots: Slots) -> None:
    """The limit on an event of a person's own server holds for streams, here as in sync code."""

    async def main() -> None:
        assert len((await client.post(server.origin)).content) == len(body)
        with pytest.raises(transport.AnswerRefused):
            await read(client, server.origin)

    body = b"x" * (PERSONAL.event + 1)
    with hostile(lambda: iter([head(200), body])) as server:
        client = client_of(server, "personal", observe=lambda *seen: None)
        asyncio.run(main())


def test_openais_async_client(fake: FakeProviders) -> None:
    """AsyncOpenAI streams on it, in two loops."""
    api_key = fake.api_key("openai")
    endpoint = Endpoint(fake.base_url("openai"), "operator")

    async def main() -> str:
        made = openai.AsyncOpenAI(
            api_key=api_key,
            base_url=endpoint.base_url,
            http_client=KeylessAsyncClient(outbound.client_for(endpoint)),
        )
        hello: Any = [{"role": "user", "content": "hello"}]
        stream = await made.chat.completions.create(model="m", messages=hello, stream=True)
        texts = [piece.choices[0].delta.content or "" async for piece in stream if piece.choices]
        return "".join(texts)

    outbound = Outbound()
    first, second = asyncio.run(main()), asyncio.run(main())
    assert first == second != ""
