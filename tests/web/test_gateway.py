"""The gateway: what passes, and what does not."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from flask import Response, request

from flask_byok.errors import RateLimitedError
from flask_byok.http import transport
from flask_byok.http.outbound import Slots
from flask_byok.testing import FakeProviders
from flask_byok.web import gateway, protocols
from flask_byok.web.caller import get_state
from tests.app import Browser, HostApp, browser, make_app, problem_of
from tests.guarantees.wire import Wire, served
from tests.http.hostile_server import chunk, chunked, hostile
from tests.services import wait_until

from .gateway_host import (
    API_KEY,
    CHATS,
    GATEWAY,
    Upstream,
    chat_of,
    code_of,
    gateway_app,
    upstream,
    with_keys,
)

CHAT = f"{GATEWAY}/openai/chat/completions"


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Return a host with the gateway, in front of fake providers."""
    return gateway_app(tmp_path, fake)


@pytest.fixture
def ours(app: HostApp, fake: FakeProviders) -> Browser:
    """Return a visitor with a key for a provider of each wire."""
    return with_keys(app, **{provider: fake.api_key(provider) for provider in CHATS})


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[tuple[Upstream, Browser]]:
    """Return a provider whose bytes the test decides, and a visitor with a key for each wire."""
    with upstream() as (provider, base_urls):
        app = gateway_app(tmp_path, BYOK_BASE_URLS=base_urls)
        yield provider, with_keys(app, **dict.fromkeys(CHATS, API_KEY))


# What passes


@pytest.mark.parametrize("provider", CHATS)
@pytest.mark.parametrize("streamed", [False, True])
def test_good_bodies_pass_byte_by_byte(
    ours: Browser, fake: FakeProviders, provider: str, streamed: bool
) -> None:
    """The answer is the provider's to the last byte, with the person's key and whose it is."""
    path, body, query = CHATS[provider], chat_of(provider), ""
    if provider == "google" and streamed:
        path, query = path.replace("generate", "streamGenerate"), "?alt=sse"
    elif streamed:
        body["stream"] = True
    answer = ours.post(f"{GATEWAY}/{provider}/{path}{query}", json=body)
    call = fake.calls_for(provider)[-1]
    assert call.api_key == fake.api_key(provider)
    assert call.body == body
    direct = httpx2.post(
        f"{fake.base_url(provider)}/{path}{query}",
        json=body,
        headers={n: v for n, v in call.headers.items() if n not in ("host", "content-length")},
    )
    assert answer.data == direct.content
    assert answer.headers["Content-Type"] == direct.headers["Content-Type"]
    assert answer.headers["X-BYOK-Source"] == "session"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "sandbox" in answer.headers["Content-Security-Policy"]


LISTED = {
    (
        "openai",
        "POST",
    ): "completions responses embeddings moderations images/generations images/edits images/variations "
    "audio/speech audio/transcriptions audio/translations",
    ("openai", "GET"): "models models/ft:gpt-4o:org::1 models/a/b",
    ("anthropic", "POST"): "v1/messages v1/messages/count_tokens",
    ("anthropic", "GET"): "v1/models v1/models/claude-haiku-4-5",
    (
        "google",
        "POST",
    ): "v1beta/models/g-1.5:countTokens v1/models/a:embedContent v1beta/models/a:batchEmbedContents",
    ("google", "GET"): "v1beta/models v1/models/gemini-2.5-flash",
}
NOT_LISTED = {
    ("openai", "GET"): "files batches responses/resp_1 chat/completions models/.hidden models/a/../../files v1/models",
    ("openai", "POST"): "files models chat/completions/ fine_tuning/jobs chat/completionsx",
    **{("openai", method): "chat/completions models" for method in ("PUT", "PATCH", "DELETE")},
    ("anthropic", "GET"): "v1/files v1/messages/batches v1/models/a/b models",
    ("anthropic", "POST"): "v1/messages/batches v1/complete",
    ("google", "GET"): "v1beta/files v1beta/cachedContents v1beta/models/a/operations v2/models",
    ("google", "POST"): "v1beta/models/a:batchGenerateContent upload/v1beta/files v1beta/tunedModels v1beta/models/a",
    ("aws", "GET"): "models",
    ("v1", "GET"): "files",
    ("v1", "POST"): "messages",
}  # fmt: skip


