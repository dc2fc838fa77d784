"""The tokens of calls through the gateway: counted with the use, as the passed bytes tell them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Response

from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import HostApp

from .gateway_host import API_KEY, CHATS, GATEWAY, Upstream, chat_of, gateway_app, upstream

#: Calls a provider, by default with a conversation, and returns the answer and the tokens that ann has used there.
Ask = Callable[..., tuple[Any, tuple[int, int]]]


def asking(app: HostApp, api_keys: dict[str, str]) -> Ask:
    with app.app_context(), app.byok.acting_for("ann"):
        for provider, api_key in api_keys.items():
            app.byok.set(provider, api_key, validate="off")
    client = app.test_client(use_cookies=False)
    headers = {"Authorization": "Bearer token-of-ann"}

    def ask(provider: str, path: str = "", **body: Any) -> tuple[Any, tuple[int, int]]:
        url = f"{GATEWAY}/{provider}/{path or CHATS[provider]}"
        with client.post(url, json=body or chat_of(provider), headers=headers) as answer:
            answer.get_data()
        get_state(app).service.traffic.flush()
        stats = client.get("/api/keys/stats", headers=headers).get_json()
        used = stats["by_provider"][provider]
        return answer, (used["input_tokens"], used["output_tokens"])

    return ask


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[tuple[Upstream, Ask]]:
    """Return a provider whose bytes the test decides, and how ann calls it."""
    with upstream() as (provider, base_urls):
        app = gateway_app(tmp_path, BYOK_BASE_URLS=base_urls)
        yield provider, asking(app, dict.fromkeys(CHATS, API_KEY))


@pytest.mark.parametrize("provider", CHATS)
def test_whole_and_streamed_chats(tmp_path: Path, fake: FakeProviders, provider: str) -> None:
    """Both forms of a chat count what the provider says; OpenAI's says it in a stream that asks for it."""
    ask = asking(gateway_app(tmp_path, fake), {provider: fake.api_key(provider)})
    fake.stream_next(provider, "Hello", usage=(9, 2))
    assert ask(provider)[1] == (9, 2)
    fake.stream_next(provider, "Hello", usage=(30, 4))
    if provider == "google":
        path = CHATS[provider].replace("generate", "streamGenerate") + "?alt=sse"
        assert ask(provider, path)[1] == (39, 6)
    else:
        options = {"stream_options": {"include_usage": True}} if provider == "openai" else {}
        assert ask(provider, **chat_of(provider, stream=True, **options))[1] == (39, 6)


#: Three tokens in and four out, in the words of each API.
CHAT = {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}
NEWER = {"usage": {"input_tokens": 3, "output_tokens": 4}}
ZEROS = {"usage": {**CHAT["usage"], "input_tokens": 0, "output_tokens": 0}}
CACHED = {"usage": {"input_tokens": 1, "cache_read_input_tokens": 2, "output_tokens": 4}}
GIVEN = {"usageMetadata": {"promptTokenCount": 3}}
THOUGHT = {**GIVEN["usageMetadata"], "candidatesTokenCount": 1, "thoughtsTokenCount": 3}
GOOGLE = {"usageMetadata": THOUGHT}

#: What is no usage, although it looks like it: a text, and the arguments of a call that stand before it.
TEXT = 'He said: "usage": {"prompt_tokens": 5}'
ARGUMENTS = {"usage": {"input_tokens": 7, "prompt_tokens": 7}}
ANSWERS = {
    "chat": ("openai", {"choices": [{"message": {"content": TEXT}}], **CHAT}),
    "embedding": ("openai", {"data": [{"embedding": [0.5] * 50_000}], **CHAT}),
    "response": ("openai", {"output": [TEXT], **NEWER, "metadata": {"a": "b"}}),
    "both names": ("openai", ZEROS),
    "message": ("anthropic", {"content": [{"input": ARGUMENTS}], **CACHED}),
    "google": ("google", {"candidates": [{"args": ARGUMENTS}], **GOOGLE}),
    "google's list": ("google", [GIVEN, GOOGLE]),
}


@pytest.mark.parametrize("form", [{"indent": 2}, {"separators": (",", ":")}], ids=["long", "short"])
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_all_paths(raw: tuple[Upstream, Ask], name: str, form: Any) -> None:
    """The usage counts wherever an API has it, in short and long answers, and passes as it is."""
    provider, body = ANSWERS[name]
    text = json.dumps(body, **form)
    raw[0].answer = lambda: Response(text, mimetype="application/json")
    answer, tokens = raw[1](provider)
    assert answer.get_data(as_text=True) == text
    assert tokens == (3, 4)


#: Streams of events, in which only some tell anything.
STREAMS = {
    "chat": ("openai", [{"choices": [{"delta": {"content": TEXT}}], "usage": None}, CHAT]),
    "groq": ("openai", [{"choices": [], "x_groq": CHAT}]),
    "response": ("openai", [{"response": {"usage": None}}, {"response": NEWER}]),
    "anthropic": ("anthropic", [{"message": NEWER}, {"usage": {"output_tokens": 4}}]),
    "google": ("google", [GIVEN, GOOGLE]),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("name", STREAMS)
def test_streams_of_events(raw: tuple[Upstream, Ask], name: str, size: int) -> None:
    """The last word of each number counts, however the stream is cut into pieces."""
    provider, events = STREAMS[name]
    whole = b"".join(b"data: %b\r\n\r\n" % json.dumps(event).encode() for event in events)
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    raw[0].answer = lambda: Response(iter(pieces), mimetype="text/event-stream")
    answer, tokens = raw[1](provider)
    assert answer.get_data() == whole
    assert tokens == (3, 4)


def test_what_a_cut_stream_told(raw: tuple[Upstream, Ask]) -> None:
    """Tokens of the input that came at the beginning count, although the answer breaks off."""
    begun = b'data: {"message": {"usage": {"input_tokens": 3}}}\n\n'

    def broken() -> Iterator[bytes]:
        yield begun
        raise ConnectionResetError

    raw[0].answer = lambda: Response(broken(), mimetype="text/event-stream")
    answer, tokens = raw[1]("anthropic")
    assert answer.get_data().startswith(begun)
    assert tokens == (3, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\xff",
        '{"usage": {"prompt_tokens": 3',
        '{"usage": ' + '{"a": ' * 9_000,
        '{"usage": {"prompt_tokens": "many", "completion_tokens": -1}}',
        '{"usage": {"prompt_tokens": 1e99}}',
    ],
    ids=["empty", "bytes", "cut", "deep", "no numbers", "incredible"],
)
def test_what_is_no_usage(raw: tuple[Upstream, Ask], text: str) -> None:
    """An answer that tells no tokens passes, and counts none."""
    raw[0].answer = lambda: Response(text, mimetype="application/json")
    answer, tokens = raw[1]("openai")
    assert (answer.status_code, answer.get_data(as_text=True)) == (200, text)
    assert tokens == (0, 0)
