"""Front ends that nobody here wrote read our streams: OpenAI's SDKs, the AI SDK's `useChat`, and `fetch`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from threading import Thread
from typing import Any

import openai
import pytest
from flask import Response, request
from werkzeug.serving import make_server

from flask_byok import get_provider_with_api_key
from flask_byok.testing import FakeProviders
from tests.app import make_app

from .callers import error, final, run_client, run_client_often

CALLS = [("call_1", "weather", {"city": "Köln"}), ("call_2", "clock", {})]
WHOLE = {"reasoning": ["Hm."], "tool_calls": CALLS, "usage": (11, 7)}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProviders]:
    """Run fake providers."""
    with FakeProviders() as fake:
        yield fake


@pytest.fixture(scope="module")
def origin(
    peers: None, fake: FakeProviders, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Serve a host that streams in each protocol, and give its address."""
    app = make_app(tmp_path_factory.mktemp("host"), fake)

    @app.csrf.exempt
    @app.post("/<protocol>", defaults={"rest": ""})
    @app.post("/<protocol>/<path:rest>")
    def answer(protocol: Any, rest: str) -> Response:
        body = request.get_json()
        asked = body.get("messages") or [{"role": "user", "content": body["message"]}]
        provider = get_provider_with_api_key("openai", fake.api_key("openai"))
        return app.byok.stream_response(provider, asked, "m", protocol=protocol)

    server = make_server("127.0.0.1", 0, app, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_openai_in_python(origin: str, fake: FakeProviders) -> None:
    """OpenAI's SDK for Python reads texts, tool calls, usage and the end, and raises an error within the stream."""
    client = openai.OpenAI(api_key="none", base_url=f"{origin}/openai", max_retries=0)
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    with client:
        fake.stream_next("openai", "Grüße ", "🌍", **WHOLE)
        with client.chat.completions.stream(**asked) as stream:
            made = stream.get_final_completion()
        choice = made.choices[0]
        assert (choice.message.content, choice.finish_reason) == ("Grüße 🌍", "tool_calls")
        called = choice.message.tool_calls or []
        assert [json.loads(call.function.arguments) for call in called] == [{"city": "Köln"}, {}]
        assert made.usage is not None
        assert made.usage.total_tokens == 18
        fake.stream_next("openai", "Once", cut_after=1)
        with pytest.raises(openai.APIError, match="broke off") as caught:
            list(client.chat.completions.create(**asked, stream=True))
    assert caught.value.code == "stream_incomplete"


def test_openai_in_node(origin: str, fake: FakeProviders) -> None:
    """So does the one for Node.js, whose helper for streams is the strictest reader."""
    fake.stream_next("openai", "Grüße ", "🌍", **WHOLE)
    fake.refuse_next("openai", "provider_rate_limited", retry_after=90)
    good, limited = run_client_often("openai_chat", f"{origin}/openai", {}, {})
    choice = final(good)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Grüße 🌍", "tool_calls")
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["call_1", "call_2"]
    assert error(limited)["code"] == "provider_rate_limited"


@pytest.mark.parametrize("sdk", ["ai", "ai-5"])
def test_use_chat(origin: str, fake: FakeProviders, sdk: str) -> None:
    """`useChat` sends its own messages, and shows text, reasoning, tools, the end, and an error as an error."""
    fake.stream_next("openai", "Grüße ", "🌍", **WHOLE)
    fake.stream_next("openai", "Once", cut_after=1)
    fake.refuse_next("openai", "no_credit")
    options = {"sdk": sdk}
    good, cut, refused = (
        final(lines)
        for lines in run_client_often("ui_message", f"{origin}/ui-message", *[options] * 3)
    )
    parts = {part["type"]: part for part in good["message"]["parts"]}
    assert parts["text"]["text"] == "Grüße 🌍"
    assert parts["reasoning"]["text"] == "Hm."
    assert parts["dynamic-tool"]["toolName"] == "clock"
    assert good["message"]["metadata"]["usage"]["totalTokens"] == 18
    assert (good["status"], good["finish"]["finishReason"]) == ("ready", "tool-calls")
    assert (cut["status"], cut["error"]["message"]) == (
        "error",
        "The connection to the provider broke off. Try again.",
    )
    assert refused["status"] == "error"
    sent: Any = fake.calls_for("openai")[-1].body
    assert sent["messages"][0]["content"] in ("hello", [{"type": "text", "text": "hello"}])


def test_fetch(origin: str, fake: FakeProviders) -> None:
    """`fetch` reads plain text, fails where it breaks off, and sees the status of an error before it."""
    fake.stream_next("openai", "Grüße ", "🌍")
    assert final(run_client("fetch_stream", f"{origin}/text")) == "Grüße 🌍"
    fake.stream_next("openai", "Once", " upon", cut_after=1)
    assert error(run_client("fetch_stream", f"{origin}/text"))["name"] == "TypeError"
    fake.refuse_next("openai", "no_credit")
    head, *_, body = run_client("fetch_stream", f"{origin}/text")
    assert (head["status"], json.loads(body["final"])["code"]) == (402, "no_credit")
    fake.stream_next("openai", "Hi")
    assert final(run_client("fetch_stream", f"{origin}/byok")).endswith("event: done\ndata: {}\n\n")