def test_listed_paths_pass(raw: tuple[Upstream, Browser]) -> None:
    """Each path of the wire's list reaches the provider below its base URL."""
    came, visitor = raw[0].came, raw[1]
    for (provider, method), paths in LISTED.items():
        base = "/v1/" if provider == "openai" else "/"
        for path in paths.split():
            answer = visitor.open(f"{GATEWAY}/{provider}/{path}", method=method, json={"a": 1})
            assert (answer.status_code, answer.data) == (200, b"{}"), path
            assert came.pop()[:2] == (method, base + path)


def test_no_other_path_passes(ours: Browser, fake: FakeProviders) -> None:
    """What is not in the list is 404 in the wire's shape, and nothing is sent."""
    fake.clear_calls()
    for (provider, method), paths in NOT_LISTED.items():
        for path in paths.split():
            answer = ours.open(f"{GATEWAY}/{provider}/{path}", method=method, json={})
            assert answer.status_code == 404, path
            assert code_of(answer, provider) == "not_found"
    assert ours.head(f"{GATEWAY}/openai/models").status_code == 404
    assert fake.calls == []


TRICKS = """
openai/models/../files openai/models/%2e%2e/files openai/models/..%2ffiles openai/models/a..b openai//models
openai/%2fmodels openai/models%5c..%5cfiles openai/models%3fx openai/models%0d%0aX-Evil:1 openai/models%00
openai/./models openai/../../providers/keys //models google/v1beta/models/a%2f..:generateContent
v1/models/../openai/files openai/models/%C3%A9 openai/models/a;b openai/models/%2523
"""


def test_tricks_with_paths_lead_nowhere(app: HostApp, ours: Browser, fake: FakeProviders) -> None:
    """Dots, encoded slashes, doubled slashes and control characters are no path of the list."""
    fake.clear_calls()
    with served(app) as port:
        wire = Wire(port)
        wire.cookie = f"session={ours.session_id}"
        for path in TRICKS.split():
            method = "POST" if path.startswith("google") else "GET"
            status, _ = wire.send(method, f"{GATEWAY}/{path}", Content_Type="application/json")
            assert status == 404, path
    assert fake.calls == []


def test_only_a_list_of_headers_passes_to_the_provider(raw: tuple[Upstream, Browser]) -> None:
    """Keys, cookies, addresses and names of the caller stay here; so do keys in the query."""
    came, visitor = raw[0].came, raw[1]
    dropped = {
        "Authorization": "Bearer sk-of-the-caller",
        "x-api-key": "sk-of-the-caller",
        "x-goog-api-key": "sk-of-the-caller",
        "api-key": "sk-of-the-caller",
        "Cookie-2": "a=b",
        "X-BYOK-Owner": "bob",
        "X-Forwarded-For": "203.0.113.9",
        "Forwarded": "for=203.0.113.9",
        "X-Stainless-OS": "Linux",
        "OpenAI-Organization": "org-of-the-caller",
        "Referer": "https://example.org/secret",
        "Transfer-Encoding-X": "chunked",
    }
    kept = {
        "anthropic-beta": "tools",
        "OpenAI-Beta": "assistants=v2",
        "Accept": "text/event-stream",
    }
    query = "?alt=sse&key=sk-a&api_key=sk-b&Access_Token=sk-c&$key=sk-d&api-version=1"
    visitor.post(f"{CHAT}{query}", json={}, headers={**dropped, **kept})
    _, path, headers, _ = came[-1]
    assert path == "/v1/chat/completions?alt=sse&api-version=1"
    own = {"host", "connection", "content-length", "accept-encoding", "user-agent"}
    names = {"authorization", "content-type", *map(str.lower, kept)}
    assert headers.keys() == names | (own & headers.keys())
    assert headers["authorization"] == f"Bearer {API_KEY}"
    assert headers["accept"] == "text/event-stream"
    assert "Mozilla" not in headers.get("user-agent", "")


def test_forms_pass_as_they_are(raw: tuple[Upstream, Browser]) -> None:
    """A file goes to the provider byte by byte, with its boundary."""
    came, visitor = raw[0].came, raw[1]
    sound = bytes(range(256)) * 1000
    data = {"model": "whisper-1", "file": (BytesIO(sound), "a.wav")}
    headers = {"Sec-Fetch-Site": "same-origin"}
    path = f"{GATEWAY}/openai/audio/transcriptions"
    raw[0].answer = lambda: Response(json.dumps(sorted(request.files)))
    answer = visitor.post(path, data=data, headers=headers)
    assert answer.status_code == 200
    kind = came[-1][2]["content-type"]
    boundary = kind.partition("boundary=")[2].strip(chr(34)).encode()
    assert kind.startswith("multipart/form-data")
    assert came[-1][3].count(boundary) == 3
    assert sound in came[-1][3]
    assert answer.get_json(force=True) == ["file"]


