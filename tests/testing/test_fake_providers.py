"""The fake providers as hosts' tests use them: keys and answers, by real SDKs and by plain HTTP, and the server."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from google.genai import errors as google

from flask_byok.testing import FakeProviders
from tests.patience import soon
from tests.providers.conftest import call_client
from tests.testing.sdks import HELLO, sdk

CHECKS = {
    "openai": "/models",
    "anthropic": "/v1/models",
    "google": "/v1beta/models?pageSize=1",
    "groq": "/models",
    "xai": "/api-key",
    "openrouter": "/key",
    "custom": "/models",
    "demo": "/models",
}


def headers_for(api_key: str) -> dict[str, str]:
    """Send a key as most providers want it."""
    return {"Authorization": f"Bearer {api_key}"}


# answers


def test_no_key_at_all(fake: FakeProviders, http: httpx2.Client) -> None:
    """A call without a key is refused, and recorded with none."""
    for provider, path in CHECKS.items():
        assert http.get(fake.base_url(provider) + path).status_code in (401, 403)
        assert fake.calls[-1].api_key is None


def test_what_is_peculiar_to_providers(fake: FakeProviders, http: httpx2.Client) -> None:
    """OpenAI repeats a bad key, OpenRouter's models are public, Google has an ErrorInfo and reads no `?key=`."""
    url = fake.base_url("openai") + "/models"
    answer = http.get(url, headers=headers_for("sk-who-knows"))
    assert "sk-who-knows" in answer.json()["error"]["message"]
    assert http.get(fake.base_url("openrouter") + "/models").status_code == 200
    url = fake.base_url("google") + "/v1beta/models"
    error = http.get(url, headers={"x-goog-api-key": "AIzaNobody"}).json()["error"]
    info = error["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (info["reason"], info["domain"]) == ("API_KEY_INVALID", "googleapis.com")
    assert http.get(url, params={"key": fake.api_key("google")}).status_code == 403


ERRORS = [
    ("openai", "bad", openai.AuthenticationError),
    ("openai", "restricted", openai.AuthenticationError),
    ("openai", "broke", openai.RateLimitError),
    ("openai", "rate_limited", openai.RateLimitError),
    ("xai", "bad", openai.BadRequestError),
    ("xai", "disabled", openai.AuthenticationError),
    ("openrouter", "broke", openai.APIStatusError),
    ("anthropic", "bad", anthropic.AuthenticationError),
    ("anthropic", "restricted", anthropic.PermissionDeniedError),
    ("anthropic", "broke", anthropic.BadRequestError),
    ("anthropic", "overloaded", anthropic.InternalServerError),
    ("google", "bad", google.ClientError),
    ("google", "restricted", google.ClientError),
    ("google", "overloaded", google.ServerError),
]


def test_a_chat_raises_the_sdks_error(fake: FakeProviders) -> None:
    """A chat with such a key raises what the real service makes the SDK raise."""
    for provider, behaviour, error in ERRORS:
        with pytest.raises(error):
            call_client(provider, sdk(fake, provider, behaviour))


def test_whole_answers_and_their_usage(fake: FakeProviders) -> None:
    """Without a stream the answer comes at once, with its usage; a message may be a list of parts."""
    parts = [{"type": "text", "text": "in"}, {"type": "text", "text": "parts"}]
    chat = sdk(fake, "openai").chat.completions.create
    answer = chat(model="m", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == fake.reply_text("openai", "in\nparts")
    assert answer.usage.prompt_tokens == 2
    message = call_client("anthropic", sdk(fake, "anthropic"))
    assert message == type(message).model_validate_json(message.model_dump_json())
    assert message.content[0].text == fake.reply_text("anthropic", "Hello")
    found = call_client("google", sdk(fake, "google"))
    assert found.text == fake.reply_text("google", "Hello")
    assert found.usage_metadata.prompt_token_count == 1


def test_the_order_of_a_streams_events(fake: FakeProviders) -> None:
    """OpenAI's usage comes last, if asked for; Anthropic's events come in their documented order."""
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    chat = sdk(fake, "openai").chat.completions.create
    *_, last = chat(model="m", messages=HELLO, **options)
    assert last.choices == []
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    create = sdk(fake, "anthropic").messages.create
    events = create(model="m", max_tokens=9, messages=HELLO, stream=True)
    assert list(dict.fromkeys(event.type for event in events)) == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
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


def test_google_pages_its_models(fake: FakeProviders) -> None:
    """A page of one model names the next page, and the SDK follows it."""
    pager = sdk(fake, "google").models.list(config={"page_size": 1})
    assert len(pager.page) == 1
    assert len(list(pager)) == 2


def test_two_words_before_a_bad_end(fake: FakeProviders, http: httpx2.Client) -> None:
    """The message "error-midstream" ends a stream with an error after two words."""
    body = {"model": "m", "messages": [{"role": "user", "content": "error-midstream"}]}
    answer = http.post(
        fake.base_url("demo") + "/chat/completions",
        headers=headers_for(fake.api_key("demo")),
        json={**body, "stream": True},
    )
    *chunks, error = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["", "Hello!", " This"]
    assert error["error"]["code"] == "server_is_overloaded"


def test_a_record_shows_no_key(fake: FakeProviders) -> None:
    """The repr of a record names the call, not the key."""
    call_client("openai", sdk(fake, "openai"))
    [call] = fake.calls
    assert repr(call) == "<RecordedCall openai POST /openai/v1/chat/completions -> 200>"
    fake.clear_calls()
    assert fake.calls == []


def test_answers_wait_as_long_as_asked(fake: FakeProviders, http: httpx2.Client) -> None:
    """`slow_seconds` delays a slow key's answer, `latency` each answer, and `chunk_delay` each event."""
    started = time.monotonic()
    headers = headers_for(fake.api_key("demo", "slow"))
    assert http.get(fake.base_url("demo") + "/models", headers=headers).status_code == 200
    assert time.monotonic() - started >= fake.slow_seconds
    chat = sdk(fake, "openai").chat.completions.create
    fake.latency, fake.chunk_delay = 0.1, 0.01
    started = time.monotonic()
    chunks = list(chat(model="m", messages=HELLO, stream=True))
    assert time.monotonic() - started >= 0.1 + 0.01 * len(chunks)


# keys


def test_keys_are_the_same_on_every_run_and_differ_by_owner(
    fake: FakeProviders, http: httpx2.Client
) -> None:
    """A key depends on provider, behaviour and owner only, has the provider's prefix, and is good at every server."""
    with FakeProviders() as other:
        assert other.api_key("openai", owner=7) == fake.api_key("openai", owner=7)
        headers = headers_for(other.api_key("demo"))
    assert http.get(fake.base_url("demo") + "/models", headers=headers).status_code == 200
    api_keys = {
        fake.api_key(p, b, owner=o) for p in CHECKS for b in ("good", "broke") for o in (1, 2)
    }
    assert len(api_keys) == len(CHECKS) * 4
    assert fake.api_key("anthropic").startswith("sk-ant-api03-")
    assert "T3BlbkFJ" in fake.api_key("openai")


def test_added_and_revoked_keys(fake: FakeProviders, http: httpx2.Client) -> None:
    """A key of one's own works from `add_key` until `revoke`, and stays revoked; misspelt names raise."""
    url, mine, theirs = fake.base_url("groq") + "/models", "gsk_mine", fake.api_key("groq")
    assert http.get(url, headers=headers_for(mine)).status_code == 401
    fake.add_key("groq", mine)
    for api_key in (mine, theirs):
        assert http.get(url, headers=headers_for(api_key)).status_code == 200
        fake.revoke("groq", api_key)
        assert http.get(url, headers=headers_for(api_key)).status_code == 401
    assert fake.api_key("groq") == theirs
    assert http.get(url, headers=headers_for(theirs)).status_code == 401
    with pytest.raises(ValueError, match="brok"):
        fake.add_key("openai", "sk-x", "brok")
    with pytest.raises(ValueError, match="opneai"):
        fake.revoke("opneai", "sk-x")


def test_answer_next(fake: FakeProviders, http: httpx2.Client) -> None:
    """Scripted answers are given once each, in order, for any key."""
    fake.answer_next("custom", 404, {"error": "no listing"})
    fake.answer_next("custom", 503, None, Retry_After="7")
    url, headers = fake.base_url("custom") + "/models", headers_for(fake.api_key("custom"))
    answers = [http.get(url, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [404, 503, 200]
    assert answers[1].headers["retry-after"] == "7"


# the server


def chat(http: httpx2.Client, fake: FakeProviders, owner: int) -> str:
    """Stream one demo answer as this owner and return its raw events."""
    message = {"role": "user", "content": f"owner:{owner}"}
    answer = http.post(
        fake.base_url("demo") + "/chat/completions",
        headers=headers_for(fake.api_key("demo", owner=owner)),
        json={"model": "m", "stream": True, "messages": [message]},
    )
    assert answer.status_code == 200
    return answer.text


def test_64_threads_stream_at_once(fake: FakeProviders, http: httpx2.Client) -> None:
    """64 threads stream at the same time, each its own answer, and all calls are recorded."""
    http.timeout = httpx2.Timeout(60)
    with ThreadPoolExecutor(64) as pool:
        texts = list(pool.map(lambda owner: chat(http, fake, owner), range(256)))
    assert all(f"owner:{owner}" in text.replace('"', "") for owner, text in enumerate(texts))
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert len(fake.calls_for("demo")) == 256


def test_a_connection_is_kept_alive(fake: FakeProviders, http: httpx2.Client) -> None:
    """Requests in a row use one connection, also after a stream."""
    before = threading.active_count()
    for _ in range(5):
        chat(http, fake, 1)
    assert threading.active_count() - before <= 1


def test_cookies_are_offered_and_recorded(fake: FakeProviders, http: httpx2.Client) -> None:
    """With `set_cookie` each answer sets a cookie, and one that comes back is recorded."""
    url = fake.base_url("openai") + "/models"
    http.get(url)
    assert not http.cookies
    fake.set_cookie = True
    http.get(url)
    http.get(url)
    assert dict(fake.calls[-1].cookies) == {"fake_session": "1"}


def test_stop_cuts_streams_and_frees_the_port(http: httpx2.Client) -> None:
    """Stopping ends open streams at once and closes the port; one that never started is stopped too."""
    FakeProviders().stop()
    fake = FakeProviders()
    fake.start()
    fake.chunk_delay = 30
    url, headers = fake.base_url("demo") + "/chat/completions", headers_for(fake.api_key("demo"))
    body = {"model": "m", "stream": True, "messages": HELLO}
    with http.stream("POST", url, headers=headers, json=body) as answer:
        chunks = answer.iter_bytes()
        next(chunks)
        with soon():
            fake.stop()
            with pytest.raises(httpx2.TransportError):
                list(chunks)
    with pytest.raises(httpx2.ConnectError):
        http.get(url)


def test_a_defect_of_the_server_is_not_silent(http: httpx2.Client) -> None:
    """An error in a handler is raised when the server stops."""
    fake = FakeProviders()
    fake.start()
    fake.latency = "soon"  # type: ignore[assignment]
    with pytest.raises(httpx2.TransportError):
        http.get(fake.base_url("demo") + "/models")
    with pytest.raises(RuntimeError, match="fake provider failed"):
        fake.stop()


def test_a_redirect_leads_where_a_key_would_be_seen(
    fake: FakeProviders, http: httpx2.Client
) -> None:
    """The redirect leads to another provider, or where one asks; what is not there answers 404."""
    url = fake.hostile_url("redirect") + "/models"
    answer = http.get(url, headers=headers_for("secret-of-mine"))
    assert (answer.status_code, fake.calls[0].api_key) == (302, "secret-of-mine")
    assert answer.headers["location"] == fake.base_url("custom") + "/models"
    fake.redirect_to = "http://169.254.169.254"
    assert http.get(url).headers["location"] == "http://169.254.169.254/models"
    headers = headers_for(fake.api_key("demo"))
    assert http.get(fake.base_url("demo") + "/nothing", headers=headers).status_code == 404
    assert http.get(fake.origin + "/nobody/v1/models").status_code == 404
    with pytest.raises(ValueError, match="hostile"):
        fake.hostile_url("friendly")
