"""The real SDKs at the fake providers, and what they read in one form."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import anthropic
import openai
from google.genai import errors as google

from flask_byok.http import Outbound
from flask_byok.providers import make_provider
from flask_byok.testing import FakeProviders
from tests.providers.conftest import CATALOG, credential_for

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
#: What the SDKs raise for an answer that refuses the call.
REFUSED = (openai.APIStatusError, anthropic.APIStatusError, google.APIError)


@dataclass
class Read:
    """What an SDK read of one answer."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    usage: tuple[int, int] | None = None
    finish: str | None = None


def sdk(fake: FakeProviders, provider: str, behaviour: str = "good") -> Any:
    """Return the real SDK's client with a key."""
    credential = credential_for(fake, provider, fake.api_key(provider, behaviour))
    return make_provider(CATALOG.get(provider), credential, Outbound(), max_retries=0).client


def ask(provider: str, client: Any, **options: Any) -> Any:
    """Make a call with the SDK, or begin a stream."""
    if provider == "google":
        models = client.models
        call = models.generate_content_stream if options else models.generate_content
        return call(model="m", contents="hello there")
    if provider == "anthropic":
        return client.messages.create(model="m", max_tokens=9, messages=HELLO, **options)
    if options:
        options["stream_options"] = {"include_usage": True}
    return client.chat.completions.create(model="m", messages=HELLO, **options)


def read_stream(provider: str, client: Any, read: Read | None = None) -> Read:
    """Read a stream with the SDK; `read` has what came before an error."""
    read = read or Read()
    add = {"openai": _openai, "anthropic": _anthropic, "google": _google}[provider]
    parts: list[list[str]] = []
    for event in ask(provider, client, stream=True):
        add(event, read, parts)
    read.calls += [(id, name, json.loads("".join(given))) for id, name, *given in parts]
    return read


def _openai(chunk: Any, read: Read, parts: list[list[str]]) -> None:
    if chunk.usage:
        read.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
    for choice in chunk.choices:
        delta = choice.delta
        read.finish = choice.finish_reason or read.finish
        read.texts += filter(None, [delta.content, delta.refusal])
        read.reasoning += filter(None, [getattr(delta, "reasoning_content", None)])
        for call in delta.tool_calls or ():
            if call.id:
                parts.append([call.id, call.function.name])
            parts[call.index].append(call.function.arguments)


def _anthropic(event: Any, read: Read, parts: list[list[str]]) -> None:
    if event.type == "message_start":
        read.usage = (event.message.usage.input_tokens, 0)
    elif event.type == "message_delta":
        assert read.usage is not None
        read.usage = (read.usage[0], event.usage.output_tokens)
        read.finish = event.delta.stop_reason
    elif event.type == "content_block_start" and event.content_block.type == "tool_use":
        parts.append([event.content_block.id, event.content_block.name])
    elif event.type == "content_block_delta":
        delta = event.delta
        read.texts += [delta.text] if delta.type == "text_delta" else []
        read.reasoning += [delta.thinking] if delta.type == "thinking_delta" else []
        if delta.type == "input_json_delta":
            parts[-1].append(delta.partial_json)


def _google(chunk: Any, read: Read, parts: list[list[str]]) -> None:
    if used := chunk.usage_metadata:
        read.usage = (used.prompt_token_count, used.candidates_token_count)
    for candidate in chunk.candidates:
        read.finish = candidate.finish_reason.value if candidate.finish_reason else None
        for part in candidate.content.parts:
            if part.function_call:
                call = part.function_call
                read.calls.append((call.id, call.name, call.args))
            elif part.text:
                (read.reasoning if part.thought else read.texts).append(part.text)
