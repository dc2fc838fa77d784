"""SDKs that nobody here wrote, with the gateway as their base URL: they need no other change."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from flask_byok.testing import FakeProviders
from tests.guarantees.wire import served

from .gateway_host import CHATS, GATEWAY, gateway_app

#: What the host knows ann by: for an SDK it is the API key.
TOKEN = "token-of-ann"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
FUNCTION = {
    "name": "weather",
    "description": "Tell it.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = ("call_1", "weather", {"city": "Köln"})


@pytest.fixture
def url(tmp_path: Path, fake: FakeProviders) -> Iterator[str]:
    """Serve a host to ann, who has a key for a provider of each wire; return the gateway's address."""
    app = gateway_app(tmp_path, fake)
    with app.app_context(), app.byok.acting_for("ann"):
        for provider in CHATS:
            app.byok.set(provider, fake.api_key(provider))
    with served(app) as port:
        yield f"http://127.0.0.1:{port}{GATEWAY}"


@pytest.mark.parametrize("where", ["openai", "v1"])
def test_openai(url: str, fake: FakeProviders, where: str) -> None:
    """Chats, streams, tools, embeddings, images, sound, models, and how long to wait."""
    client = openai.OpenAI(base_url=f"{url}/{where}", api_key=TOKEN, max_retries=0)
    before = "" if where == "openai" else "openai/"
    chat: Any = {"model": f"{before}gpt-4o-mini", "messages": HELLO}
    text = fake.reply_text("openai", "hello")
    assert client.chat.completions.create(**chat).choices[0].message.content == text
    with client.chat.completions.stream(**chat) as stream:
        assert stream.get_final_completion().choices[0].message.content == text
    fake.stream_next("openai", tool_calls=[CALL])
    tools: Any = [{"type": "function", "function": FUNCTION}]
    [call] = client.chat.completions.create(**chat, tools=tools).choices[0].message.tool_calls or []
    assert call.function.name == "weather"
    vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
    fake.answer_next("openai", 200, {"object": "list", "model": "e", "data": [vector], "usage": {}})
    model = f"{before}text-embedding-3-small"
    made = client.embeddings.create(model=model, input="x", encoding_format="float")
    assert made.data[0].embedding == [0.5]
    fake.answer_next("openai", 200, {"text": "Hello."})
    sound = ("a.wav", BytesIO(b"RIFF"), "audio/wav")
    heard = client.audio.transcriptions.create(model=f"{before}whisper-1", file=sound)
    assert heard.text == "Hello."
    assert "gpt-4o-mini" in [model.id.removeprefix(before) for model in client.models.list()]
    fake.refuse_next("openai", "provider_rate_limited", 21)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**chat)
    assert caught.value.response.headers["retry-after"] == "21"
    assert {call.api_key for call in fake.calls} == {
        fake.api_key(p) for p in ("openai", "anthropic", "google")
    }


@pytest.mark.parametrize("model", ["anthropic/claude-haiku-4-5", "google/gemini-2.5-flash"])
def test_openai_with_the_models_of_others(url: str, fake: FakeProviders, model: str) -> None:
    """OpenAI's SDK talks with providers of other formats, and understands their ends and refusals."""
    provider = model.partition("/")[0]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0)
    chat: Any = {"model": model, "messages": HELLO}
    text = fake.reply_text(provider, "hello")
    assert client.chat.completions.create(**chat).choices[0].message.content == text
    with client.chat.completions.stream(**chat) as stream:
        assert stream.get_final_completion().choices[0].message.content == text
    fake.revoke(provider, fake.api_key(provider))
    with pytest.raises(openai.ConflictError) as caught:
        client.chat.completions.create(**chat, stream=True)
    assert caught.value.code == "key_rejected"


