"""Calls with the SDKs that are installed, told as JSON: `python -m tests.peers.sdk_calls` reads the targets from stdin.

Apart from flask-byok it needs the SDKs only, so that it runs on whatever versions of them there are.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from flask_byok.catalog import Catalog
from flask_byok.http import Outbound
from flask_byok.model.credential import Credential, Secret
from flask_byok.model.owner import Tier
from flask_byok.providers import BaseProvider, make_provider

ASKED = "hello"
HELLO: Any = [{"role": "user", "content": ASKED}]
#: A function in the SDKs' three forms.
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OPENAIS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
ANTHROPICS = [{"name": "weather", "input_schema": CITY}]
GOOGLES = {"function_declarations": [{"name": "weather", "parameters_json_schema": CITY}]}
CALLED_BY_US = {"disable": True}


def ask(made: BaseProvider, client: Any, model: str, tools: bool) -> Any:
    """Ask for a whole answer."""
    if made.extra == "google":
        config = {"temperature": 0.5, "max_output_tokens": 9}
        if tools:
            config |= {"tools": [GOOGLES], "automatic_function_calling": CALLED_BY_US}
        return client.models.generate_content(model=model, contents=ASKED, config=config)
    options: dict[str, Any] = {"model": model, "messages": HELLO, "max_tokens": 9}
    if made.extra == "anthropic":
        return client.messages.create(**options, **({"tools": ANTHROPICS} if tools else {}))
    more = {"tools": OPENAIS} if tools else {}
    return client.chat.completions.create(**options, temperature=0.5, **more)


def ask_for_stream(made: BaseProvider, client: Any, model: str) -> Any:
    """Ask for an answer in pieces."""
    if made.extra == "google":
        return client.models.generate_content_stream(model=model, contents=ASKED)
    options: dict[str, Any] = {"model": model, "messages": HELLO, "stream": True}
    if made.extra == "anthropic":
        return client.messages.create(**options, max_tokens=9)
    return client.chat.completions.create(**options)


def told(made: BaseProvider, answer: Any) -> str:
    """Return what a whole answer, or a piece of one, says."""
    if made.extra == "google":
        parts = [*(answer.candidates[0].content.parts or ())] if answer.candidates else []
        return "".join(
            p.text or (p.function_call and f"<{p.function_call.name}>") or "" for p in parts
        )
    if made.extra == "anthropic":
        blocks = getattr(answer, "content", None) or [getattr(answer, "delta", None)]
        return "".join(getattr(block, "text", None) or "" for block in blocks)
    if not answer.choices:
        return ""
    choice = answer.choices[0]
    said = getattr(choice, "message", None) or choice.delta
    return "".join([said.content or "", *(f"<{c.function.name}>" for c in said.tool_calls or ())])


def call(made: BaseProvider, model: str) -> str:
    """Call with the synchronous client."""
    return told(made, ask(made, made.client, model, tools=False))


def call_with_tools(made: BaseProvider, model: str) -> str:
    """Call with the synchronous client, and offer a function."""
    return told(made, ask(made, made.client, model, tools=True))


def stream(made: BaseProvider, model: str) -> str:
    """Stream with the synchronous client."""
    return "".join(told(made, piece) for piece in ask_for_stream(made, made.client, model))


def call_later(made: BaseProvider, model: str) -> str:
    """Call with the asynchronous client."""

    async def main() -> str:
        return told(made, await ask(made, made.async_client, model, tools=False))

    return asyncio.run(main())


def stream_later(made: BaseProvider, model: str) -> str:
    """Stream with the asynchronous client."""

    async def main() -> str:
        pieces = await ask_for_stream(made, made.async_client, model)
        return "".join([told(made, piece) async for piece in pieces])

    return asyncio.run(main())


def list_models(made: BaseProvider, model: str) -> str:
    """List the models with the synchronous client."""
    names = sorted(
        str(getattr(each, "id", None) or each.name) for each in made.client.models.list()
    )
    return " ".join(names)


def stream_ours(made: BaseProvider, model: str) -> str:
    """Stream without the SDK."""
    return "".join(made.stream_chat(HELLO, model, max_tokens=9))


WAYS: list[Callable[[BaseProvider, str], str]] = [
    *(call, call_with_tools, stream, call_later, stream_later, list_models, stream_ours)
]


def outcome(provider: str, base_url: str, api_key: str, model: str, way: Any) -> dict[str, Any]:
    """Return what a call gave or raised, and what flask-byok counted and reported of it."""
    counted: list[Any] = []
    reported: list[Any] = []
    fields = {"api_key": Secret(api_key)}
    credential = Credential(provider, Tier.SESSION, "session:1", fields, base_url, trust="operator")
    told_by: dict[str, Any] = {"count": counted.append, "report": reported.append}
    spec = Catalog().get(provider)
    made = make_provider(spec, credential, Outbound(), max_retries=0, **told_by)
    try:
        said = way(made, model)
    except Exception as error:
        status = getattr(error, "status_code", None) or getattr(error, "code", None)
        said = f"{type(error).__name__} {status}"
    return {
        "said": said,
        "counted": [str(what) for what in counted],
        "reported": [[str(judged.verdict), judged.kind] for judged in reported],
    }


def main() -> None:
    """Call each target in each way, one after the other."""
    for target in json.load(sys.stdin):
        for way in WAYS:
            found = outcome(**target, way=way)
            line = json.dumps([target["provider"], way.__name__, found])
            sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
