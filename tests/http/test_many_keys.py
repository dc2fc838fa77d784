"""G1 over TLS: many keys at once on one pool, in every way that a call can be made."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flask_byok.catalog import Catalog
from flask_byok.http import Outbound
from flask_byok.model.credential import Credential, Secret
from flask_byok.model.owner import Tier
from flask_byok.providers import BaseProvider, make_provider
from flask_byok.testing import FakeProviders

from .test_transport import Resolver

MODEL = "gpt-4o-mini"


def _our_stream(made: BaseProvider, messages: Any) -> str:
    return "".join(made.stream_chat(messages, MODEL))


def _our_async_stream(made: BaseProvider, messages: Any) -> str:
    async def read() -> str:
        return "".join([text async for text in made.astream_chat(messages, MODEL)])

    return asyncio.run(read())


def _sdk(made: BaseProvider, messages: Any) -> str:
    answer = made.client.chat.completions.create(model=MODEL, messages=messages)
    return str(answer.choices[0].message.content)


def _async_sdk(made: BaseProvider, messages: Any) -> str:
    async def ask() -> str:
        create = made.async_client.chat.completions.create
        return str((await create(model=MODEL, messages=messages)).choices[0].message.content)

    return asyncio.run(ask())


WAYS: list[Callable[[BaseProvider, Any], str]] = [_our_stream, _sdk]
if not socket.socket.__module__.startswith("gevent"):
    # Greenlets share a thread, which runs one event loop at a time.
    WAYS += [_our_async_stream, _async_sdk]

in_all_sizes = pytest.mark.parametrize(
    ("threads", "people"),
    [(16, 80), *(pytest.param(n, 400, marks=pytest.mark.stress) for n in (1, 16, 64))],
)


@in_all_sizes
def test_each_call_has_its_own_key(
    fake_tls: FakeProviders, client_tls: ssl.SSLContext, threads: int, people: int
) -> None:
    """Each of many people's calls at once has that person's key and answer, and no cookie."""
    fake_tls.set_cookie = True
    outbound = Outbound(tls=client_tls, resolver=Resolver(["127.0.0.1"]))
    base_url = fake_tls.base_url("openai").replace("127.0.0.1", "provider.test")
    spec = Catalog().get("openai")
    own = {str(number): fake_tls.api_key("openai", owner=number) for number in range(people)}

    def ask(owner: str) -> bool:
        fields = {"api_key": Secret(own[owner])}
        credential = Credential(
            "openai", Tier.SESSION, f"session:{owner}", fields, base_url, trust="operator"
        )
        made = make_provider(spec, credential, outbound)
        text = f"I am {owner}."
        said = WAYS[int(owner) % len(WAYS)](made, [{"role": "user", "content": text}])
        return said == fake_tls.reply_text("openai", text)

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(ask, own))
    calls: list[Any] = fake_tls.calls
    assert len(calls) == people
    for call in calls:
        owner = call.body["messages"][0]["content"].removeprefix("I am ").removesuffix(".")
        assert (call.api_key, call.cookies) == (own[owner], {})


#: Runs pytest after gevent has replaced sockets and threads, as gunicorn's gevent worker does.
_GREEN = (
    "import gevent.monkey; gevent.monkey.patch_all(); import pytest, sys; sys.exit(pytest.main())"
)


@pytest.mark.stress
@in_all_sizes
def test_each_greenlet_has_its_own_key(threads: int, people: int) -> None:
    """The test above passes under gevent, with greenlets in place of threads."""
    test = f"{__file__}::{test_each_call_has_its_own_key.__name__}[{threads}-{people}]"
    command = [sys.executable, "-c", _GREEN, test, "-m", "", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
