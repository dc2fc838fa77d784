"""Scripted answers of the fake providers: what the real SDKs read is what was scripted."""

from __future__ import annotations

import json
import time
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from google.genai import errors as google

from flask_byok.testing import FakeProviders
from tests.providers.conftest import CATALOG, SDKS
from tests.testing.sdks import HELLO, REFUSED, Read, ask, read_stream, sdk

CALLS = [("call_1", "weather", {"city": "Oslo"}), ("call_2", "clock", '{"zone": "UTC"}')]
#: The request for a stream on each wire: path, body.
STREAMS = {
    "openai": ("/chat/completions", {"model": "m", "stream": True, "messages": HELLO}),
    "anthropic": (
        "/v1/messages",
        {"model": "m", "max_tokens": 9, "stream": True, "messages": HELLO},
    ),
    "google": ("/v1beta/models/m:streamGenerateContent?alt=sse", {"contents": []}),
}


def headers_for(provider: str, api_key: str) -> dict[str, str]:
    """Send a key as the catalog says."""
    return {**CATALOG.get(provider).auth.headers({"api_key": api_key}), "anthropic-version": "2"}


def raw(fake: FakeProviders, provider: str, http: httpx2.Client) -> tuple[int, str, bytes, bool]:
    """Read a stream as bytes: status, media type, body, and whether the body came to its end."""
    path, body = STREAMS[provider]
    headers = headers_for(provider, fake.api_key(provider))
    content = b""
    with http.stream("POST", fake.base_url(provider) + path, json=body, headers=headers) as answer:
        media = answer.headers["content-type"].partition(";")[0]
        try:
            for block in answer.iter_raw():
                content += block
        except httpx2.RemoteProtocolError:
            return answer.status_code, media, content, False
    return answer.status_code, media, content, True


# streams


@pytest.mark.parametrize("provider", SDKS)
def test_an_sdk_reads_what_was_scripted(fake: FakeProviders, provider: str) -> None:
    """Texts, reasoning, tool calls, usage and finish reason come as scripted; the next answer is the usual one."""
    script: dict[str, Any] = {"reasoning": ["Hm.", " Ah."], "tool_calls": CALLS, "usage": (11, 7)}
    fake.stream_next(provider, "Let me", " see.", **script)
    read = read_stream(provider, sdk(fake, provider))
    assert read.texts == ["Let me", " see."]
    assert read.reasoning == ["Hm.", " Ah."]
    assert read.calls == [
        ("call_1", "weather", {"city": "Oslo"}),
        ("call_2", "clock", {"zone": "UTC"}),
    ]
    assert read.usage == (11, 7)
    words = {"openai": "tool_calls", "anthropic": "tool_use", "google": "STOP"}
    assert read.finish == words[provider]
    usual = read_stream(provider, sdk(fake, provider))
    assert "".join(usual.texts) == fake.reply_text(provider, "hello there")
    assert usual.usage == (2, len(usual.texts))


def test_whole_answers_are_scripted_too(fake: FakeProviders) -> None:
    """A call without a stream gets the script as one answer."""
    for provider in SDKS:
        fake.stream_next(
            provider, "Let me", " see.", reasoning=["Hm."], tool_calls=CALLS, usage=(3, 4)
        )
    message = ask("openai", sdk(fake, "openai"))
    [choice] = message.choices
    assert (choice.message.content, choice.message.reasoning_content) == ("Let me see.", "Hm.")
    arguments = [json.loads(call.function.arguments) for call in choice.message.tool_calls]
    assert arguments == [{"city": "Oslo"}, {"zone": "UTC"}]
    assert (choice.finish_reason, message.usage.total_tokens) == ("tool_calls", 7)
    message = ask("anthropic", sdk(fake, "anthropic"))
    thinking, text, *tools = message.content
    assert (thinking.thinking, text.text, tools[0].input) == (
        "Hm.",
        "Let me see.",
        {"city": "Oslo"},
    )
    assert (message.stop_reason, message.usage.output_tokens) == ("tool_use", 4)
    message = ask("google", sdk(fake, "google"))
    thought, *calls, text = message.candidates[0].content.parts
    assert (thought.thought, text.text) == (True, "Let me see.")
    assert [call.function_call.name for call in calls] == ["weather", "clock"]


