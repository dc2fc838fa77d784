"""The guarded client for async code: each request runs on a thread, for whichever event loop waits for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar, cast

import httpx2

from .live import Exchange
from .transport import REFUSED, STREAMED, TIMEOUT, EmptyJar, KeylessClient

#: How many requests and pieces of answers are waited for at once. More of them take turns, each second.
MAX_THREADS = 256

T = TypeVar("T")
_END: Any = object()
#: By process id: a forked child has none of its parent's threads.
_executors: dict[int, ThreadPoolExecutor] = {}
_KEPT_EXTENSIONS = ("http_version", "reason_phrase", REFUSED)


async def run(work: Callable[..., T], *arguments: Any) -> T:
    """Run blocking work on one of our threads, in a copy of the present context."""
    pid = os.getpid()
    executor = _executors.get(pid) or _executors.setdefault(
        pid, ThreadPoolExecutor(MAX_THREADS, "flask-byok-async")
    )
    call = copy_context().run
    return await asyncio.get_running_loop().run_in_executor(executor, call, work, *arguments)


async def iterate(items: Iterator[T], close: Callable[[], object]) -> AsyncGenerator[T, None]:
    """Yield what a blocking iterator yields.

    :param close: called at the end, also when the task is cancelled, while a thread may still be in the iterator: it
        must wake that thread.
    """
    try:
        while (item := await run(next, items, _END)) is not _END:
            yield item
    finally:
        close()


class _Body(httpx2.AsyncByteStream):
    """The body of an answer; what has not ended is closed with it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = cast(Iterator[bytes], iter(self._exchange.next, None))
        async for piece in iterate(pieces, self._exchange.close):
            if piece:
                yield piece

    async def aclose(self) -> None:
        self._exchange.close()

    def __del__(self) -> None:
        self._exchange.close()


class _ThreadTransport(httpx2.AsyncBaseTransport):
    """Hands each request to a client that blocks. Cancelling the task closes the connection."""

    def __init__(self, client: KeylessClient) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        exchange = Exchange(self._client, request)
        try:
            response = await run(exchange.send)
        except BaseException:
            exchange.close()
            raise
        extensions = response.extensions
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=_Body(exchange),
            extensions={n: extensions[n] for n in _KEPT_EXTENSIONS if n in extensions},
        )


class KeylessAsyncClient(httpx2.AsyncClient):
    """A client for any event loop that holds no key and no cookie, follows no redirect and knows no environment.

    It keeps no connection, so nothing closes it.
    """

    def __init__(self, client: KeylessClient) -> None:
        transport = _ThreadTransport(client)
        super().__init__(transport=transport, cookies=EmptyJar(), timeout=TIMEOUT, trust_env=False)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and follow no redirect, even if a caller asks for it."""
        options["follow_redirects"] = False
        request.extensions[STREAMED] = bool(options.get("stream"))
        return await super().send(request, **options)

    async def aclose(self) -> None:
        """Do nothing, see the class."""

    async def __aenter__(self) -> KeylessAsyncClient:
        return self

    async def __aexit__(self, *raised: Any) -> None:
        """Do nothing, see the class."""
