import json

import pytest
from test_chat import app, ask, client


@pytest.fixture
def fake(client, byok_fake_providers):
    key = {"provider": "openai", "api_key": byok_fake_providers.api_key("openai")}
    assert client.post("/api/providers/keys/set", json=key).status_code == 200
    return byok_fake_providers


def events(answer):
    """Return the data of a stream's events by their names; of several the last."""
    blocks = answer.text.strip().split("\n\n")
    pairs = [block.split("\n") for block in blocks if block.startswith("event: ")]
    return {name[7:]: json.loads(data[6:]) for name, data in pairs}


def test_an_answer_that_is_too_long(client, fake):
    fake.stream_next("openai", "Once", " upon", finish="length", usage=(9, 2))
    found = events(ask(client, "Tell me a story"))
    assert found["finish"] == {"reason": "length"}
    assert found["usage"] == {"input_tokens": 9, "output_tokens": 2}


def test_a_refusal(client, fake):
    fake.stream_next("openai", "I cannot help with that.", finish="refusal")
    found = events(ask(client, "Something bad"))
    assert found["delta"] == {"text": "I cannot help with that."}
    assert found["finish"] == {"reason": "refusal"}


def test_a_tool_call(client, fake):
    fake.stream_next("openai", tool_calls=[("call_1", "weather", {"city": "Oslo"})])
    found = events(ask(client, "Will it rain?"))
    assert found["tool_call"]["name"] == "weather"
    assert json.loads(found["tool_call"]["arguments"]) == {"city": "Oslo"}
    assert found["finish"] == {"reason": "tool_calls"}


def test_too_many_calls(client, fake):
    fake.refuse_next("openai", "provider_rate_limited", retry_after=30)
    found = events(ask(client, "hello"))
    assert found["error"]["code"] == "provider_rate_limited"
    assert found["error"]["retry_after"] == 30


def test_a_stream_that_is_cut(client, fake):
    fake.stream_next("openai", "Once", " upon", cut_after=1)
    found = events(ask(client, "Tell me a story"))
    assert found["delta"] == {"text": "Once"}
    assert "error" in found
    assert "done" not in found


def test_silence(client, fake):
    fake.stream_next("openai", "Once", silence={0: 60})
    body = {"messages": [{"role": "user", "content": "Tell me a story"}]}
    with client.post("/chat", json=body, buffered=False) as answer:
        assert b"event: start" in next(answer.iter_encoded())
