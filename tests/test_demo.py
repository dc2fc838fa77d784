"""The demo as a newcomer meets it: started as a program, used over HTTP, stopped with Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, Request, build_opener

import pytest
import redis

from tests import services

# Variables that would change what the demo does.
_FOREIGN = ("REDIS_URL", "DATABASE_URL", "PORT", "SECRET_KEY", "BYOK_", "_API_KEY")


class Demo:
    """A running demo, and what it printed when it started."""

    def __init__(self, process: subprocess.Popen[str], banner: str) -> None:
        self.process = process
        self.banner = banner

    def printed(self, pattern: str) -> str:
        found = re.search(pattern, self.banner)
        assert found is not None, f"{pattern} is not in {self.banner}"
        return found[0]

    @property
    def url(self) -> str:
        return self.printed(r"http://127\.0\.0\.1:\d+")

    @property
    def folder(self) -> Path:
        return Path(self.printed(r"\S*/flask-byok-demo-\w+"))

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Stop it as Ctrl-C does; returns its exit status and all that it printed since."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=10)
        return self.process.returncode, rest.strip()


class Visitor:
    """A browser without a screen: keeps cookies and the CSRF token."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opener = build_opener(HTTPCookieProcessor(CookieJar()))

    def open(self, path: str, data: bytes | None = None, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(self.url + path, data=data, headers=named)
        try:
            return self._opener.open(request, timeout=10)
        except HTTPError as error:
            return error

    def page(self, path: str = "/") -> str:
        with self.open(path) as answer:
            assert answer.status == 200
            return str(answer.read().decode())

    def csrf_token(self) -> str:
        found = re.search(r'name="csrf-token" content="([^"]+)"', self.page())
        assert found is not None
        return found[1]

    def post(self, path: str, body: object) -> tuple[int, Any]:
        with self.stream(path, body) as answer:
            return answer.status, json.loads(answer.read())

    def stream(self, path: str, body: object) -> Any:
        return self.open(
            path,
            json.dumps(body).encode(),
            Content_Type="application/json",
            X_CSRFToken=self.csrf_token(),
        )

    def submit(self, path: str, **fields: str) -> tuple[int, str]:
        form = urlencode(fields | {"csrf_token": self.csrf_token()}).encode()
        with self.open(path, form) as answer:
            return answer.status, answer.read().decode()

    def source(self, provider: str = "demo") -> str | None:
        with self.open("/api/providers/keys") as answer:
            statuses = json.load(answer)["providers"]
        return next(s["source"] for s in statuses if s["provider"] == provider)

    def chat(self, text: str, provider: str = "demo") -> Any:
        messages = [{"role": "user", "content": text}]
        return self.stream("/chat", {"provider": provider, "messages": messages})


def _start(**environ: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not _is_foreign(name)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "flask_byok.demo"],
        env=kept | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _is_foreign(name: str) -> bool:
    return name.startswith(_FOREIGN) or name.endswith(_FOREIGN)


@contextmanager
def _running(**environ: str) -> Iterator[Demo]:
    with _start(**{"PORT": str(services.free_port())} | environ) as process:
        try:
            assert process.stdout is not None
            banner = ""
            for line in process.stdout:
                banner += line
                if "Ctrl-C" in line:
                    break
            yield Demo(process, banner)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """Run one demo without any server beside it, for all tests that only use it."""
    with _running() as running:
        yield running


@pytest.fixture
def visitor(demo: Demo) -> Visitor:
    """Be somebody who never came before."""
    return Visitor(demo.url)


@pytest.fixture
def good_key(demo: Demo) -> str:
    """Take the working key from what the demo printed."""
    return demo.printed(r"demo-good-\w+")


def test_start_tells_address_stores_and_keys(demo: Demo) -> None:
    """What is printed names the address, where things are kept, a key that works and one that does not."""
    assert demo.url
    assert re.search(r"sessions +files in ", demo.banner)
    assert re.search(r"API keys +SQLite in .*, encrypted", demo.banner)
    assert "demo-good-" in demo.banner
    assert "demo-bad-" in demo.banner
    assert "A demo" in demo.banner


def test_page_has_a_strict_policy(visitor: Visitor) -> None:
    """The page comes with the dialog, and with a policy that allows no inline script and no HTML from strings."""
    with visitor.open("/") as answer:
        policy, html = answer.headers["Content-Security-Policy"], answer.read().decode()
        assert answer.status == 200
    nonce = re.search(r"script-src 'nonce-([\w-]+)' 'strict-dynamic'", policy)
    assert nonce is not None
    assert "trusted-types 'none'" in policy
    assert "unsafe" not in policy
    scripts = re.findall(r"<script[^>]*>", html)
    assert len(scripts) == 2
    assert all(f'nonce="{nonce[1]}"' in script and "src=" in script for script in scripts)
    assert '<dialog id="byok-dialog"' in html


def test_nonce_is_new_for_each_page(visitor: Visitor) -> None:
    """Two pages never have the same nonce."""
    policies = set()
    for _ in range(2):
        with visitor.open("/") as answer:
            policies.add(answer.headers["Content-Security-Policy"])
    assert len(policies) == 2


def test_person_saves_a_key_chats_and_clears_it(visitor: Visitor, good_key: str) -> None:
    """A saved key answers a chat in a stream that names its source; cleared, it is gone."""
    with visitor.chat("hello") as answer:
        assert answer.status == 409
        assert json.load(answer)["code"] == "key_missing"

    status, saved = visitor.post(
        "/api/providers/keys/set", {"provider": "demo", "api_key": good_key}
    )
    assert status == 200
    assert saved["validation"]["verdict"] == "valid"
    assert visitor.source() == "session"

    with visitor.chat("hello there") as answer:
        assert answer.headers["X-BYOK-Source"] == "session"
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        events = _events(answer.read().decode())
    assert events[-1] == ("done", {})
    text = "".join(data["text"] for name, data in events if name == "delta")
    assert "“hello there”" in text

    status, cleared = visitor.post("/api/providers/keys/clear", {"provider": "demo"})
    assert (status, cleared["cleared"]) == (200, ["session"])
    assert visitor.source() is None


def test_answer_arrives_piece_by_piece(visitor: Visitor, good_key: str) -> None:
    """The first words of an answer are there well before its end."""
    visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": good_key})
    with visitor.chat("hello") as answer:
        assert answer.readline() == b"event: delta\n"
        first = time.monotonic()
        answer.read()
        assert time.monotonic() - first > 0.3


@pytest.mark.parametrize(
    ("behaviour", "status", "verdict"),
    [
        ("restricted", 200, "valid_restricted"),
        ("broke", 200, "valid_no_credit"),
        ("rate-limited", 200, "valid_rate_limited"),
        ("disabled", 422, "disabled"),
        ("bad", 422, "invalid"),
    ],
)
def test_keys_to_try_do_what_the_page_says(
    visitor: Visitor, behaviour: str, status: int, verdict: str
) -> None:
    """Each key on the page of keys to try is saved or refused as it says."""
    found = re.search(rf"demo-{behaviour}-\w+", visitor.page("/keys-to-try"))
    assert found is not None
    answer = visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": found[0]})
    assert answer[0] == status
    assert answer[1]["validation"]["verdict"] == verdict


def test_change_without_csrf_token_is_refused(visitor: Visitor, good_key: str) -> None:
    """A call that another site could have made changes nothing."""
    visitor.page()
    body = json.dumps({"provider": "demo", "api_key": good_key}).encode()
    with visitor.open("/api/providers/keys/set", body, Content_Type="application/json") as answer:
        assert answer.status == 400
        assert json.load(answer)["code"] == "csrf"
    with visitor.open("/chat", body, Content_Type="application/json") as answer:
        assert answer.status == 400
    assert visitor.source() is None


def test_visitors_key_waits_after_sign_in_until_it_is_kept(visitor: Visitor, good_key: str) -> None:
    """Signing in does not put a visitor's key to use; keeping it does, and signing out deletes it."""
    visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": good_key})
    name, password = _accounts(visitor)[0]
    status, page = visitor.submit("/sign-in", name=name, password=password)
    assert status == 200
    assert "Sign out" in page
    assert visitor.source() is None
    _, promoted = visitor.post("/api/providers/keys/promote", {})
    assert promoted["promoted"] == ["demo"]
    assert visitor.source() == "session"
    status, page = visitor.submit("/sign-out")
    assert "Sign out" not in page
    assert visitor.source() is None


def test_sign_in_page_shows_accounts_and_refuses_wrong_passwords(visitor: Visitor) -> None:
    """Both accounts on the page let people in, and with another password nobody is."""
    accounts = _accounts(visitor)
    assert len(accounts) == 2
    for name, password in accounts:
        assert (
            "Sign out" in Visitor(visitor.url).submit("/sign-in", name=name, password=password)[1]
        )
    for name in (accounts[0][0], "nobody", ""):
        status, page = visitor.submit("/sign-in", name=name, password="wrong")
        assert status == 401
        assert "Sign out" not in page


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"provider": "demo"},
        {"provider": "demo", "messages": []},
        {"provider": "demo", "messages": ["hello"]},
        {"provider": "demo", "messages": [{"role": "system", "content": "hello"}]},
        {"provider": "demo", "messages": [{"role": "user", "content": "x" * 20_001}]},
        {"messages": [{"role": "user", "content": "hello"}]},
    ],
)
def test_chat_refuses_what_is_no_conversation(visitor: Visitor, body: object) -> None:
    """A request without a proper conversation answers 400, never 500."""
    with visitor.stream("/chat", body) as answer:
        assert answer.status == 400


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_stops_cleanly_and_forgets_its_files(number: signal.Signals) -> None:
    """Ctrl-C in the middle of an answer ends the program with status 0, and its folder is gone."""
    with _running() as running:
        visitor = Visitor(running.url)
        key = running.printed(r"demo-good-\w+")
        visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": key})
        with visitor.chat("hello " * 50) as answer:
            answer.readline()
            assert running.folder.exists()
            assert running.stop(number) == (0, "Stopped.")
        assert not running.folder.exists()