HARMLESS = [
    "application/json",
    "application/json; charset=utf-8",
    "application/problem+json",
    "audio/mpeg",
    "image/png",
    "text/plain; charset=utf-8",
    "text/event-stream",
    "application/octet-stream",
]
RUN_BY_BROWSERS = [
    "text/html; charset=utf-8",
    "application/xhtml+xml",
    "image/svg+xml",
    "IMAGE/SVG+xml",
    "text/javascript",
    "text/css",
    "multipart/x-mixed-replace; boundary=a",
    "audio/mpeg, text/html",
    "audio/mpeg; a=b, text/html",
    'audio/mpeg; a="b", text/html; c="d"',
    "",
]


@pytest.mark.parametrize("status", [200, 400])
def test_no_page_of_a_provider_runs_here(raw: tuple[Upstream, Browser], status: int) -> None:
    """Types that a browser would run are files to download, with the same bytes."""
    body = b"<script>alert(1)</script>"
    for kind in (*HARMLESS, *RUN_BY_BROWSERS):
        raw[0].answer = partial(Response, body, status, {"Content-Type": kind})
        got = raw[1].post(CHAT, json={})
        assert (got.status_code, got.data) == (status, body)
        passes = kind in HARMLESS
        assert got.headers["Content-Type"] == (kind if passes else "application/octet-stream")
        assert got.headers.get("Content-Disposition") == (None if passes else "attachment")
        assert "sandbox" in got.headers["Content-Security-Policy"]


# Refusals of the provider


def test_a_refusal_passes_without_secrets(raw: tuple[Upstream, Browser]) -> None:
    """Status, waiting time and request id pass; the key in any writing, cookies and other headers do not."""
    forms = [API_KEY, json.dumps(API_KEY), API_KEY.replace("/", "%2F").replace("+", "%2B")]
    forms.append(base64.b64encode(API_KEY.encode()).decode())

    def answer() -> Response:
        made = Response(json.dumps({"error": {"message": "No: " + " ".join(forms)}}), 429)
        made.headers.update(
            {
                "Content-Type": "application/json",
                "Retry-After": "7",
                "x-request-id": f"req-{API_KEY}",
                "Set-Cookie": "theirs=1",
                "Location": "https://example.org",
                "WWW-Authenticate": "Basic",
                "X-Powered-By": API_KEY,
            }
        )
        return made

    raw[0].answer = answer
    got = raw[1].post(CHAT, json={})
    assert got.status_code == 429
    assert got.get_json()["error"]["message"].startswith("No: [redacted]")
    whole = f"{got.headers}{got.text}"
    assert all(form.strip('"') not in whole for form in forms)
    assert got.headers["Retry-After"] == "7"
    assert got.headers["x-request-id"] == "req-[redacted]"
    assert "theirs" not in whole
    assert not {"Location", "WWW-Authenticate", "X-Powered-By"} & set(got.headers.keys())


def test_redirects_are_not_followed(raw: tuple[Upstream, Browser]) -> None:
    """An answer that leads elsewhere is an error of ours, and nothing goes there."""
    for provider, path in CHATS.items():
        for status in (301, 302, 304, 307, 308):
            raw[0].answer = partial(Response, b"", status, {"Location": "/elsewhere"})
            got = raw[1].post(f"{GATEWAY}/{provider}/{path}", json={})
            assert got.status_code == 502
            assert code_of(got, provider) == "provider_unavailable"
            assert got.headers.get("Location") is None
    assert len(raw[0].came) == 15


def test_long_refusals_are_cut(raw: tuple[Upstream, Browser]) -> None:
    """Of a refusal 256 KiB are read at most."""
    raw[0].answer = lambda: Response(b"x" * 300_000, 500, mimetype="text/plain")
    got = raw[1].post(CHAT, json={})
    assert got.status_code == 500
    assert 0 < len(got.data) <= 256 * 1024


