"""G10: what is not safe does not start, and a store that does not answer is not "no key"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flask_byok import BYOK, ConfigurationError
from flask_byok.cli import byok
from flask_byok.testing import FakeProviders
from tests.app import (
    ENCRYPTION_KEY,
    KEYS,
    OTHER_ENCRYPTION_KEY,
    Browser,
    HostApp,
    browser,
    fingerprint,
    make_app,
)
from tests.patience import short_limits, soon
from tests.services import RedisServer, wait_until


def _bare(directory: Path, **config: Any) -> Flask:
    app = Flask("bare", instance_path=str(directory))
    app.config.update(SECRET_KEY="x", SESSION_TYPE="cachelib", BYOK_ENCRYPTION_KEY=ENCRYPTION_KEY)
    app.config.update(config)
    return app


FALLBACKS = "BYOK_ENCRYPTION_KEY_FALLBACKS"
REFUSED = {
    "no encryption key": ({"BYOK_ENCRYPTION_KEY": None}, "generate-key"),
    "a malformed encryption key": ({"BYOK_ENCRYPTION_KEY": "secret"}, "generate-key"),
    "a malformed fallback": ({FALLBACKS: ["secret"]}, FALLBACKS),
    "an encryption key file that is not there": (
        {"BYOK_ENCRYPTION_KEY": None, "BYOK_ENCRYPTION_KEY_FILE": "/nowhere/key"},
        "BYOK_ENCRYPTION_KEY_FILE",
    ),
    "no secret key": ({"SECRET_KEY": None}, "SECRET_KEY"),
    "Flask's cookie session": ({"SESSION_TYPE": None}, "Configure Flask-Session"),
    "SESSION_TYPE null": ({"SESSION_TYPE": "null"}, "Configure Flask-Session"),
    "Redis without an address": ({"BYOK_SESSION_STORE": "redis"}, "BYOK_REDIS"),
    "a store that does not exist": ({"BYOK_SESSION_STORE": "memcached"}, "use 'redis', 'database'"),
    "an address that is none": ({"BYOK_REDIS": "nonsense"}, "redis://"),
    "a database that is none": ({"BYOK_DATABASE_URL": "nonsense"}, "BYOK_DATABASE_URL"),
    "an unknown provider": ({"BYOK_PROVIDERS": ["opanai"]}, "Did you mean 'openai'?"),
    "an unknown order": ({"BYOK_PRECEDENCE": "mine_first"}, "user_first"),
    "a rate that is none": ({"BYOK_SET_RATE": "often"}, "20/minute"),
    "an unknown cipher": ({"BYOK_CIPHER": "rot13"}, "fernet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsafe_set_up_does_not_start(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is refused with a sentence that says what to do."""
    monkeypatch.delenv("BYOK_ENCRYPTION_KEY", raising=False)
    config, advice = REFUSED[name]
    with pytest.raises(ConfigurationError) as caught:
        BYOK(_bare(tmp_path, **config))
    assert advice in str(caught.value)


