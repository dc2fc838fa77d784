"""What a fault of one store leaves possible, and what the log says of it; on real servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select, text

from flask_byok.errors import StoreError
from flask_byok.sealing.keyring import generate_encryption_key
from flask_byok.storage.redis import RedisDocuments
from flask_byok.storage.sql import Database, SqlDocuments
from flask_byok.storage.tables import audit
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import KEYS, HostApp, browser, fingerprint, make_app
from tests.keeper import OWN, SHARED, keeper
from tests.keeper import close as close_keeper
from tests.patience import short_limits, soon
from tests.services import PostgresServer, RedisServer, wait_until

from .redis_kinds import ReplicaOf, TunedRedis

LOG = "flask_byok.stores"


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """Run a Redis of this test's own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that may be taken away."""
    with PostgresServer() as server:
        yield server


def _fill(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOG]


def close(app: HostApp) -> None:
    """Close all connections of an app."""
    close_keeper(app)
    wing: Any = get_state(app).service.accounts
    wing.store.engine.dispose()


# the work's own answer


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_the_works_answer_counts(
    own_redis: RedisServer,
    own_postgres: PostgresServer,
    tmp_path: Path,
    fake: FakeProviders,
    how: str,
) -> None:
    """A visitor's key is saved, checked and removed while the accounts' database is away; the status is then null."""
    place = own_postgres.create_database()
    with short_limits():
        app = make_app(tmp_path, fake, byok_redis_url=own_redis.url, BYOK_DATABASE_URL=place)
    person, api_key = browser(app), fake.api_key("openai")
    person.load()
    own_postgres.harm(how)
    try:
        with short_limits():
            saved = person.call("set", provider="openai", api_key=api_key, validate="off")
            assert (saved.status_code, saved.get_json()["provider"]) == (200, None)
            assert person.get("/used/openai").get_json()["fingerprint"] == fingerprint(api_key)
            assert person.call("validate", provider="openai").get_json()["valid"] is True
            form = {"provider": "openai", "next": "/plain", "csrf_token": person.token}
            page = person.post("/api/providers/settings/clear", data=form)
            assert "byok=cleared" in page.headers["Location"]
            again = person.call("clear", provider="openai")
        assert again.status_code == 200
        assert again.get_json() == {"success": True, "cleared": [], "provider": None}
    finally:
        own_postgres.revive()
    wait_until(lambda: person.get(KEYS).status_code == 200, "database")
    assert person.status()["has_key"] is False
    close(app)


def test_a_session_key_is_removed_without_the_database(
    own_redis: RedisServer, own_postgres: PostgresServer, tmp_path: Path, fake: FakeProviders
) -> None:
    """Signed-in users remove a session's key while PostgreSQL, which logs it, is away, but not one that it may have."""
    place = own_postgres.create_database()
    with short_limits():
        app = make_app(tmp_path, fake, byok_redis_url=own_redis.url, BYOK_DATABASE_URL=place)
        person = browser(app)
        person.post("/sign-in/ann")
        for provider in ("openai", "groq"):
            assert person.save(fake.api_key(provider), provider).status_code == 200
        own_postgres.kill()
        try:
            answer = person.call("clear", provider="openai", tier="session")
            assert (answer.status_code, answer.get_json()["cleared"]) == (200, ["session"])
            promoted = person.call("promote", providers=["groq"], on_conflict="replace")
            again = person.call("clear", provider="groq", tier="session")
            assert (promoted.status_code, again.status_code) == (503, 503)
        finally:
            own_postgres.revive()
        wait_until(lambda: person.get(KEYS).status_code == 200, "database")
        assert person.status()["has_key"] is False
        assert person.call("clear", provider="groq").get_json()["cleared"] == ["session"]
    close(app)


