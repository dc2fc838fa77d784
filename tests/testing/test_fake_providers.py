"""The real SDKs list models and chat with every fake provider."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from google.genai import errors as google_errors

from flask_byok.testing import FakeProviders

from .conftest import Sdks

COMPATIBLE = ("openai", "groq", "xai", "openrouter", "custom", "demo")
ALL = (*COMPATIBLE, "anthropic", "google")
HELLO: list[Any] = [{"role": "user", "content": "hello\nwörld"}]


def stream(sdks: Sdks, provider: str, model: str = "any-model") -> list[str]:
    """Collect the pieces of one streamed answer through the provider's own SDK."""
    if provider == "anthropic":
        with sdks.anthropic().messages.stream(model=model, max_tokens=9, messages=HELLO) as events:
            return list(events.text_stream)
    if provider == "google":
        chunks = sdks.google().models.generate_content_stream(
            model=model, contents=HELLO[0]["content"]
        )
        return [chunk.text for chunk in chunks if chunk.text]
    answer = sdks.openai(provider).chat.completions.create(model=model, messages=HELLO, stream=True)
    return [piece for chunk in answer if (piece := chunk.choices[0].delta.content)]


def list_models(sdks: Sdks, provider: str) -> list[str | None]:
    """List the models' ids through the provider's own SDK."""
    if provider == "anthropic":
        return [model.id for model in sdks.anthropic().models.list()]
    if provider == "google":
        return [model.name for model in sdks.google().models.list()]
    return [model.id for model in sdks.openai(provider).models.list()]


@pytest.mark.parametrize("provider", ALL)
def test_lists_models(sdks: Sdks, provider: str) -> None:
    """Each SDK reads the list of models."""
    assert len(list_models(sdks, provider)) >= 2


@pytest.mark.parametrize("provider", ALL)
def test_streams_one_word_a_chunk(sdks: Sdks, provider: str) -> None:
    """Each SDK streams the whole answer, a word at a time; the call is recorded with key, body and status."""
    pieces = stream(sdks, provider)
    text = sdks.fake.reply_text(provider, "hello\nwörld")
    assert "".join(pieces) == text
    assert "hello\nwörld" in text
    assert len(pieces) == len(text.split())
    [call] = sdks.fake.calls_for(provider)
    assert call.api_key == sdks.fake.api_key(provider)
    assert (call.method, call.status, dict(call.cookies)) == ("POST", 200, {})
    assert "hello" in call.content


@pytest.mark.parametrize("provider", COMPATIBLE)
def test_compatible_chat_without_stream(sdks: Sdks, provider: str) -> None:
    """The whole answer comes at once where no stream is asked for, with its usage."""
    answer = sdks.openai(provider).chat.completions.create(model="m", messages=HELLO)
    assert answer.choices[0].message.content == sdks.fake.reply_text(provider, "hello\nwörld")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2


def test_openai_usage_chunk(sdks: Sdks) -> None:
    """A last chunk without choices tells the usage, if asked for."""
    *_, last = sdks.openai().chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


def test_anthropic_chat_without_stream(sdks: Sdks) -> None:
    """Anthropic's whole answer validates against the SDK's own model."""
    answer = sdks.anthropic().messages.create(model="m", max_tokens=9, messages=HELLO)
    assert answer == type(answer).model_validate_json(answer.model_dump_json())
    assert answer.content[0].text == sdks.fake.reply_text("anthropic", "hello\nwörld")  # type: ignore[union-attr]


def test_anthropic_stream_events(sdks: Sdks) -> None:
    """Anthropic's stream has the events in their documented order, with usage at both ends."""
    events = list(
        sdks.anthropic().messages.create(model="m", max_tokens=9, messages=HELLO, stream=True)
    )
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_anthropic_wants_max_tokens(fake: FakeProviders, http: httpx2.Client) -> None:
    """A message without max_tokens, or a call without a version, is refused as by Anthropic."""
    headers = {"x-api-key": fake.api_key("anthropic"), "anthropic-version": "2023-06-01"}
    url = fake.base_url("anthropic") + "/v1/messages"
    answer = http.post(url, headers=headers, json={"model": "m", "messages": HELLO})
    assert (answer.status_code, "max_tokens" in answer.text) == (400, True)
    del headers["anthropic-version"]
    answer = http.post(url, headers=headers, json={"model": "m", "max_tokens": 1})
    assert (answer.status_code, "anthropic-version" in answer.text) == (400, True)


def test_google_chat_without_stream(sdks: Sdks) -> None:
    """Google's whole answer carries text, finish reason and usage."""
    answer = sdks.google().models.generate_content(model="gemini-x", contents="hi")
    assert answer.text == sdks.fake.reply_text("google", "hi")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.prompt_token_count == 1


def test_google_pages_its_models(sdks: Sdks) -> None:
    """A page of one model names the next page, and the SDK follows it."""
    pager = sdks.google().models.list(config={"page_size": 1})
    assert len(pager.page) == 1
    assert len(list(pager)) == 2


def test_a_record_shows_no_key(sdks: Sdks) -> None:
    """The repr of a record names the call, not the key."""
    stream(sdks, "openai")
    [call] = sdks.fake.calls
    assert repr(call) == "<RecordedCall openai POST /openai/v1/chat/completions -> 200>"
    sdks.fake.clear_calls()
    assert sdks.fake.calls == []


SDK_ERRORS = (openai.APIError, anthropic.APIError, google_errors.APIError)


@pytest.mark.parametrize("provider", ALL)
def test_error_event_in_midstream(sdks: Sdks, provider: str) -> None:
    """The model "error-midstream" makes each SDK raise its own error after two words."""
    with pytest.raises(SDK_ERRORS):
        stream(sdks, provider, "error-midstream")


@pytest.mark.parametrize("provider", ALL)
def test_revoked_in_midstream(sdks: Sdks, provider: str) -> None:
    """The model "revoked-midstream" ends the stream with the error of a bad key, and it is one."""
    with pytest.raises(SDK_ERRORS):
        stream(sdks, provider, "revoked-midstream")
    with pytest.raises(SDK_ERRORS):
        stream(sdks, provider)
    assert sdks.fake.calls[-1].status in (400, 401)


@pytest.mark.parametrize("provider", ALL)
def test_connection_lost_in_midstream(sdks: Sdks, provider: str) -> None:
    """The model "fail-midstream" drops the connection, which no SDK takes for an end."""
    with pytest.raises(Exception, match=r"(?i)connection|incomplete|peer closed"):
        stream(sdks, provider, "fail-midstream")


def test_two_words_before_a_bad_end(fake: FakeProviders, http: httpx2.Client) -> None:
    """A message can ask for the bad end too; two words come before it."""
    body = {"model": "m", "messages": [{"role": "user", "content": "error-midstream"}]}
    answer = http.post(
        fake.base_url("demo") + "/chat/completions",
        headers={"Authorization": f"Bearer {fake.api_key('demo')}"},
        json={**body, "stream": True},
    )
    *chunks, error = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["", "Hello!", " This"]
    assert error["error"]["type"] == "server_error"


def test_message_of_text_parts(sdks: Sdks) -> None:
    """A message may be a list of parts, as LangChain sends it."""
    parts: list[Any] = [{"type": "text", "text": "in"}, {"type": "text", "text": "parts"}]
    answer = sdks.openai().chat.completions.create(
        model="m", messages=[{"role": "user", "content": parts}]
    )
    assert answer.choices[0].message.content == sdks.fake.reply_text("openai", "in\nparts")