def test_a_forgotten_session_extension_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SESSION_TYPE alone is an announcement: without Session(app) no request is answered with a cookie session."""
    app = _bare(tmp_path)
    BYOK(app)
    app.add_url_rule("/", view_func=lambda: "never")
    answer = app.test_client().get("/")
    assert answer.status_code == 500
    assert "Session(app)" in caplog.text
    assert "Session(app)" not in answer.text
    app.debug = True
    assert "Session(app)" in app.test_client().get("/").get_json()["detail"]


@pytest.mark.parametrize("kind", ["redis", "database"])
def test_a_wrong_encryption_key_is_refused(
    kind: str, tmp_path: Path, fake: FakeProviders, request: pytest.FixtureRequest
) -> None:
    """A start with another encryption key than the store was used with is refused, saying what to do."""
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    make_app(tmp_path, fake, byok_redis_url=url)
    make_app(tmp_path, fake, byok_redis_url=url)
    with pytest.raises(ConfigurationError, match=FALLBACKS):
        make_app(tmp_path, fake, byok_redis_url=url, BYOK_ENCRYPTION_KEY=OTHER_ENCRYPTION_KEY)
    replaced = {"BYOK_ENCRYPTION_KEY": OTHER_ENCRYPTION_KEY, FALLBACKS: [ENCRYPTION_KEY]}
    rotating = make_app(tmp_path, fake, byok_redis_url=url, **replaced)
    with pytest.raises(ConfigurationError):
        make_app(tmp_path, fake, byok_redis_url=url, BYOK_ENCRYPTION_KEY=OTHER_ENCRYPTION_KEY)
    assert rotating.test_cli_runner().invoke(byok, ["rotate"]).exit_code == 0
    make_app(tmp_path, fake, byok_redis_url=url, BYOK_ENCRYPTION_KEY=OTHER_ENCRYPTION_KEY)
    with pytest.raises(ConfigurationError):
        make_app(tmp_path, fake, byok_redis_url=url)


def test_apps_of_other_secrets_share_a_store(
    tmp_path: Path, fake: FakeProviders, redis_url: str
) -> None:
    """Another app in the same store for sessions has an encryption key of its own, and a database."""
    make_app(tmp_path / "one", fake, byok_redis_url=redis_url)
    other = {"SECRET_KEY": "another app's", "BYOK_ENCRYPTION_KEY": OTHER_ENCRYPTION_KEY}
    make_app(tmp_path / "other", fake, byok_redis_url=redis_url, **other)


def test_in_tests_encryption_keys_come_and_go(
    tmp_path: Path, fake: FakeProviders, caplog: pytest.LogCaptureFixture
) -> None:
    """With TESTING another encryption key is logged, not refused."""
    make_app(tmp_path, fake)
    make_app(tmp_path, fake, TESTING=True, BYOK_ENCRYPTION_KEY=OTHER_ENCRYPTION_KEY)
    assert "BYOK_ENCRYPTION_KEY is not the one" in caplog.text


@pytest.mark.parametrize("encryption_key", [None, OTHER_ENCRYPTION_KEY])
@pytest.mark.parametrize("first", ["debug", "production"])
@pytest.mark.filterwarnings("ignore:BYOK_ENCRYPTION_KEY is not set")
def test_a_debug_start_does_not_spoil_the_next(
    tmp_path: Path, fake: FakeProviders, first: str, encryption_key: str | None
) -> None:
    """A debug start with no encryption key, or with another, leaves the right one right."""
    if first == "production":
        make_app(tmp_path, fake)
        make_app(tmp_path, fake, TESTING=True, BYOK_ENCRYPTION_KEY=encryption_key)
    elif encryption_key is None:
        make_app(tmp_path, fake, TESTING=True, BYOK_ENCRYPTION_KEY=None)
    make_app(tmp_path, fake)


@pytest.fixture
def harmed() -> Iterator[RedisServer]:
    """Run a Redis that the test may harm."""
    with RedisServer() as server:
        yield server


def _uses(client: Browser) -> list[Callable[[], TestResponse]]:
    """Return every call that needs a key or the list of keys."""
    return [
        lambda: client.get(KEYS),
        lambda: client.call("set", provider="openai", api_key="k-0123456789", validate="off"),
        lambda: client.call("clear", provider="openai"),
        lambda: client.call("validate", provider="openai"),
        lambda: client.call("promote"),
        lambda: client.get("/used/openai"),
        lambda: client.get("/chat/openai"),
        lambda: client.get("/api/providers/settings"),
    ]


def _assert_refused(client: Browser) -> None:
    """Fail unless each way to use a key is refused, twice, and soon."""
    for use in _uses(client) * 2:
        with soon():
            answer = use()
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) >= 1
        if answer.mimetype != "text/html":
            assert answer.get_json()["code"] == "store_unavailable"


def _hosts(where: str, tmp_path: Path, fake: FakeProviders, url: str) -> HostApp:
    with short_limits():
        if where == "sessions on disk":
            return make_app(tmp_path, fake, byok_redis_url=url)
        return make_app(tmp_path, fake, redis_url=url)


@pytest.mark.parametrize("where", ["sessions on disk", "sessions on the same Redis"])
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_store_that_does_not_answer(
    tmp_path: Path,
    fake: FakeProviders,
    harmed: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    how: str,
) -> None:
    """Every use of keys is 503 with Retry-After, and soon; the host goes on, and it comes back by itself."""
    operators = fake.api_key("groq", owner="operator")
    monkeypatch.setenv("OPENAI_API_KEY", operators)
    app = _hosts(where, tmp_path, fake, harmed.url)
    client = browser(app)
    client.post("/sign-in/a")
    client.save(fake.api_key("openai"), validate="off")
    fake.clear_calls()
    harmed.harm(how)
    _assert_refused(client)
    assert fake.calls == []  # the operator did not pay
    with soon():
        assert client.get("/plain").text == "plain"
    harmed.revive()
    wait_until(lambda: client.get(KEYS).status_code == 200, "the list of keys")
    if how == "frozen":
        used = client.get("/used/openai").get_json()
        assert used == {"source": "session", "fingerprint": fingerprint(fake.api_key("openai"))}
    saved = client.save(fake.api_key("openai"), validate="off")
    assert saved.status_code == 200


@pytest.mark.parametrize("path", ["/empty?then=1", "/sign-out", "/renew"])
def test_signing_out_while_the_store_is_down(
    tmp_path: Path, fake: FakeProviders, harmed: RedisServer, path: str
) -> None:
    """The host's sign-out says that it could not delete the keys, and they stay away once the store is back."""
    client = browser(_hosts("sessions on disk", tmp_path, fake, harmed.url))
    client.post("/sign-in/a")
    client.save(fake.api_key("openai"), validate="off")
    with harmed.frozen():
        answer = client.post(path)
    assert (answer.status_code, answer.get_json()["code"]) == (503, "store_unavailable")
    wait_until(lambda: client.get(KEYS).status_code == 200, "the list of keys")
    if path != "/renew":
        client.post("/sign-in/a")
        assert client.get("/used/openai").status_code == 409