@pytest.mark.parametrize("kind", ["database", "redis"])
def test_the_time_to_wait_is_as_set(
    own_redis: RedisServer,
    own_postgres: PostgresServer,
    tmp_path: Path,
    fake: FakeProviders,
    kind: str,
) -> None:
    """A store that does not answer is given up after the time that is set for it, not before and not long after."""
    place = {"byok_redis_url": own_redis.url, "BYOK_DATABASE_URL": own_postgres.create_database()}
    app = make_app(tmp_path, fake, **place, BYOK_DATABASE_TIMEOUT=1, BYOK_REDIS_TIMEOUT=1)
    ann = keeper(app, "ann")
    ann.load()
    with (own_redis if kind == "redis" else own_postgres).frozen(), soon():
        started = time.monotonic()
        assert ann.get("/used/openai").status_code == 503
        assert time.monotonic() - started > 0.9
    close(app)


# a full Redis


@pytest.mark.parametrize("user", [None, "ann"])
def test_full_redis_takes_removals(
    own_redis: RedisServer,
    tmp_path: Path,
    fake: FakeProviders,
    user: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full Redis lets a session's key be removed beside others, which stay, saves none, and is full in one line."""
    app = make_app(tmp_path, fake, byok_redis_url=own_redis.url, BYOK_VALIDATE_ON_SET="off")
    person = browser(app)
    if user:
        person.post(f"/sign-in/{user}")
    for provider in ("openai", "groq"):
        assert person.save(fake.api_key(provider), provider).status_code == 200
    _fill(own_redis)
    assert person.call("set", provider="anthropic", api_key="sk-one-more").status_code == 503
    answer = person.call("clear", provider="openai")
    assert (answer.status_code, answer.get_json()["cleared"]) == (200, ["session"])
    assert person.get("/used/openai").status_code == 409
    assert person.get("/used/groq").get_json()["source"] == "session"
    assert person.call("clear", provider="groq").get_json()["cleared"] == ["session"]
    assert person.call("set", provider="groq", api_key="sk-one-more").status_code == 503
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", 0)
    assert person.call("set", provider="groq", api_key="sk-one-more").status_code == 200
    first, second = (line for line in _lines(caplog) if line.startswith("Redis"))
    assert ("full" in first, second) == (True, "Redis works again.")
    close(app)


@pytest.mark.parametrize("how", ["full", "killed"])
def test_removals_wait_for_no_counter(
    own_redis: RedisServer, tmp_path: Path, fake: FakeProviders, how: str
) -> None:
    """Keys in accounts, own and shared, are removed, with a row in the audit log, though no attempt can be counted."""
    app = make_app(tmp_path, fake, byok_redis_url=own_redis.url)
    app.byok.admin_loader(lambda: True)
    ann = keeper(app, "ann")
    own, other = (ann.keep(fake.api_key(name), name) for name in ("openai", "groq"))
    shared = ann.keep(fake.api_key("openai"), path=SHARED, owner="system")
    _fill(own_redis) if how == "full" else own_redis.kill()
    assert ann.ask("DELETE", f"{OWN}/{own['id']}").status_code == 204
    assert ann.ask("DELETE", f"{SHARED}/{shared['id']}").status_code == 204
    if how == "full":
        cleared = ann.call("clear", provider=other["provider"]).get_json()["cleared"]
        assert cleared == ["user"]
    wing: Any = get_state(app).service.accounts
    query = select(audit.c.action).where(audit.c.action == "clear")
    actions = [row.action for row in wing.store.database.read(query)]
    assert actions.count("clear") == (3 if how == "full" else 2)
    close(app)


# the encryption key


@pytest.mark.parametrize("kind", ["redis", "database"])
def test_wrong_encryption_key_is_noticed_later(
    own_redis: RedisServer,
    own_postgres: PostgresServer,
    tmp_path: Path,
    fake: FakeProviders,
    kind: str,
) -> None:
    """A worker that starts with a wrong encryption key while the stores are away seals and opens nothing with it."""
    place = own_postgres.create_database()
    config: dict[str, Any] = {"BYOK_DATABASE_URL": place, "BYOK_VALIDATE_ON_SET": "off"}
    if kind == "redis":
        config["BYOK_REDIS"] = own_redis.url
    right = make_app(tmp_path, fake, **config)
    person = browser(right)
    assert person.save(api_key := fake.api_key("openai")).status_code == 200
    ann = keeper(right, "ann")
    ann.keep(fake.api_key("groq"), "groq")
    own_redis.stop_process()
    own_postgres.stop_process()
    with short_limits():
        wrong_key = generate_encryption_key()
        wrong = make_app(tmp_path, fake, **config, BYOK_ENCRYPTION_KEY=wrong_key)
    own_redis.cont()
    own_postgres.cont()
    late = browser(wrong)
    late.set_cookie("session", person.session_id)
    late.token = person.token

    def refuses() -> bool:
        return late.call("set", provider="groq", api_key="sk-sealed-wrongly").status_code == 500

    wait_until(refuses, "stores")
    assert late.get("/used/openai").status_code == 500
    assert person.get("/used/openai").get_json()["fingerprint"] == fingerprint(api_key)
    assert person.status("groq")["has_key"] is False
    close(right)
    close(wrong)


# rotation of the host's secret key


def test_a_new_secret_key_hides_no_wrong_encryption_key(
    own_redis: RedisServer, tmp_path: Path, fake: FakeProviders
) -> None:
    """A worker that starts with both, while Redis is away, seals nothing, and keeps no other worker from starting."""
    config: dict[str, Any] = {
        "byok_redis_url": own_redis.url,
        "BYOK_PRECEDENCE": ["session", "env"],
    }
    right = make_app(tmp_path, fake, **config)
    person = browser(right)
    assert person.save(fake.api_key("openai")).status_code == 200
    rotated = {"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": [right.secret_key]}
    wrong_key = generate_encryption_key()
    with own_redis.frozen(), short_limits():
        wrong = make_app(tmp_path, fake, **config, **rotated, BYOK_ENCRYPTION_KEY=wrong_key)
    late = browser(wrong)
    wait_until(lambda: late.get(KEYS).status_code != 503, "Redis")
    assert late.get(KEYS).status_code == 500
    make_app(tmp_path, fake, **config, **rotated)


def test_session_keys_survive_a_new_secret_key(
    redis_url: str, tmp_path: Path, fake: FakeProviders
) -> None:
    """While SECRET_KEY is rotated, old and new workers share sessions' keys; those stay when the old one goes."""

    def worker(*keys: str) -> HostApp:
        config = {"SECRET_KEY": keys[0], "SECRET_KEY_FALLBACKS": list(keys[1:])}
        return make_app(
            tmp_path,
            fake,
            redis_url=redis_url,
            csrf_protect=False,
            WTF_CSRF_ENABLED=False,
            BYOK_VALIDATE_ON_SET="off",
            BYOK_SESSION_TTL=3600,
            **config,
        )

    old, both, new = worker("old"), worker("new", "old"), worker("new")
    for first, second in ((old, both), (both, old)):
        person = browser(first)
        person.post("/visit")
        assert person.save(one := fake.api_key("openai")).status_code == 200
        for app in (second, first, second):
            here = browser(app)
            here.set_cookie("session", person.session_id)
            assert here.get("/used/openai").get_json()["fingerprint"] == fingerprint(one)
            assert here.save(one := fake.api_key("openai")).status_code == 200
    here = browser(both)
    here.set_cookie("session", person.session_id)
    later = get_state(both).service.sessions
    later.clock = lambda: time.time() + 1800  # the lifetime slides
    assert here.get("/used/openai").status_code == 200
    last = browser(new)
    last.set_cookie("session", person.session_id)
    assert last.get("/used/openai").get_json()["fingerprint"] == fingerprint(one)
    last.post("/empty")
    for app in (old, both, new):
        close(app)


# the log


def test_killed_and_frozen_stores_are_logged_once(
    own_redis: RedisServer, own_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that does not answer is one line with the reason, however often it is asked, and one when it does."""
    with short_limits():
        place = own_postgres.create_database()
        stores = RedisDocuments(own_redis.url), SqlDocuments(place)
        for server, store, name in (
            (own_redis, stores[0], "Redis"),
            (own_postgres, stores[1], "The database"),
        ):
            store.find("sid")
            for how in ("killed", "frozen"):
                caplog.clear()
                server.harm(how)
                ends = time.monotonic() + 1.5
                while time.monotonic() < ends:
                    with pytest.raises(StoreError):
                        store.find("sid")
                    time.sleep(0.02)
                server.revive()
                wait_until(lambda store=store: store.find("sid") is None, name)  # type: ignore[misc]
                said = _lines(caplog)
                assert [said[0].startswith(f"{name} failed: "), said[1:]] == [
                    True,
                    [f"{name} works again."],
                ]
                assert "Error" not in said[0]
                assert str(server.port) not in said[0]
        stores[1].engine.dispose()


@pytest.mark.parametrize(
    ("fault", "mend", "words"),
    [
        (("maxmemory", "1"), ("maxmemory", "0"), "Redis is full"),
        (("min-replicas-to-write", "1"), ("min-replicas-to-write", "0"), "without its replicas"),
    ],
)
def test_faults_that_redis_answers_are_logged_once(
    own_redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
    fault: tuple[str, str],
    mend: tuple[str, str],
    words: str,
) -> None:
    """A Redis that refuses changes is one line although it reads in between, and one when it takes changes again."""
    store = RedisDocuments(own_redis.url)
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set(*fault)
        for _ in range(5):
            with pytest.raises(StoreError):
                store.point("sid", "ref", 60, instead_of=None)
            store.find("sid")
        client.config_set(*mend)
    for _ in range(3):
        store.point("sid", "ref", 60, instead_of=None)
    first, second = _lines(caplog)
    assert words in first
    assert second == "Redis works again."


def test_too_few_replicas_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """With BYOK_REDIS_WAIT and no replica the log says once that two replicas are needed, and once that it is over."""
    with TunedRedis(repl_diskless_sync_delay=0) as primary:
        store = RedisDocuments(primary.url, wait=1)
        for number in range(3):
            with pytest.raises(StoreError):
                store.swap(f"ref-{number}", None, "1" * 16, b"body", 60)
            store.load("ref-0")
        with ReplicaOf(primary):
            store.swap("ref-9", None, "1" * 16, b"body", 60)
    first, second = _lines(caplog)
    assert "two replicas" in first
    assert second == "Redis works again."


def test_read_only_database_is_logged_once(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that has become read-only is one line although it reads in between."""
    documents = SqlDocuments(postgres_url)
    documents.swap("ref", None, "1" * 16, b"body", 60)
    name = documents.engine.url.database
    database = Database(documents.engine, ())
    caplog.clear()
    for value, raises in (("on", True), ("off", False)):
        setting = f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}'
        with documents.engine.connect() as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.execute(text(setting))
        documents.engine.dispose()
        for number in range(3):
            try:
                documents.swap(f"{value}-{number}", None, "1" * 16, b"body", 60)
                assert not raises
            except StoreError:
                assert raises
            assert database.read(text("SELECT 1"))
    first, second = _lines(caplog)
    assert "read-only" in first
    assert second == "The database works again."
    documents.engine.dispose()


def test_apps_count_apart(redis_url: str, tmp_path: Path, fake: FakeProviders) -> None:
    """Two apps on one Redis do not use up each other's rates."""
    apps = [
        make_app(tmp_path, fake, byok_redis_url=redis_url, SECRET_KEY=key, BYOK_SET_RATE="1/hour")
        for key in ("one", "other")
    ]
    for app in apps:
        person = browser(app)
        person.load()
        answers = [person.call("clear", provider="openai").status_code for _ in range(2)]
        assert answers == [200, 429]
        close(app)
