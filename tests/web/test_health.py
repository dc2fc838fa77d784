"""``GET /api/providers/health`` and ``byok.health()``: the truth about the stores, for whoever asks, at no cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import redirect
from sqlalchemy import create_engine, event
from werkzeug.wrappers import Response

from flask_byok import StoreError
from flask_byok.keys import health
from flask_byok.sealing.keyring import generate_encryption_key
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import HostApp, browser, make_app
from tests.keeper import accounts_of, close
from tests.patience import in_time
from tests.services import PostgresServer, RedisServer, wait_until
from tests.storage.kinds import made_by_an_older_version

HEALTH = "/api/providers/health"
ALL_OK = {"status": "ok", "stores": {"sessions": "ok", "accounts": "ok"}}
AWAY = {"status": "down", "stores": {"sessions": "unavailable", "accounts": "unavailable"}}


@pytest.fixture(autouse=True)
def always_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the stores at each call."""
    monkeypatch.setattr(health, "KEPT", 0.0)


@pytest.fixture
def harmed() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that the test may harm."""
    with PostgresServer() as server:
        yield server


def ask(app: HostApp) -> tuple[int, Any]:
    """Return status and body of the answer to a stranger."""
    answer = browser(app).get(HEALTH)
    assert answer.mimetype == "application/json"
    return answer.status_code, answer.get_json()


def test_healthy(app: HostApp) -> None:
    """A stranger gets 200, with the state of each store, no cookie, and nothing to keep."""
    answer = browser(app).get(HEALTH)
    assert (answer.status_code, answer.get_json()) == (200, ALL_OK)
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"
    with app.app_context():
        assert app.byok.health() == ALL_OK
    head = browser(app).head(HEALTH)
    assert (head.status_code, head.data) == (200, b"")
    assert browser(app).post(HEALTH).status_code == 405


def test_it_needs_no_sign_in(tmp_path: Path, fake: FakeProviders) -> None:
    """Neither a host's hook that sends strangers away nor BYOK_REQUIRE_LOGIN keeps it from the answer."""
    app = make_app(tmp_path, fake, BYOK_REQUIRE_LOGIN=True, BYOK_URL_PREFIX="/keys")

    @app.before_request
    def send_away() -> Response:
        return redirect("/login")

    assert browser(app).get("/plain").status_code == 302
    assert browser(app).get("/keys/providers/health").get_json() == ALL_OK


def test_it_opens_no_session(app: HostApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request with a session's cookie does not open the session, whose store may be frozen."""
    client = browser(app)
    client.load()
    opened: list[object] = []
    monkeypatch.setattr(app.session_interface, "open_session", lambda *args: opened.append(args))
    assert client.get(HEALTH).get_json() == ALL_OK
    assert opened == []


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_database_that_does_not_answer(
    tmp_path: Path, fake: FakeProviders, harmed: PostgresServer, how: str
) -> None:
    """It is 503 and soon, names no address, and is 200 again when the database is back."""
    app = make_app(tmp_path, fake, BYOK_DATABASE_URL=harmed.url)
    assert ask(app) == (200, ALL_OK)
    harmed.harm(how)
    for _ in range(4):
        with in_time():
            assert ask(app) == (503, AWAY)
    harmed.revive()
    wait_until(lambda: ask(app) == (200, ALL_OK), "health")
    close(app)


def test_redis_that_does_not_answer(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the sessions' store keys cannot be found; with "skip" those in accounts still serve."""
    with RedisServer() as server:
        apps = [
            make_app(tmp_path / failure, fake, byok_redis_url=server.url, **config)
            for failure in ("fail", "skip")
            if (config := {"BYOK_ON_STORE_FAILURE": failure})
        ]
        server.kill()
        stores = {"sessions": "unavailable", "accounts": "ok"}
        found = [ask(app) for app in apps]
        assert found == [
            (503, {"status": "down", "stores": stores}),
            (200, {"status": "degraded", "stores": stores}),
        ]
        for app in apps:
            close(app)


def test_only_needed_stores_count(tmp_path: Path, fake: FakeProviders) -> None:
    """A store in which no tier keeps keys is not looked at."""
    app = make_app(tmp_path, fake, BYOK_PRECEDENCE=("session", "env"))
    assert ask(app) == (200, {"status": "ok", "stores": {"sessions": "ok"}})


def test_outdated_tables(tmp_path: Path, fake: FakeProviders, postgres_url: str) -> None:
    """With tables of an older version every look-up fails, so a worker of the new version is down."""
    engine = create_engine(postgres_url)
    made_by_an_older_version(engine)
    engine.dispose()
    skip = {"BYOK_ON_STORE_FAILURE": "skip"}
    app = make_app(tmp_path, fake, BYOK_DATABASE_URL=postgres_url, **skip)
    stores = {"sessions": "outdated", "accounts": "outdated"}
    assert ask(app) == (503, {"status": "down", "stores": stores})
    assert browser(app).get("/used/openai").status_code == 500
    close(app)


def test_wrong_encryption_key(tmp_path: Path, fake: FakeProviders, harmed: PostgresServer) -> None:
    """A wrong encryption key shows as soon as the store answers that was away at the start."""
    close(make_app(tmp_path, fake, BYOK_DATABASE_URL=harmed.url))
    harmed.kill()
    wrong = {"BYOK_ENCRYPTION_KEY": generate_encryption_key()}
    app = make_app(tmp_path, fake, BYOK_DATABASE_URL=harmed.url, **wrong)
    assert ask(app) == (503, AWAY)
    harmed.start()
    stores = {"sessions": "wrong_key", "accounts": "wrong_key"}
    wait_until(lambda: ask(app) == (503, {"status": "down", "stores": stores}), "the store")
    close(app)


def test_many_calls_are_one_look(app: HostApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many calls within a second ask the stores once, so they put no load on them."""
    monkeypatch.setattr(health, "KEPT", 3600.0)
    looks: list[Callable[..., Any]] = []
    engine = accounts_of(app).engine
    event.listen(engine, "before_cursor_execute", lambda *facts: looks.append(facts[2]))
    assert {ask(app)[0] for _ in range(50)} == {200}
    assert len(looks) == 1


def test_a_frozen_store_holds_one_caller(app: HostApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one caller waits for a store, the others get the last answer."""
    assert ask(app) == (200, ALL_OK)
    asked, answered = threading.Event(), threading.Event()
    sessions = get_state(app).service.sessions

    def find(sid: str) -> None:
        asked.set()
        answered.wait()
        raise StoreError

    monkeypatch.setattr(sessions.documents, "find", find)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(ask, app)
        asked.wait()
        assert [ask(app) for _ in range(10)] == [(200, ALL_OK)] * 10
        answered.set()
        assert first.result()[0] == 503