def test_openais_own_errors(url: str, fake: FakeProviders) -> None:
    """Where nobody has a key the SDK raises the error with our code and sentence, at once."""
    client = openai.OpenAI(base_url=f"{url}/groq", api_key=TOKEN)
    with pytest.raises(openai.ConflictError) as caught:
        client.chat.completions.create(model="m", messages=HELLO)
    assert caught.value.code == "key_missing"
    assert "Add one in the API key settings" in caught.value.message


def test_anthropic(url: str, fake: FakeProviders) -> None:
    """Messages, streams, tools, counts, models, and how long to wait."""
    client = anthropic.Anthropic(base_url=f"{url}/anthropic", api_key=TOKEN, max_retries=0)
    chat: Any = {"model": "claude-haiku-4-5", "messages": HELLO, "max_tokens": 99}
    text = fake.reply_text("anthropic", "hello")
    assert client.messages.create(**chat).content[0].text == text
    with client.messages.stream(**chat) as stream:
        assert stream.get_final_text() == text
    fake.stream_next("anthropic", tool_calls=[CALL])
    tools: Any = [{"name": "weather", "input_schema": FUNCTION["parameters"]}]
    assert client.messages.create(**chat, tools=tools).content[0].input == CALL[2]
    fake.answer_next("anthropic", 200, {"input_tokens": 7})
    assert client.messages.count_tokens(model="c", messages=HELLO).input_tokens == 7
    assert [model.id for model in client.models.list()]
    fake.refuse_next("anthropic", "provider_rate_limited", 21)
    with pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(**chat)
    assert caught.value.response.headers["retry-after"] == "21"


def test_google(url: str, fake: FakeProviders) -> None:
    """Contents, streams, tools, counts and refusals."""
    options: Any = {"base_url": f"{url}/google"}
    client = genai.Client(api_key=TOKEN, vertexai=False, http_options=options)
    chat: Any = {"model": "gemini-2.5-flash", "contents": "hello"}
    text = fake.reply_text("google", "hello")
    assert client.models.generate_content(**chat).text == text
    pieces = client.models.generate_content_stream(**chat)
    assert "".join(piece.text or "" for piece in pieces) == text
    fake.stream_next("google", tool_calls=[CALL])
    config: Any = {"tools": [{"function_declarations": [{"name": "weather"}]}]}
    [called] = client.models.generate_content(**chat, config=config).function_calls or []
    assert called.args == CALL[2]
    fake.answer_next("google", 200, {"totalTokens": 7})
    assert client.models.count_tokens(**chat).total_tokens == 7
    fake.revoke("google", fake.api_key("google"))
    for code in (400, 409):  # the provider's, then ours
        with pytest.raises(genai.errors.ClientError) as caught:
            client.models.generate_content(**chat)
        assert caught.value.code == code


def test_langchain(url: str, fake: FakeProviders) -> None:
    """Its models of OpenAI and Anthropic answer and stream; so do those of others, and embeddings."""
    ours: Any = {"api_key": TOKEN, "max_retries": 0}
    models = {
        "openai": ChatOpenAI(base_url=f"{url}/openai", model="gpt-4o-mini", **ours),
        "google": ChatOpenAI(base_url=f"{url}/v1", model="google/gemini-2.5-flash", **ours),
        "anthropic": ChatAnthropic(base_url=f"{url}/anthropic", model="claude-haiku-4-5", **ours),  # type: ignore[call-arg]
    }
    for provider, model in models.items():
        text = fake.reply_text(provider, "hello")
        assert model.invoke("hello").content == text
        pieces: list[Any] = [piece.content for piece in model.stream("hello")]
        whole = "".join(
            p if isinstance(p, str) else "".join(t.get("text", "") for t in p) for p in pieces
        )
        assert whole == text
    vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
    fake.answer_next("openai", 200, {"object": "list", "model": "e", "data": [vector], "usage": {}})
    embeddings = OpenAIEmbeddings(
        base_url=f"{url}/openai", check_embedding_ctx_length=False, **ours
    )
    assert embeddings.embed_query("x") == [0.5]
