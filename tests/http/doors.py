"""Every way by which a call leaves, as a function of the address that is called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from flask_byok.catalog import Catalog
from flask_byok.http import Endpoint, Outbound
from flask_byok.keys.checks import Check
from flask_byok.keys.typed import Typed
from flask_byok.model.credential import Credential, Secret
from flask_byok.model.owner import Tier
from flask_byok.providers import BaseProvider, make_chat_model, make_provider
from flask_byok.providers.installed import NEEDED, sdk_faults

CATALOG = Catalog()
KEY = {"api_key": Secret("sk-secret-0123456789")}
MODEL = "some-model"
HELLO: Any = [{"role": "user", "content": "Hello"}]
#: One for each SDK.
SDKS = ("openai", "anthropic", "google")

#: Calls an address that somebody of this trust has chosen; raises an error if no answer came.
Door = Callable[[Outbound, str, Any], object]
#: Calls a provider with an object that was made for its address.
Use = Callable[[BaseProvider], Any]


def make(outbound: Outbound, url: str, trust: Any, provider: str) -> BaseProvider:
    credential = Credential(provider, Tier.SESSION, "session:1", KEY, url, trust=trust)
    return make_provider(CATALOG.get(provider), credential, outbound, max_retries=0)


def _check(outbound: Outbound, url: str, trust: Any) -> object:
    """Check a key, as one that is typed."""
    typed = Typed(KEY, KEY, url if trust == "personal" else None, Endpoint(url, trust))
    return Check(CATALOG.get("custom"), typed, outbound).validation()


def _door(use: Use, provider: str) -> Door:
    return lambda outbound, url, trust: use(make(outbound, url, trust, provider))


def _gateway(made: BaseProvider) -> object:
    """Pass a call on as the gateway does."""
    passage = made.forward("POST", "/chat/completions", b"{}", {})
    return [*passage.head(), passage.status]


async def _read_on(made: BaseProvider) -> str:
    return "".join([text async for text in made.astream_chat(HELLO, MODEL)])


def _call_sdk(made: BaseProvider) -> object:
    client = made.client
    if made.name == "google":
        return client.models.generate_content(model=MODEL, contents="Hello")
    if made.name == "anthropic":
        return client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
    return client.chat.completions.create(model=MODEL, messages=HELLO)


async def _call_async_sdk(made: BaseProvider) -> object:
    client = made.async_client
    if made.name == "google":
        return await client.models.generate_content(model=MODEL, contents="Hello")
    if made.name == "anthropic":
        return await client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
    return await client.chat.completions.create(model=MODEL, messages=HELLO)


_USES: dict[str, Use] = {
    "stream": lambda made: list(made.stream_chat(HELLO, MODEL)),
    "async stream": lambda made: asyncio.run(_read_on(made)),
    "gateway": _gateway,
    "list": lambda made: made.models(),
}
_SDK_USES: dict[str, Use] = {
    "client": _call_sdk,
    "async client": lambda made: asyncio.run(_call_async_sdk(made)),
    "LangChain": lambda made: make_chat_model(made, MODEL).invoke("Hello"),
}
DOORS: dict[str, Door] = {
    "check": _check,
    **{name: _door(use, "custom") for name, use in _USES.items()},
    **{
        f"{provider}, {name}": _door(use, provider)
        for provider in SDKS
        for name, use in _SDK_USES.items()
    },
}


def closed(door: str) -> bool:
    """Return True if this way needs an SDK that is missing or too old here."""
    provider, _, use = door.partition(", ")
    if not use:
        return False
    langchain = f"langchain-{'google-genai' if provider == 'google' else provider}"
    others = NEEDED["langchain"].keys() - {"langchain-core", langchain}
    faults = [*sdk_faults(provider)]
    return bool(faults or (use == "LangChain" and [*sdk_faults("langchain", *others)]))


#: Calls another address with a client that was made for a good one.
ELSEWHERE: dict[str, Callable[[BaseProvider, str], object]] = {
    "http_client": lambda made, url: made.http_client.get(url),
    "async_http_client": lambda made, url: asyncio.run(_later(made.async_http_client.get(url))),
    "client": lambda made, url: made.client.get(url, cast_to=object),
    "async_client": lambda made, url: asyncio.run(
        _later(made.async_client.get(url, cast_to=object))
    ),
    "with_options": lambda made, url: made.client.with_options(base_url=url).models.list(),
}


async def _later(answer: Awaitable[object]) -> object:
    return await answer