@pytest.mark.parametrize("provider", CHATS)
def test_a_provider_out_of_reach(tmp_path: Path, provider: str) -> None:
    """No answer at all is an error in the wire's shape."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        app = gateway_app(tmp_path, BYOK_BASE_URLS={provider: url})
        visitor = with_keys(app, **{provider: API_KEY})
        got = visitor.post(f"{GATEWAY}/{provider}/{CHATS[provider]}", json={})
    assert got.status_code == 502
    assert code_of(got, provider) == "provider_unavailable"
    assert "refused the connection" in got.text


# Whose key


@pytest.mark.parametrize("provider", CHATS)
def test_without_a_key(app: HostApp, fake: FakeProviders, provider: str) -> None:
    """Nobody's key is 409 in the wire's shape, and SDKs are told not to ask again."""
    got = browser(app).post(f"{GATEWAY}/{provider}/{CHATS[provider]}", json=chat_of(provider))
    assert (got.status_code, code_of(got, provider)) == (409, "key_missing")
    assert got.headers["x-should-retry"] == "false"
    assert fake.calls == []


def test_unknown_providers(app: HostApp) -> None:
    """A provider that is not here is 404, in OpenAI's shape."""
    got = browser(app).post(f"{GATEWAY}/nobody/chat/completions", json={})
    assert (got.status_code, code_of(got)) == (404, "unknown_provider")
    got = browser(app).post(f"{GATEWAY}/opnai/chat/completions", json={})
    assert "Did you mean 'openai'?" in got.get_json()["error"]["message"]


@pytest.mark.parametrize("provider", CHATS)
def test_a_wrong_path_is_answered_with_the_base_url(app: HostApp, provider: str) -> None:
    """A path with one /v1 too many is 404, and says where the base URL ends and what follows."""
    got = browser(app).post(f"{GATEWAY}/{provider}/v1/{CHATS[provider]}", json={})
    assert got.status_code == 404
    message = got.get_json()["error"]["message"]
    assert f"ends with {GATEWAY}/{provider}, and" in message
    assert message.endswith(f"/{CHATS[provider]}.")