def test_the_operator_may_let_others_keys_step_in(
    tmp_path: Path, fake: FakeProviders, harmed: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With BYOK_ON_STORE_FAILURE="skip" the operator's key serves while the store is down, and says so."""
    monkeypatch.setenv("OPENAI_API_KEY", fake.api_key("openai", owner="operator"))
    app = make_app(tmp_path, fake, byok_redis_url=harmed.url, BYOK_ON_STORE_FAILURE="skip")
    client, newcomer = browser(app), browser(app)
    client.save(fake.api_key("openai"), validate="off")
    harmed.kill()
    for each in (client, newcomer):
        assert each.get("/chat/openai").headers["X-BYOK-Source"] == "env"
        assert each.status()["source"] == "env"


def test_a_database_that_cannot_be_reached(tmp_path: Path, fake: FakeProviders) -> None:
    """A SQL store that fails is 503 too, and the host goes on."""
    app = make_app(tmp_path, fake)
    client = browser(app)
    client.save(fake.api_key("openai"), validate="off")
    for file in tmp_path.glob("byok.sqlite*"):
        file.unlink()
    (tmp_path / "byok.sqlite").mkdir()
    app.extensions["byok"].service.sessions.documents.engine.dispose()
    answer = client.get(KEYS)
    assert (answer.status_code, answer.get_json()["code"]) == (503, "store_unavailable")
    assert client.get("/plain").status_code == 200


@pytest.mark.parametrize("where", ["sessions on disk", "sessions on the same Redis"])
def test_a_store_that_dies_within_a_stream(
    tmp_path: Path, fake: FakeProviders, harmed: RedisServer, where: str
) -> None:
    """Everything was resolved before, so the stream goes on to its end."""
    client = browser(_hosts(where, tmp_path, fake, harmed.url))
    client.save(fake.api_key("openai"), validate="off")
    answer = client.get("/chat/openai", buffered=False)
    pieces = iter(answer.response)
    next(pieces)
    harmed.kill()
    assert b"event: done" in b"".join(pieces)