def test_files_are_for_their_owner_only_and_hold_no_key() -> None:
    """Nobody else on the machine can read the demo's files, and no key is in them."""
    with _running() as running:
        key = running.printed(r"demo-good-\w+")
        visitor = Visitor(running.url)
        visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": key})
        assert visitor.source() == "session"
        files = [path for path in running.folder.rglob("*") if path.is_file()]
        assert {"byok.sqlite3"} < {path.name for path in files}
        assert running.folder.stat().st_mode & 0o077 == 0
        assert [path for path in files if key.encode() in path.read_bytes()] == []


def test_redis_is_used_where_it_is_named(redis_url: str) -> None:
    """With REDIS_URL both sessions and keys are in Redis, no key in plain text."""
    with _running(REDIS_URL=redis_url) as running:
        assert re.search(r"sessions +Redis\n +API keys +Redis", running.banner)
        visitor, key = Visitor(running.url), running.printed(r"demo-good-\w+")
        visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": key})
        with visitor.chat("hello") as answer:
            assert _events(answer.read().decode())[-1] == ("done", {})
        with redis.Redis.from_url(redis_url) as client:
            names = client.keys("*")
        assert any(name.startswith(b"session:") for name in names)
        assert any(name.startswith(b"byok:") for name in names)
        assert running.stop()[0] == 0


