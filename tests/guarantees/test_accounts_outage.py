"""G10 for accounts: while their database is away keys answer 503, and it comes back by itself with nothing lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from flask_byok import ConfigurationError, StoreError
from flask_byok.testing import FakeProviders
from tests.app import KEYS, OTHER_ENCRYPTION_KEY, HostApp, fingerprint, make_app
from tests.keeper import OWN, SHARED, Keeper, close, keeper
from tests.patience import in_time, short_limits
from tests.services import PostgresServer, wait_until


@pytest.fixture
def harmed() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that the test may harm."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sessions in Redis", "sessions in the same database"])
def host(
    request: pytest.FixtureRequest, tmp_path: Path, fake: FakeProviders, harmed: PostgresServer
) -> Iterator[HostApp]:
    """Make a host with accounts in that PostgreSQL."""
    in_redis = request.param == "sessions in Redis"
    url = request.getfixturevalue("redis_url") if in_redis else None
    app = make_host(tmp_path, fake, harmed, byok_redis_url=url)
    yield app
    dispose(app)


def make_host(
    directory: Path, fake: FakeProviders, server: PostgresServer, **config: Any
) -> HostApp:
    """Make a host whose every user is an admin."""
    app = make_app(directory, fake, BYOK_DATABASE_URL=server.url, **config)
    app.byok.admin_loader(lambda: True)
    return app


def dispose(app: HostApp) -> None:
    """Let the database go, once no count is being written: a connection in use would be left open."""
    with suppress(StoreError):
        close(app)


def uses(client: Keeper, id: str) -> dict[str, Callable[[], TestResponse]]:
    """Return every call that needs the accounts."""
    new = {"provider": "groq", "api_key": "gsk_0123456789", "validate": "off"}
    return {
        "list": lambda: client.get(KEYS),
        "set": lambda: client.call("set", persist=True, **new),
        "clear": lambda: client.call("clear", provider="openai"),
        "validate": lambda: client.call("validate", provider="openai"),
        "promote": lambda: client.call("promote"),
        "resolve": lambda: client.get("/used/openai"),
        "stream": lambda: client.get("/chat/openai"),
        "the page of settings": lambda: client.get("/api/providers/settings"),
        "records": lambda: client.get(OWN),
        "create": lambda: client.ask("POST", OWN, new),
        "one record": lambda: client.get(f"{OWN}/{id}"),
        "change": lambda: client.ask("PATCH", f"{OWN}/{id}", {"label": "x"}),
        "delete": lambda: client.ask("DELETE", f"{OWN}/{id}"),
        "check one": lambda: client.ask("POST", f"{OWN}/{id}/validate", {}),
        "statistics": lambda: client.get(f"{OWN}/stats"),
        "shared records": lambda: client.get(SHARED),
        "create a shared one": lambda: client.ask("POST", SHARED, new),
        "shared statistics": lambda: client.get(f"{SHARED}/stats"),
    }


def assert_refused(client: Keeper, id: str) -> None:
    """Fail unless every call that needs the accounts says 503, and soon."""
    for name, use in uses(client, id).items():
        with in_time():
            answer = use()
        assert answer.status_code == 503, f"{name}: {answer.text}"
        assert int(answer.headers["Retry-After"]) >= 1, name
        if answer.mimetype != "text/html":
            assert answer.get_json()["code"] == "store_unavailable", name
        assert client.get("/plain").text == "plain"


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_accounts_that_do_not_answer(
    host: HostApp,
    fake: FakeProviders,
    harmed: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """Every use of accounts is 503, and soon; nobody else pays, and keys are back without a restart."""
    monkeypatch.setenv("OPENAI_API_KEY", fake.api_key("openai", owner="operator"))
    client = keeper(host, None)
    client.save(fake.api_key("groq"), "groq")
    client.post("/sign-in/ann")
    client.load()
    theirs = fake.api_key("openai", owner="ann")
    id = client.keep(theirs)["id"]
    client.keep("xai-0123456789", "xai")
    assert client.call("clear", provider="xai").status_code == 200
    fake.clear_calls()
    harmed.harm(how)
    assert_refused(client, id)
    assert fake.calls == []
    harmed.revive()
    wait_until(lambda: client.get(KEYS).status_code == 200, "the list of keys", timeout=10)
    used = client.get("/used/openai").get_json()
    assert used == {"source": "user", "fingerprint": fingerprint(theirs)}
    assert [record["provider"] for record in client.records()] == ["openai"]
    assert client.ask("PATCH", f"{OWN}/{id}", {"label": "after"}).status_code == 200
    assert client.call("promote").get_json()["promoted"] == ["groq"]


class Changer(threading.Thread):
    """Somebody who sets and clears a key of their own without end, and remembers what was acknowledged."""

    def __init__(self, app: HostApp, user: str) -> None:
        super().__init__()
        self.client = keeper(app, user)
        self.user = user
        #: Fingerprints that the key may have now; None stands for no key.
        self.possible: set[str | None] = {None}
        self.statuses: list[int] = []
        self.slowest = 0.0
        self.ended = threading.Event()
        self.problems: list[str] = []
        self._random = random.Random(user)

    def run(self) -> None:
        number = 0
        while not self.ended.is_set():
            number += 1
            choice = self._random.random()
            if choice < 0.5:
                self._change(f"sk-proj-of-{self.user}-{number:06}")
            elif choice < 0.7:
                self._change(None)
            else:
                self.look()

    def _change(self, api_key: str | None) -> None:
        after = None if api_key is None else fingerprint(api_key)
        body = {"provider": "openai", "tier": "user"}
        if api_key is not None:
            body = {"provider": "openai", "api_key": api_key, "validate": "off", "persist": True}
        answer = self._timed(
            lambda: self.client.call("clear" if api_key is None else "set", **body)
        )
        # What was not acknowledged may have happened.
        self.possible = {after} if answer.status_code == 200 else self.possible | {after}

    def look(self) -> None:
        """See that the key is one of those that it may be."""
        answer = self._timed(lambda: self.client.get("/used/openai"))
        if answer.status_code == 503:
            return
        found = answer.get_json().get("fingerprint")
        if found not in self.possible:
            self.problems.append(f"{self.user}: {answer.status_code} {found}")
        self.possible = {found}

    def _timed(self, call: Callable[[], TestResponse]) -> TestResponse:
        started = time.perf_counter()
        answer = call()
        self.slowest = max(self.slowest, time.perf_counter() - started)
        self.statuses.append(answer.status_code)
        return answer


def _outages(harmed: PostgresServer, app: HostApp, times: int) -> list[Changer]:
    """Take the database away while people change their keys, and see what is there afterwards."""
    people = [Changer(app, f"p{number}") for number in range(4)]
    for each in people:
        each.start()
    try:
        for number in range(times):
            time.sleep(0.5 + 0.1 * number)
            with short_limits():
                harmed.harm(("killed", "frozen")[number % 2])
                time.sleep(0.6)
                harmed.revive()
            probe = people[0].client
            wait_until(lambda: probe.get(KEYS).status_code == 200, "the list", timeout=15)  # noqa: B023
    finally:
        time.sleep(0.5)
        for each in people:
            each.ended.set()
        for each in people:
            each.join()
    for each in people:
        each.look()
    return people


def _assert_nothing_lost(people: list[Changer]) -> None:
    assert [problem for each in people for problem in each.problems] == []
    statuses = {status for each in people for status in each.statuses}
    assert {200, 503} <= statuses <= {200, 409, 503}  # 409: no key, as it was cleared
    assert {each.statuses[-1] for each in people} <= {200, 409}


def test_nothing_acknowledged_is_lost(harmed: PostgresServer, host: HostApp) -> None:
    """Killed and frozen while people change keys: 503 at worst, and what was acknowledged is there afterwards."""
    _assert_nothing_lost(_outages(harmed, host, 2))


@pytest.mark.stress
def test_nothing_acknowledged_is_lost_in_many_outages(
    harmed: PostgresServer, host: HostApp
) -> None:
    """The same over 20 outages; no answer takes longer than a moment."""
    people = _outages(harmed, host, 20)
    _assert_nothing_lost(people)
    assert max(each.slowest for each in people) < 3


def test_the_operator_may_let_others_keys_step_in(
    tmp_path: Path, fake: FakeProviders, harmed: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With BYOK_ON_STORE_FAILURE="skip" the operator's key serves while accounts are away, and says so."""
    monkeypatch.setenv("OPENAI_API_KEY", fake.api_key("openai", owner="operator"))
    app = make_host(tmp_path, fake, harmed, BYOK_ON_STORE_FAILURE="skip")
    client = keeper(app, "ann")
    client.keep(fake.api_key("openai", owner="ann"))
    assert client.get("/chat/openai").headers["X-BYOK-Source"] == "user"
    harmed.kill()
    for _ in range(3):
        answer = client.get("/chat/openai")
        assert (answer.status_code, answer.headers["X-BYOK-Source"]) == (200, "env")
        assert client.status()["source"] == "env"
    harmed.start()
    wait_until(
        lambda: client.get("/used/openai").get_json()["source"] == "user", "Ann's key", timeout=10
    )
    dispose(app)