#: Our words for the ends, and what the wires call them; last each wire's own word.
FINISHES = {
    "openai": "stop=stop length=length content_filter=content_filter refusal=stop other=other eos=eos",
    "anthropic": "stop=end_turn length=max_tokens refusal=refusal other=pause_turn"
    " model_context_window_exceeded=model_context_window_exceeded",
    "google": "stop=STOP length=MAX_TOKENS content_filter=SAFETY other=OTHER RECITATION=RECITATION",
}


@pytest.mark.parametrize("provider", SDKS)
def test_each_end_in_the_wires_word(fake: FakeProviders, provider: str) -> None:
    """A finish reason in our words is sent in the wire's; its own words pass."""
    client = sdk(fake, provider)
    for ours, theirs in (pair.split("=") for pair in FINISHES[provider].split()):
        fake.stream_next(provider, "So", " far", finish=ours)
        read = read_stream(provider, client)
        assert (read.texts, read.finish) == (["So", " far"], theirs)


def test_a_refusal_has_a_field_of_its_own(fake: FakeProviders) -> None:
    """OpenAI's refusal is `delta.refusal`, with the usual finish reason."""
    fake.stream_next("openai", "I cannot", finish="refusal")
    deltas = [
        c.choices[0].delta for c in ask("openai", sdk(fake, "openai"), stream=True) if c.choices
    ]
    assert [delta.refusal for delta in deltas if delta.refusal] == ["I cannot"]
    assert not any(delta.content for delta in deltas)


def test_usage_only_if_asked(fake: FakeProviders, http: httpx2.Client) -> None:
    """OpenAI's stream tells its usage only if `stream_options.include_usage` asks for it."""
    fake.stream_next("openai", "Hi", usage=(5, 1))
    assert b'"usage"' not in raw(fake, "openai", http)[2]


@pytest.mark.parametrize("provider", SDKS)
def test_streams_without_an_end(fake: FakeProviders, http: httpx2.Client, provider: str) -> None:
    """Finish reason and last mark are left out as scripted, while the body ends in order."""
    words = {"openai": b'"stop"', "anthropic": b'"end_turn"', "google": b'"STOP"'}
    marks = {"openai": b"[DONE]", "anthropic": b"message_stop", "google": b"\0"}
    for finish, done in (("stop", True), ("stop", False), (None, True), (None, False)):
        fake.stream_next(provider, "Once", finish=finish, done=done)
        status, _, content, whole = raw(fake, provider, http)
        assert (status, whole, b"Once" in content) == (200, True, True)
        assert (words[provider] in content) == (finish is not None)
        assert (marks[provider] in content) == (done and provider != "google")


@pytest.mark.parametrize("provider", SDKS)
def test_cut_streams(fake: FakeProviders, http: httpx2.Client, provider: str) -> None:
    """The connection drops after so many pieces, or at so many bytes, and the SDK reads an error."""
    fake.stream_next(provider, "Once", " upon")
    whole = raw(fake, provider, http)[2]
    for pieces in range(3):
        fake.stream_next(provider, "Once", " upon", cut_after=pieces)
        _, _, content, ended = raw(fake, provider, http)
        assert not ended
        assert whole.startswith(content)
        assert [text in content for text in (b"Once", b"upon")] == [pieces > 0, pieces > 1]
    for size in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        fake.stream_next(provider, "Once", " upon", cut_at=size)
        assert raw(fake, provider, http) == (200, "text/event-stream", whole[:size], False)
    fake.stream_next(provider, "Once", " upon", cut_after=1)
    with pytest.raises((httpx2.TransportError, openai.APIError, anthropic.APIError)):
        read_stream(provider, sdk(fake, provider))


@pytest.mark.parametrize("provider", SDKS)
def test_an_error_inside_a_stream(fake: FakeProviders, provider: str) -> None:
    """What was said comes first, then the SDK raises the error that was scripted."""
    fake.stream_next(provider, "Once", error="provider_rate_limited")
    errors, read = (openai.APIError, anthropic.APIError, google.APIError), Read()
    with pytest.raises(errors, match=r"(?i)rate|429"):
        read_stream(provider, sdk(fake, provider), read)
    assert read.texts == ["Once"]


