"""A person's own server holds few threads, for a short time, and takes no memory."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from flask_byok.catalog import Catalog
from flask_byok.errors import ProviderError, RateLimitedError, StreamIncompleteError
from flask_byok.http import Outbound, transport
from flask_byok.http.outbound import Slots, personal_slots
from flask_byok.http.transport import PERSONAL, Limits
from flask_byok.model.credential import Credential, Secret
from flask_byok.model.owner import Caller
from flask_byok.providers import BaseProvider, make_provider
from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp, browser, make_app
from tests.patience import soon

from .hostile_server import HostileServer, endless, head, hostile

HELLO = [{"role": "user", "content": "hello"}]
CHUNK = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
EVENTS = head(200, "Content-Type: text/event-stream")


@pytest.fixture
def quiet() -> Iterator[HostileServer]:
    """Run a server that says one word and then nothing, until the test ends."""
    over = threading.Event()

    def script() -> Iterator[bytes]:
        yield EVENTS + CHUNK
        over.wait()

    with hostile(script) as server:
        yield server
        over.set()


def provider(origin: str, owner: str | None = "user:ann", **options: Any) -> BaseProvider:
    """Return a provider object on a person's own server."""
    secret = {"api_key": Secret("sk-a-key-of-their-own")}
    credential = Credential("custom", "user", "user:ann", secret, base_url=origin, trust="personal")
    options = {"counted_as": owner, "model": "m", **options}
    return make_provider(
        Catalog().get("custom"), credential, Outbound(allow_private=True), **options
    )


def start(made: BaseProvider) -> Iterator[str]:
    """Start a chat and return the rest of it."""
    rest = made.stream_chat(HELLO)
    assert next(rest) == "a"
    return rest


def test_chats_of_one_owner_and_of_all_are_limited(slots: Slots, quiet: HostileServer) -> None:
    """Two chats of an owner and four of all may run on people's own servers; the next is refused without a call."""
    running = [start(provider(quiet.origin, owner)) for owner in ("a", "a", "b")]
    counted: list[Any] = []
    with pytest.raises(RateLimitedError) as caught:
        next(provider(quiet.origin, "a", count=counted.append).stream_chat(HELLO))
    assert counted == []
    assert (caught.value.retry_after, caught.value.__context__) == (10, None)
    running.append(start(provider(quiet.origin, None)))
    with pytest.raises(RateLimitedError):
        provider(quiet.origin, "c").client.models.list()
    assert len(quiet.heads) == 4
    for rest in running:
        rest.close()  # type: ignore[attr-defined]  # a generator's
    assert not slots._running


def _close(rest: Any) -> None:
    rest.close()


def _forget(rest: Any) -> None:
    """Drop it: nothing closes what is garbage."""


@pytest.mark.parametrize("leave", [_close, _forget])
def test_a_slot_comes_back(
    slots: Slots, quiet: HostileServer, leave: Callable[[Any], None]
) -> None:
    """A chat that is closed, as a server does when the browser leaves, or that is garbage, holds no slot."""
    rest: Any = start(provider(quiet.origin))
    assert slots._running == ["user:ann"]
    leave(rest)
    del rest
    gc.collect()
    assert not slots._running


def test_a_raw_answer_that_is_dropped_gives_its_slot_back(
    slots: Slots, quiet: HostileServer
) -> None:
    """A view that forgets a stream of the SDK's own client keeps no slot."""
    stream = provider(quiet.origin).client.chat.completions.create(
        model="m", messages=HELLO, stream=True
    )
    assert slots._running == ["user:ann"]
    del stream
    gc.collect()
    assert not slots._running