def test_database_is_used_where_it_is_named(postgres_url: str) -> None:
    """With DATABASE_URL keys are in that database, also where its URL names no driver."""
    plain = postgres_url.replace("postgresql+psycopg:", "postgresql:")
    with _running(DATABASE_URL=plain) as running:
        assert "the database at DATABASE_URL" in running.banner
        visitor, key = Visitor(running.url), running.printed(r"demo-good-\w+")
        visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": key})
        assert visitor.source() == "session"


def test_taken_port_is_explained() -> None:
    """Where PORT names a port in use the demo says so and ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with _start(PORT=str(port)) as process:
            printed, _ = process.communicate(timeout=10)
    assert process.returncode == 1
    assert f"PORT={port} is taken by another program." in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PORT", "eighty", "PORT=eighty cannot be used."),
        ("PORT", "99999", "PORT=99999 cannot be used."),
        ("REDIS_URL", "redis://:pass-word@127.0.0.1:1/0", "No Redis answers at REDIS_URL"),
        ("REDIS_URL", "pass-word", "No Redis answers at REDIS_URL"),
        ("DATABASE_URL", "postgresql://u:pass-word@127.0.0.1:1/x", "No database answers"),
        ("DATABASE_URL", "pass-word", "No database answers at DATABASE_URL"),
        ("BYOK_ENCRYPTION_KEY", "pass-word", "BYOK_ENCRYPTION_KEY"),
    ],
)
def test_unusable_setting_is_explained(name: str, value: str, sentence: str) -> None:
    """A setting that does not work ends the demo with one sentence that holds no password."""
    with _start(**{"PORT": str(services.free_port())} | {name: value}) as process:
        printed, _ = process.communicate(timeout=10)
    assert process.returncode == 1
    assert sentence in printed
    assert "Traceback" not in printed
    assert "pass-word" not in printed


def _events(text: str) -> list[tuple[str, Any]]:
    """Read server-sent events as (name, data)."""
    frames = (dict(line.split(": ", 1) for line in f.splitlines()) for f in text.split("\n\n") if f)
    return [(frame["event"], json.loads(frame["data"])) for frame in frames]


def _accounts(visitor: Visitor) -> list[tuple[str, str]]:
    """Read names and passwords from the sign-in page."""
    rows = r"<tr><td><code>(\w+)</code></td><td><code>([\w-]+)</code></td></tr>"
    return re.findall(rows, visitor.page("/sign-in"))