def test_shared_keys_are_for_people_who_are_signed_in(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A visitor gets 401 where only the operator has a key, and a signed-in person an answer."""
    monkeypatch.setenv("OPENAI_API_KEY", fake.api_key("openai", "good", "operator"))
    app = gateway_app(tmp_path, fake)
    visitor = browser(app)
    got = visitor.post(CHAT, json=chat_of("openai"))
    assert (got.status_code, code_of(got)) == (401, "owner_required")
    models = visitor.get(f"{GATEWAY}/v1/models").get_json()["data"]
    assert models == []
    assert fake.calls == []
    visitor.post("/sign-in/ann")
    got = visitor.post(CHAT, json=chat_of("openai"))
    assert (got.status_code, got.headers["X-BYOK-Source"]) == (200, "env")


def test_a_shared_keys_refusal_shows_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Providers write a refused key's beginning and end into their answer: a shared key's stay here."""
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    message = {"message": "Incorrect API key: sk-ma***ests.", "code": "invalid_api_key"}
    with upstream() as (provider, base_urls):
        provider.answer = lambda: Response(json.dumps({"error": message}), 401)
        app = gateway_app(tmp_path, BYOK_BASE_URLS=base_urls)
        ann = browser(app)
        ann.post("/sign-in/ann")
        got = ann.post(CHAT, json=chat_of("openai"))
    assert (got.status_code, code_of(got)) == (409, "key_rejected")
    assert "ests" not in got.text


def test_login_can_be_required(tmp_path: Path, fake: FakeProviders) -> None:
    """With BYOK_REQUIRE_LOGIN a visitor gets 401."""
    app = gateway_app(tmp_path, fake, BYOK_REQUIRE_LOGIN=True)
    got = browser(app).post(CHAT, json=chat_of("openai"))
    assert (got.status_code, code_of(got)) == (401, "owner_required")


def test_everybody_gets_their_own_key(app: HostApp, fake: FakeProviders) -> None:
    """The host says who calls; nothing in a call can name another."""
    for user in ("ann", "bob"):
        with app.app_context(), app.byok.acting_for(user):
            app.byok.set("openai", fake.api_key("openai", "good", user))
    caller = app.test_client(use_cookies=False)
    for user in ("ann", "bob", "ann"):
        headers = {
            "Authorization": f"Bearer token-of-{user}",
            "X-BYOK-Owner": "bob",
            "X-User": "bob",
        }
        body = chat_of("openai", user="bob", owner="bob")
        assert (
            caller.post(f"{CHAT}?owner=bob&user=bob", json=body, headers=headers).status_code == 200
        )
        assert fake.calls[-1].api_key == fake.api_key("openai", "good", user)
        assert "token-of" not in str(fake.calls[-1].headers)
    got = caller.post(
        CHAT, json=chat_of("openai"), headers={"Authorization": "Bearer token-of-eve"}
    )
    assert (got.status_code, code_of(got)) == (409, "key_missing")


# Where calls come from

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
FORM_PATH = f"{GATEWAY}/openai/audio/transcriptions"


#: Path, headers, and whether the call passes.
CROSSINGS: list[tuple[str, dict[str, str], bool]] = [
    (CHAT, JSON, True),
    (CHAT, {**JSON, "Sec-Fetch-Site": "same-origin"}, True),
    (CHAT, {**JSON, "Origin": "http://localhost"}, True),
    (CHAT, {**JSON, "Sec-Fetch-Site": "cross-site"}, False),
    (CHAT, {**JSON, "Sec-Fetch-Site": "same-site"}, False),
    (CHAT, {**JSON, "Origin": "http://evil.example"}, False),
    (CHAT, {**JSON, "Origin": "null"}, False),
    (CHAT, {**JSON, "Origin": "https://app.example"}, True),
    (CHAT, {"Content-Type": "text/plain"}, False),
    (CHAT, {"Content-Type": "text/plain; application/json"}, False),
    (CHAT, {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}, False),
    (CHAT, {**FORM, "Sec-Fetch-Site": "same-origin"}, False),
    (CHAT, {}, False),
    (FORM_PATH, FORM, False),
    (FORM_PATH, {**FORM, "Sec-Fetch-Site": "none"}, False),
    (FORM_PATH, {**FORM, "Sec-Fetch-Site": "same-origin"}, True),
    (FORM_PATH, {**FORM, "Origin": "http://localhost"}, True),
    (FORM_PATH, {**FORM, "Origin": "http://evil.example"}, False),
    (FORM_PATH, {**FORM, "Sec-Fetch-Site": "cross-site"}, False),
]  # fmt: skip


@pytest.mark.parametrize("credentials", ["cookie", "basic"])
def test_other_sites_cannot_call(tmp_path: Path, credentials: str) -> None:
    """With what a browser keeps, a call is JSON of the same origin or a trusted one; a file's form says its origin."""
    origins = ["https://app.example"]
    with upstream() as (provider, base_urls):
        app = gateway_app(tmp_path, BYOK_BASE_URLS=base_urls, BYOK_TRUSTED_ORIGINS=origins)
        app.byok.owner_loader(lambda: "ann" if request.authorization else None)
        with app.app_context(), app.byok.acting_for("ann"):
            app.byok.set("openai", API_KEY, validate="off")
        visitor = with_keys(app, openai=API_KEY)
        caller: Any = visitor if credentials == "cookie" else app.test_client(use_cookies=False)
        kept = {} if credentials == "cookie" else {"Authorization": "Basic YTpi"}
        for path, headers, passes in CROSSINGS:
            provider.came.clear()
            got = caller.post(path, data=b"{}", headers={**kept, **headers})
            assert bool(provider.came) is passes, headers
            assert got.status_code == (200 if passes else 400)
            assert passes or code_of(got) == "csrf"


def test_nothing_is_asked_of_programs(app: HostApp, fake: FakeProviders) -> None:
    """Without a cookie neither type nor origin is looked at: no browser adds a host's token by itself."""
    with app.app_context(), app.byok.acting_for("ann"):
        app.byok.set("openai", fake.api_key("openai"))
    headers = {"Authorization": "Bearer token-of-ann", "Origin": "app://desktop"}
    caller = app.test_client(use_cookies=False)
    got = caller.post(CHAT, data=json.dumps(chat_of("openai")), headers=headers)
    assert got.status_code == 200


def test_trusted_front_ends_may_read(tmp_path: Path, fake: FakeProviders) -> None:
    """A preflight of a trusted origin allows what SDKs send; one of another allows nothing."""
    app = gateway_app(tmp_path, fake, BYOK_TRUSTED_ORIGINS=["https://app.example"])
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    got = browser(app).options(CHAT, headers={"Origin": "https://app.example", **asked})
    assert got.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "POST" in got.headers["Access-Control-Allow-Methods"]
    assert "x-stainless-os" in got.headers["Access-Control-Allow-Headers"]
    got = browser(app).options(CHAT, headers={"Origin": "https://evil.example", **asked})
    assert not [name for name, _ in got.headers if name.startswith("Access-Control")]


# Sizes and numbers


@pytest.mark.parametrize(("limit", "size"), [(None, 25 * 1024 * 1024 + 1), (1000, 1001)])
def test_long_bodies_are_refused(
    tmp_path: Path, fake: FakeProviders, limit: int | None, size: int
) -> None:
    """A body has 25 MiB at most, or what the host allows."""
    app = gateway_app(tmp_path, fake, MAX_CONTENT_LENGTH=limit)
    visitor = with_keys(app, openai=fake.api_key("openai"))
    got = visitor.post(CHAT, data=b"x" * size, content_type="application/json")
    assert (got.status_code, code_of(got)) == (413, "too_large")
    assert f"{limit or 25 * 1024 * 1024:,} bytes" in got.get_json()["error"]["message"]
    body = chat_of("openai", "x" * 500)
    assert visitor.post(CHAT, json=body).status_code == 200


def test_bodies_longer_than_those_of_our_other_calls_pass(
    ours: Browser, fake: FakeProviders
) -> None:
    """A megabyte is no problem, although the calls about keys take 64 KiB."""
    body = chat_of("openai", "x" * 1_000_000)
    assert ours.post(CHAT, json=body).status_code == 200
    assert fake.calls[-1].body == body


def test_an_owner_has_a_few_calls_at_once(
    app: HostApp, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth call of one owner waits its turn, and other owners do not notice."""
    monkeypatch.setattr(gateway, "slots", Slots(100, 4, "of your calls"))
    callers = {}
    for user in ("ann", "bob"):
        with app.app_context(), app.byok.acting_for(user):
            app.byok.set("openai", fake.api_key("openai", "good", user))
        callers[user] = {"Authorization": f"Bearer token-of-{user}"}
    client = app.test_client(use_cookies=False)

    def call(user: str) -> Any:
        body = chat_of("openai", stream=True)
        return client.post(CHAT, json=body, headers=callers[user], buffered=False)

    held = [call("ann") for _ in range(4)]
    assert [answer.status_code for answer in held] == [200] * 4
    fifth = call("ann")
    assert (fifth.status_code, code_of(fifth)) == (429, "rate_limited")
    assert int(fifth.headers["Retry-After"]) > 0
    assert call("bob").status_code == 200
    held.pop().close()
    assert call("ann").status_code == 200


def test_slots_come_back_however_calls_end(
    app: HostApp, ours: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers, refusals, errors and streams that nobody reads all give their slot back."""
    fresh = Slots(100, 4, "of your calls")
    monkeypatch.setattr(gateway, "slots", fresh)
    for _ in range(6):
        assert ours.post(CHAT, json=chat_of("openai")).status_code == 200
        assert ours.post(CHAT, json={"nothing": 1}).status_code == 400
        assert ours.post(f"{GATEWAY}/groq/chat/completions", json={}).status_code == 409
        assert (
            ours.post(
                f"{GATEWAY}/v1/chat/completions", data=b"{", content_type="application/json"
            ).status_code
            == 400
        )
        ours.post(CHAT, json=chat_of("openai", stream=True), buffered=False).close()
    assert fresh._running == []
    with pytest.raises(RateLimitedError):
        [fresh.take("ann") for _ in range(5)]


# Streams


def test_events_pass_at_once_with_comments_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece leaves as it comes; in silence comments follow whole events, and never half of one."""
    monkeypatch.setattr(transport, "TICK", 0.02)
    monkeypatch.setattr(protocols, "HEARTBEAT", 0.01)
    go_on = [threading.Event() for _ in range(2)]

    def script() -> Iterator[bytes]:
        yield chunked() + chunk(b"data: 1\n\n")
        go_on[0].wait()
        yield chunk(b"data: 2")
        go_on[1].wait()
        yield chunk(b"2\n\ndata: [DONE]\n\n") + b"0\r\n\r\n"

    with hostile(script) as server:
        app = gateway_app(tmp_path, BYOK_BASE_URLS={"openai": server.origin})
        visitor = with_keys(app, openai=API_KEY)
        with served(app) as port, _called(port, visitor) as answer:
            pieces = answer.iter_raw()
            came = next(pieces)
            while came.count(b":\n\n") < 3:
                came += next(pieces)
            go_on[0].set()
            while not came.endswith(b"data: 2"):
                came += next(pieces)
            threading.Timer(0.3, go_on[1].set).start()
            came += b"".join(pieces)
    assert came.startswith(b"data: 1\n\n:\n\n")
    assert b"data: 22\n\n" in came
    assert came.replace(b":\n\n", b"") == b"data: 1\n\ndata: 22\n\ndata: [DONE]\n\n"


def _called(port: int, visitor: Browser, path: str = CHAT) -> Any:
    headers = {"Cookie": f"session={visitor.session_id}"}
    url = f"http://127.0.0.1:{port}{path}"
    return httpx2.stream(
        "POST", url, json=chat_of("openai", stream=True), headers=headers, timeout=30
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        *((CHAT, said) for said in (b"", b"data: 1\n\n", b"data: half")),
        *((f"{GATEWAY}/v1/chat/completions", said) for said in (b"", b"data: {}\n\n")),
    ],
)
def test_the_provider_is_left_when_the_browser_leaves(
    tmp_path: Path, path: str, said: bytes
) -> None:
    """The connection to a silent provider is closed soon after the browser's, in a stream and before one."""
    forever = threading.Event()

    def script() -> Iterator[bytes]:
        if said:
            yield chunked() + chunk(said)
        forever.wait()
        yield b""

    with hostile(script) as server:
        urls = dict.fromkeys(("openai", "anthropic"), server.origin)
        app = gateway_app(tmp_path, BYOK_BASE_URLS=urls)
        visitor = with_keys(app, openai=API_KEY, anthropic=API_KEY)
        with served(app) as port:
            with socket.create_connection(("127.0.0.1", port)) as browsing:
                body = json.dumps(chat_of("anthropic", model="anthropic/small")).encode()
                lines = (
                    f"POST {path} HTTP/1.1",
                    "Host: localhost",
                    "Content-Type: application/json",
                    f"Content-Length: {len(body)}",
                    f"Cookie: session={visitor.session_id}",
                    "",
                    "",
                )
                browsing.sendall("\r\n".join(lines).encode() + body)
                wait_until(lambda: server.heads, "the call")
                if said and path == CHAT:
                    browsing.recv(65_536)
            # The server's side of the connection ends, although it said nothing itself.
            wait_until(lambda: gateway.slots._running == [], "the call's end")
        forever.set()
        wait_until(server.left.is_set, "the provider's connection to close")


@pytest.mark.parametrize("provider", CHATS)
def test_a_stream_that_breaks_off_says_so(tmp_path: Path, provider: str) -> None:
    """An error of the wire ends it, after the bytes that came."""
    whole = b'data: {"a": 1}\n\n'
    broken = chunked() + chunk(whole) + b"5\r\nda"
    with hostile(lambda: iter([broken])) as server:
        app = gateway_app(tmp_path, BYOK_BASE_URLS={provider: server.origin})
        visitor = with_keys(app, **{provider: API_KEY})
        got = visitor.post(f"{GATEWAY}/{provider}/{CHATS[provider]}", json={})
    assert got.status_code == 200
    assert got.data.startswith(whole)
    half, _, event = got.data.removeprefix(whole).decode().partition("\n\n")
    assert half == "da"
    assert event.startswith("event: error\ndata: " if provider == "anthropic" else "data: ")
    error = json.loads(event.rpartition("data: ")[2])["error"]
    told = error["details"][0]["reason"] if provider == "google" else error["code"]
    assert told == "stream_incomplete"


def test_another_body_that_breaks_off_is_noticed(tmp_path: Path) -> None:
    """The length that the provider announced is announced, and the connection ends before it."""
    short = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 100\r\n\r\nshort"
    with hostile(lambda: iter([short])) as server:
        app = gateway_app(tmp_path, BYOK_BASE_URLS={"openai": server.origin})
        visitor = with_keys(app, openai=API_KEY)
        with served(app) as port, _called(port, visitor) as answer:
            assert answer.headers["Content-Length"] == "100"
            with pytest.raises(httpx2.RemoteProtocolError):
                answer.read()


# What is counted and reported


def _uses(app: HostApp) -> list[tuple[str, int]]:
    get_state(app).service.traffic.flush()
    with app.app_context(), app.byok.acting_for("ann"):
        daily = app.byok.list_keys()
    row = next(row for row in daily if row["provider"] == "openai")
    return [(str(row["state"]), row["usage_count"])]


@pytest.fixture
def ann(app: HostApp, fake: FakeProviders) -> Any:
    """Return a function that calls with ann's own key in her account."""
    with app.app_context(), app.byok.acting_for("ann"):
        app.byok.set("openai", fake.api_key("openai", "good", "ann"))
    client = app.test_client(use_cookies=False)

    def call(path: str = CHAT, **body: Any) -> Any:
        headers = {"Authorization": "Bearer token-of-ann"}
        return client.post(path, json=chat_of("openai", **body), headers=headers)

    return call


def test_calls_are_counted_and_refusals_marked(app: HostApp, fake: FakeProviders, ann: Any) -> None:
    """Answers count as uses, failures do not; a refused key is marked, and not sent again."""
    assert ann().status_code == 200
    assert ann(stream=True).status_code == 200
    fake.answer_next("openai", 500, {"error": {"message": "Oh."}})
    assert ann().status_code == 500
    assert _uses(app) == [("active", 2)]
    fake.revoke("openai", fake.api_key("openai", "good", "ann"))
    assert ann().status_code == 401
    assert _uses(app) == [("rejected", 2)]
    fake.clear_calls()
    got = ann()
    assert (got.status_code, code_of(got)) == (409, "key_rejected")
    assert fake.calls == []


def test_an_error_within_a_stream_is_reported(app: HostApp, fake: FakeProviders, ann: Any) -> None:
    """A key that is revoked in the midst of an answer is marked; the bytes pass as they are."""
    fake.stream_next("openai", "Hello", error="key_rejected")
    fake.refuse_next(
        "openai", "key_rejected"
    )  # to the check that follows, as the address is the operator's
    got = ann(stream=True)
    assert (got.status_code, got.text.count("invalid_api_key")) == (200, 1)
    assert _uses(app)[0][0] == "rejected"


def test_a_path_that_wants_another_key_marks_none(
    app: HostApp, fake: FakeProviders, ann: Any
) -> None:
    """401 without a word about the key, where a call may want other rights, says nothing about it."""
    fake.answer_next("openai", 401, {"error": {"message": "You have insufficient permissions."}})
    assert ann(f"{GATEWAY}/openai/images/generations").status_code == 401
    assert _uses(app)[0][0] == "active"


# The host


def test_it_is_off_by_default(tmp_path: Path, fake: FakeProviders) -> None:
    """Without BYOK_GATEWAY the addresses are the host's."""
    answer = browser(make_app(tmp_path, fake)).post(CHAT, json={})
    assert answer.status_code == 404
    assert answer.mimetype == "text/html"


@pytest.mark.parametrize("path", ["", "/", "//openai/models"])
def test_addresses_beside_it_are_problems(app: HostApp, path: str) -> None:
    """Where no provider is named there is a problem object."""
    assert problem_of(browser(app).get(f"{GATEWAY}{path}")) == (404, "not_found")


def test_the_hosts_own_protection_does_not_refuse(tmp_path: Path, fake: FakeProviders) -> None:
    """CSRFProtect wants a token of the host's forms; SDKs have none."""
    app = gateway_app(tmp_path, fake, csrf_protect=True)
    visitor = with_keys(app, openai=fake.api_key("openai"))
    assert visitor.post(CHAT, json=chat_of("openai")).status_code == 200


def test_keys_in_addresses_stay_out_of_logs(
    app: HostApp, ours: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """What a caller puts into a query is redacted, and the path of the call is not."""
    caplog.set_level(logging.INFO, "werkzeug")
    with served(app) as port:
        wire = Wire(port)
        for path in (
            "openai/models?key=sk-of-the-caller",
            "openai/sk-of-the-caller",
            "sk-of-the-caller/models",
            "openai/files/sk-of-the-caller",
            "openai/v1/chat/completions",
        ):
            wire.send("GET", f"{GATEWAY}/{path}")
    assert "sk-of-the-caller" not in caplog.text
    assert "/api/gateway/openai/models" in caplog.text
    assert "/api/gateway/openai/v1/chat/completions" in caplog.text


def test_it_is_described_where_it_is(app: HostApp, tmp_path: Path) -> None:
    """The OpenAPI document has the gateway's address only if it is on."""
    for host, has in ((app, True), (make_app(tmp_path / "2"), False)):
        paths = browser(host).get("/api/providers/openapi.json").get_json()["paths"]
        assert ("/gateway/{provider}/{path}" in paths) is has


def test_a_visitors_chat_does_not_go_on_with_a_shared_key(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With BYOK_FAILOVER too, a visitor's refused key is not followed by the operator's."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", fake.api_key("anthropic", "good", "operator"))
    app = gateway_app(tmp_path, fake, BYOK_FAILOVER=True, BYOK_FALLBACK_ON=["rejected"])
    visitor = with_keys(app, anthropic=fake.api_key("anthropic"))
    fake.revoke("anthropic", fake.api_key("anthropic"))
    fake.clear_calls()
    body = chat_of("anthropic", model="anthropic/claude-haiku-4-5")
    codes = [code_of(visitor.post(f"{GATEWAY}/v1/chat/completions", json=body)) for _ in range(2)]
    assert codes == ["key_rejected", "owner_required"]
    assert {call.api_key for call in fake.calls} == {fake.api_key("anthropic")}