@pytest.mark.parametrize("kind", ["sqlite_url", "postgres_url"])
def test_a_wrong_encryption_key_is_refused(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    fake: FakeProviders,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """Another encryption key than that of the accounts does not start, with a sentence; in tests it is logged."""
    # Sessions begin anew at another index of Redis, so only the accounts can tell.
    here = {"BYOK_DATABASE_URL": request.getfixturevalue(kind), "byok_redis_url": redis_url}
    there: dict[str, Any] = {**here, "byok_redis_url": f"{redis_url.removesuffix('/0')}/1"}
    wrong = {"BYOK_ENCRYPTION_KEY": OTHER_ENCRYPTION_KEY}
    first = make_app(tmp_path, fake, **here)
    keeper(first, "ann").keep(fake.api_key("openai"))
    with pytest.raises(ConfigurationError) as caught:
        make_app(tmp_path, fake, **there, **wrong)
    assert "BYOK_ENCRYPTION_KEY is not the one" in str(caught.value)
    assert "BYOK_ENCRYPTION_KEY_FALLBACKS" in str(caught.value)
    caplog.clear()
    lenient = make_app(tmp_path, fake, TESTING=True, **{**there, **wrong})
    assert "BYOK_ENCRYPTION_KEY is not the one" in caplog.text
    client = keeper(lenient, "ann")
    assert client.status()["state"] == "unreadable"
    again = make_app(tmp_path, fake, **here)
    assert keeper(again, "ann").get("/used/openai").status_code == 200
    for app in (first, lenient, again):
        dispose(app)
