"""The demo as a newcomer meets it: started as a program, used over HTTP, stopped with Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from tests import services
from tests.app import OTHER_ENCRYPTION_KEY
from tests.demo import Demo, Visitor, read_events, run_demo, start_demo
from tests.patience import soon


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """Run one demo without other servers, for all tests that only use it."""
    with run_demo() as running:
        yield running


@pytest.fixture
def visitor(demo: Demo) -> Visitor:
    """Return a new visitor."""
    return Visitor(demo.url)


@pytest.fixture
def good_key(demo: Demo) -> str:
    """Return the working key that the demo printed."""
    return demo.printed(r"demo-good-\w+")


def test_start_tells_address_stores_and_keys(demo: Demo) -> None:
    """The banner names the address, the stores, a key that works and one that does not."""
    assert demo.url
    assert re.search(r"sessions +files in ", demo.banner)
    assert re.search(r"their keys +SQLite in .*, encrypted", demo.banner)
    assert re.search(r"keys in accounts +SQLite in .*, encrypted", demo.banner)
    assert "katherine" in demo.banner
    assert "demo-good-" in demo.banner
    assert "demo-bad-" in demo.banner
    assert "A demo" in demo.banner


def test_page_has_a_strict_policy(visitor: Visitor) -> None:
    """The page has the dialog, and a policy without inline scripts and HTML from strings; each nonce is new."""
    with visitor.open("/") as answer:
        policy, html = answer.headers["Content-Security-Policy"], answer.read().decode()
        assert answer.status == 200
    with visitor.open("/") as again:
        assert again.headers["Content-Security-Policy"] != policy
    nonce = re.search(r"script-src 'nonce-([\w-]+)' 'strict-dynamic'", policy)
    assert nonce is not None
    assert "trusted-types 'none'" in policy
    assert "unsafe" not in policy
    scripts = re.findall(r"<script[^>]*>", html)
    assert len(scripts) == 2
    assert all(f'nonce="{nonce[1]}"' in script and "src=" in script for script in scripts)
    assert '<dialog id="byok-dialog"' in html


def test_person_saves_a_key_chats_and_clears_it(visitor: Visitor, good_key: str) -> None:
    """A saved key answers a chat, word by word, in a stream that names its source; cleared, it is gone."""
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
        begun, first = answer.readline().decode(), time.monotonic()
        events = read_events(begun + answer.read().decode())
        assert time.monotonic() - first > 0.3, "the words come piece by piece"
    assert events[-1] == ("done", {})
    text = "".join(data["text"] for name, data in events if name == "delta")
    assert "“hello there”" in text

    status, cleared = visitor.post("/api/providers/keys/clear", {"provider": "demo"})
    assert (status, cleared["cleared"]) == (200, ["session"])
    assert visitor.source() is None


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
    for path in ("/api/providers/keys/set", "/chat"):
        with visitor.open(path, body, Content_Type="application/json") as answer:
            assert answer.status == 400
    assert visitor.source() is None


def test_sign_in_page_shows_accounts_and_refuses_wrong_passwords(visitor: Visitor) -> None:
    """Every account on the page can sign in with its password, and with no other."""
    accounts = _accounts(visitor)
    assert [name for name, _ in accounts] == ["ada", "grace", "katherine"]
    for name, password in accounts:
        _, page = Visitor(visitor.url).submit("/sign-in", name=name, password=password)
        assert "Sign out" in page
    for name in (accounts[0][0], "nobody", ""):
        status, page = visitor.submit("/sign-in", name=name, password="wrong")
        assert status == 401
        assert "Sign out" not in page


def test_chat_refuses_what_is_no_conversation(visitor: Visitor) -> None:
    """A request without a proper conversation answers 400, never 500."""
    from_user = {"role": "user", "content": "hello"}
    for body in (
        *(None, [], {"provider": "demo"}, {"messages": [from_user]}),
        *({"provider": "demo", "messages": each} for each in ([], ["hello"])),
        {"provider": "demo", "messages": [from_user | {"role": "system"}]},
        {"provider": "demo", "messages": [from_user | {"content": "x" * 20_001}]},
    ):
        with visitor.stream("/chat", body) as answer:
            assert answer.status == 400, body


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_stops_cleanly_and_forgets_its_files(number: signal.Signals) -> None:
    """Ctrl-C in the middle of an answer ends the program with status 0, and its folder is gone."""
    with run_demo() as running:
        visitor = Visitor(running.url)
        key = running.printed(r"demo-good-\w+")
        visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": key})
        with visitor.chat("hello " * 50) as answer:
            answer.readline()
            assert running.folder.exists()
            assert running.stop(number) == (0, "Stopped.")
        assert not running.folder.exists()


def test_files_are_for_their_owner_only_and_hold_no_key(
    demo: Demo, visitor: Visitor, good_key: str
) -> None:
    """Only their owner can read the demo's files, and no key is in them."""
    visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": good_key})
    assert visitor.source() == "session"
    files = [path for path in demo.folder.rglob("*") if path.is_file()]
    assert {"byok.sqlite3"} < {path.name for path in files}
    assert demo.folder.stat().st_mode & 0o077 == 0
    assert [path for path in files if good_key.encode() in path.read_bytes()] == []