def test_a_late_head_and_silence(fake: FakeProviders, http: httpx2.Client) -> None:
    """Nothing comes before the delay has passed, and no further piece before the silence has."""
    fake.stream_next("openai", "Once", " upon", delay=0.2, silence={1: 0.2, 2: 0.1})
    started = time.monotonic()
    assert b"upon" in raw(fake, "openai", http)[2]
    assert time.monotonic() - started >= 0.5
    path, body = STREAMS["openai"]
    headers = headers_for("openai", fake.api_key("openai"))
    fake.stream_next("openai", "Once", " upon", silence={1: 60})
    with http.stream("POST", fake.base_url("openai") + path, json=body, headers=headers) as answer:
        blocks, content = answer.iter_raw(), b""
        while b"Once" not in content:
            content += next(blocks)
        assert b"upon" not in content


INSTEAD: list[tuple[Any, str, bytes]] = [
    ("html", "text/html", b"<!doctype html>"),
    ("error", "application/json", b'{"error": "'),
    ("empty", "text/event-stream", b""),
    (b"event: ping\n\n", "text/event-stream", b"event: ping\n\n"),
    ((b": nothing\n", b"\ndata: {}\n\n"), "text/event-stream", b": nothing\n\ndata: {}\n\n"),
]


@pytest.mark.parametrize("provider", SDKS)
def test_answers_that_are_no_streams(
    fake: FakeProviders, http: httpx2.Client, provider: str
) -> None:
    """A page, an error, a whole completion, nothing, or any bytes come with 200 in place of a stream."""
    for instead, media, beginning in INSTEAD:
        fake.stream_next(provider, instead=instead)
        status, found, content, whole = raw(fake, provider, http)
        assert (status, found, whole) == (200, media, True)
        assert content.startswith(beginning)
        assert bool(content) == bool(beginning)
    fake.stream_next(provider, "All", " at once", instead="completion")
    status, found, content, _ = raw(fake, provider, http)
    assert (status, found) == (200, "application/json")
    assert "All at once" in json.dumps(json.loads(content))


def test_the_persons_key_counts_first(fake: FakeProviders) -> None:
    """Neither a bad key nor another request than a conversation takes what was scripted."""
    for provider in SDKS:
        fake.stream_next(provider, "Scripted")
        with pytest.raises(REFUSED):
            read_stream(provider, sdk(fake, provider, "bad"))
        list(sdk(fake, provider).models.list())
        assert read_stream(provider, sdk(fake, provider)).texts == ["Scripted"]
        fake.refuse_next(provider, "model_unknown")
        with pytest.raises(REFUSED, match=r"(?i)api.key|40[01]"):
            read_stream(provider, sdk(fake, provider, "bad"))
        with pytest.raises(REFUSED, match="404"):
            read_stream(provider, sdk(fake, provider))


def test_scripts_are_taken_in_order(fake: FakeProviders) -> None:
    """Streams, refusals and answers come one after the other, each once."""
    client = sdk(fake, "openai")
    fake.stream_next("openai", "First")
    fake.refuse_next("openai", "provider_overloaded")
    fake.answer_next("openai", 418, {"error": {"message": "teapot"}})
    fake.stream_next("openai", "Last")
    assert read_stream("openai", client).texts == ["First"]
    for status in (503, 418):
        with pytest.raises(openai.APIStatusError) as caught:
            read_stream("openai", client)
        assert caught.value.status_code == status
    assert read_stream("openai", client).texts == ["Last"]


def test_what_cannot_be_scripted(fake: FakeProviders) -> None:
    """A script that a wire cannot say, or that names what there is not, is refused at once."""
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("anthropic", {"finish": "content_filter"}),
        ("google", {"finish": "refusal"}),
        ("google", {"tool_calls": [("1", "f", "[1]")]}),
        ("openai", {"instead": "pdf"}),
        ("openai", {"error": "bad luck"}),
        ("openai", {"cut_after": 1}),
    ]
    for provider, script in wrong:
        with pytest.raises(ValueError, match=r"No |there are|JSON object"):
            fake.stream_next(provider, **script)
    for provider, kind in (("google", "content_filtered"), ("openai", "stream_incomplete")):
        with pytest.raises(ValueError, match="No refusal"):
            fake.refuse_next(provider, kind)
    with pytest.raises(ValueError, match="opneai"):
        fake.stream_next("opneai", "Hi")