@pytest.mark.parametrize(
    "answer",
    [
        EVENTS + CHUNK + b"data: [DONE]\n\n",
        EVENTS + b"data: {\n\n",
        head(500) + b"{}",
        head(200, "Content-Encoding: gzip") + b"x",
        b"no http at all",
        b"",
    ],
)
def test_a_slot_comes_back_however_a_call_ends(slots: Slots, answer: bytes) -> None:
    """A good end, a refusal, a broken answer and none at all each give the slot back."""
    with hostile(lambda: iter([answer])) as server:
        with suppress(ProviderError):
            list(provider(server.origin, max_retries=0).stream_chat(HELLO))
        with suppress(
            openai.OpenAIError, AttributeError
        ):  # the SDK's own, of a text that is no list
            provider(server.origin, max_retries=0).client.models.list()
    with suppress(ProviderError):
        list(provider(server.origin, max_retries=0).stream_chat(HELLO))
    assert not slots._running


def test_a_forked_process_begins_with_all_slots() -> None:
    """A worker that is forked while calls run has none of these: they go on in its parent alone."""
    running = [personal_slots.take(name) for name in ("ann", "ann", "ben", "ben")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Python 3.12 warns of threads; the child uses none of them
            child = os.fork()
        if child == 0:
            with suppress(BaseException):
                personal_slots.take("ann")
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        for give_back in running:
            give_back()


def test_silence_ends(slots: Slots, monkeypatch: pytest.MonkeyPatch, quiet: HostileServer) -> None:
    """A person's own server may be silent for a short time only, also if the view gives a longer timeout."""
    monkeypatch.setattr(transport, "PERSONAL", Limits(seconds=9.0, silence=0.3))
    rest = start(provider(quiet.origin, timeout=300.0, max_retries=0))
    with soon(), pytest.raises(StreamIncompleteError, match="too long"):
        next(rest)
    assert not slots._running


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
@pytest.mark.parametrize("line", [b"data: x\n", b":\n", b"x"])
def test_a_stream_without_end_takes_no_memory(slots: Slots, kind: str, line: bytes) -> None:
    """Short lines and one long line without an end become a clear error, and memory stays flat."""
    block = line * (64_000 // len(line))
    with hostile(lambda: endless(head(200, f"Content-Type: {kind}"), block)) as server:
        made = provider(server.origin, max_retries=0)
        assert made.client is not None  # loads the SDK
        tracemalloc.start()
        try:
            with pytest.raises(StreamIncompleteError, match="longer than the limit"):
                for _ in made.stream_chat(HELLO):
                    pass
            assert tracemalloc.get_traced_memory()[1] < 8 * PERSONAL.longest
        finally:
            tracemalloc.stop()


@pytest.fixture
def host(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Make a host where people may use servers of their own."""
    return make_app(
        tmp_path, fake, BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_ALLOW_PRIVATE_ENDPOINTS=True
    )


def _visitor(host: HostApp, address: str) -> Browser:
    client = browser(host)
    client.environ_base["REMOTE_ADDR"] = address
    return client


def test_a_visitor_is_told_at_once(slots: Slots, host: HostApp, quiet: HostileServer) -> None:
    """The third chat or check from one IPv6 network is refused at once with 429; another visitor's goes on."""
    first = _visitor(host, "2001:db8:1:2::1")
    typed = {"api_key": "sk-a-key-of-their-own", "base_url": quiet.origin, "validate": "off"}
    assert first.load()["providers"]
    assert first.call("set", provider="custom", **typed).status_code == 200
    second = _visitor(host, "2001:db8:1:2::2")
    second.load()
    second.call("set", provider="custom", **typed)
    running = [client.get("/chat/custom?model=m", buffered=False) for client in (first, second)]
    pieces = [iter(answer.response) for answer in running]
    assert all(any(b"delta" in piece for piece in one) for one in pieces)
    assert slots._running == [Caller(address="2001:db8:1:2::").counted_as] * 2
    assert '"code":"rate_limited"' in first.get("/chat/custom?model=m").text
    refused = second.call("validate", provider="custom")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "10")
    other = _visitor(host, "2001:db8:1:3::1")
    other.load()
    other.call("set", provider="custom", **typed)
    third = other.get("/chat/custom?model=m", buffered=False)
    assert any(b"delta" in piece for piece in third.response)
    for answer in (*running, third):
        answer.close()
    gc.collect()
    assert not slots._running