def test_redis_is_used_where_it_is_named() -> None:
    """With REDIS_URL sessions and keys are in Redis; while that is away, answers are 503, a page to people."""
    with services.RedisServer() as server, run_demo(REDIS_URL=server.url) as running:
        assert re.search(r"sessions +Redis\n +their keys +Redis", running.banner)
        visitor, key = Visitor(running.url), running.printed(r"demo-good-\w+")
        visitor.post("/api/providers/keys/set", {"provider": "demo", "api_key": key})
        with visitor.chat("hello") as answer:
            assert read_events(answer.read().decode())[-1] == ("done", {})
        with redis.Redis.from_url(server.url) as client:
            names = client.keys("*")
        assert any(name.startswith(b"session:") for name in names)
        assert any(name.startswith(b"byok:") for name in names)
        server.kill()
        with soon(), visitor.open("/") as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"]
            assert "Try again" in answer.read().decode()
        with soon(), visitor.open("/api/providers/keys") as answer:
            assert answer.status == 503
            assert json.load(answer)["code"] == "store_unavailable"
        server.start()
        services.wait_until(visitor.page, "the demo")
        assert running.stop()[0] == 0


def test_database_is_used_where_it_is_named(postgres_url: str) -> None:
    """With DATABASE_URL keys are in that database, at the next start too, also where its URL names no driver."""
    plain = postgres_url.replace("postgresql+psycopg:", "postgresql:")
    environ = {
        "DATABASE_URL": plain,
        "BYOK_ENCRYPTION_KEY": OTHER_ENCRYPTION_KEY,
    }
    for already in (False, True):
        with run_demo(**environ) as running:
            assert running.banner.count("the database at DATABASE_URL") == 2
            visitor, key = Visitor(running.url), running.printed(r"demo-good-\w+")
            visitor.submit("/sign-in", name="ada", password="engine-1843")
            assert (visitor.source() == "user") is already
            body = {"provider": "demo", "api_key": key, "persist": True}
            visitor.post("/api/providers/keys/set", body)
            assert visitor.source() == "user"


def ends_with(**environ: str) -> str:
    """Start the demo with a setting that does not work, and return what it says."""
    with start_demo(**{"PORT": str(services.free_port())} | environ) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in printed
    assert "pass-word" not in printed
    return printed


def test_lasting_database_needs_a_lasting_encryption_key(postgres_url: str) -> None:
    """A database that stays is not filled with what could not be read after the next start."""
    assert "set BYOK_ENCRYPTION_KEY" in ends_with(DATABASE_URL=postgres_url)


def test_taken_port_is_explained() -> None:
    """Where PORT names a port in use the demo says so and ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"PORT={port} is taken by another program." in ends_with(PORT=str(port))


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
    assert sentence in ends_with(**{name: value})


@pytest.fixture
def signed_in(demo: Demo) -> Callable[[str], Visitor]:
    """Sign a new visitor in to one of the accounts."""

    def sign_in(name: str) -> Visitor:
        visitor = Visitor(demo.url)
        password = dict(_accounts(visitor))[name]
        assert visitor.submit("/sign-in", name=name, password=password)[0] == 200
        return visitor

    return sign_in


def test_shared_keys_are_for_admins(visitor: Visitor, signed_in: Callable[[str], Visitor]) -> None:
    """The page and its calls are an admin's; others are told so plainly, and visitors are asked to sign in."""
    assert "Shared keys" in signed_in("katherine").page("/shared-keys")
    with signed_in("ada").open("/shared-keys") as answer:
        assert answer.status == 403
        assert "For admins only" in answer.read().decode()
    assert "/shared-keys" not in signed_in("ada").page()
    with signed_in("ada").open("/api/admin/keys") as answer:
        assert answer.status == 403
    with visitor.open("/shared-keys") as answer:
        assert answer.url.startswith(f"{visitor.url}/sign-in")


def test_team_key_serves_its_team(signed_in: Callable[[str], Visitor], good_key: str) -> None:
    """A team's key serves the team, as the chat's answer says, and no one else; its hint is not shown."""
    admin = signed_in("katherine")
    body = {"owner": "team:engines", "provider": "demo", "api_key": good_key}
    status, record = admin.post("/api/admin/keys", body)
    assert status == 201
    people = [signed_in(name) for name in ("ada", "grace", "katherine")]
    assert [person.source() for person in people] == ["team", "team", None]
    with people[0].chat("hello") as answer:
        assert answer.headers["X-BYOK-Source"] == "team"
        assert read_events(answer.read().decode())[-1] == ("done", {})
    assert good_key[-4:] not in people[0].page("/api/providers/settings")
    path = f"/api/admin/keys/{record['id']}"
    with admin.open(path, method="DELETE", X_CSRFToken=admin.csrf_token()) as answer:
        assert answer.status == 204
    assert people[0].source() is None


def _accounts(visitor: Visitor) -> list[tuple[str, str]]:
    """Read names and passwords from the sign-in page."""
    rows = r"<tr><td><code>(\w+)</code></td><td><code>([\w-]+)</code></td>"
    return re.findall(rows, visitor.page("/sign-in"))
