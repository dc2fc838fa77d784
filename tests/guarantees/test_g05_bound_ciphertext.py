"""G5: a ciphertext that was moved to another owner, provider or scope does not open, from end to end."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from flask_byok.cli import byok
from flask_byok.testing import FakeProviders
from tests.app import (
    ENCRYPTION_KEY,
    OTHER_ENCRYPTION_KEY,
    Browser,
    HostApp,
    browser,
    fingerprint,
    make_app,
)
from tests.documents import Place, records, with_record


class SqliteVault:
    """The sealed records of the embedded store, as somebody with the file sees them."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)

    def read(self) -> dict[Place, dict[str, Any]]:
        rows = self._connection.execute("SELECT ref, body FROM byok_session_documents")
        return {place: json.loads(raw) for row in rows for place, raw in records(*row).items()}

    def write(self, place: Place, record: dict[str, Any]) -> None:
        query = "SELECT body FROM byok_session_documents WHERE ref=?"
        (body,) = self._connection.execute(query, place[:1]).fetchone()
        changed = with_record(body, place, json.dumps(record).encode())
        statement = "UPDATE byok_session_documents SET body=?, revision=? WHERE ref=?"
        # A new revision, or a count of uses that is under way would put back what it has read.
        values = (changed, secrets.token_hex(8), place[0])
        assert self._connection.execute(statement, values).rowcount == 1

    def close(self) -> None:
        self._connection.close()


class RedisVault:
    """The sealed records in Redis, as somebody with access to it sees them."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def read(self) -> dict[Place, dict[str, Any]]:
        found = {}
        for key in self._client.keys("byok:d:*"):
            for place, raw in records(key.decode(), self._client.get(key)[16:]).items():
                found[place] = json.loads(raw)
        return found

    def write(self, place: Place, record: dict[str, Any]) -> None:
        value = self._client.get(place[0])
        changed = with_record(value[16:], place, json.dumps(record).encode())
        written = secrets.token_hex(8).encode() + changed
        assert self._client.set(place[0], written, keepttl=True, xx=True)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(params=["SQLite", "Redis"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Open the place where records are kept."""
    if request.param == "SQLite":
        opened: Any = SqliteVault(tmp_path / "byok.sqlite")
    else:
        opened = RedisVault(request.getfixturevalue("redis_url"))
    yield opened
    opened.close()


@pytest.fixture
def host(
    vault: Any, request: pytest.FixtureRequest, tmp_path: Path, fake: FakeProviders
) -> Callable[..., HostApp]:
    """Return what makes hosts on that store."""
    url = request.getfixturevalue("redis_url") if isinstance(vault, RedisVault) else None
    return partial(make_app, tmp_path, fake, byok_redis_url=url)


@pytest.fixture
def app(host: Callable[..., HostApp], operators_keys: None) -> HostApp:
    """Make a host whose operator has keys that could step in."""
    return host(BYOK_VALIDATE_ON_SET="off")


class Person(NamedTuple):
    """Somebody with a key for one provider, and the place where it lies."""

    client: Browser
    provider: str
    api_key: str
    place: Place


def _people(app: HostApp, vault: Any, fake: FakeProviders) -> list[Person]:
    """Save keys as two visitors, for two providers, and as the same user in two sessions."""
    people: list[Person] = []

    def save(client: Browser, provider: str, owner: str) -> None:
        client.load()
        before = set(vault.read())
        api_key = fake.api_key(provider, owner=owner)
        assert client.save(api_key, provider).status_code == 200
        (place,) = set(vault.read()) - before
        people.append(Person(client, provider, api_key, place))

    one, two, three, four = (browser(app) for _ in range(4))
    save(one, "openai", "one")
    save(one, "groq", "one")
    save(two, "openai", "two")
    for number, client in enumerate((three, four)):
        client.post("/sign-in/a")
        save(client, "openai", f"a{number}")
    return people


def assert_unreadable(client: Browser, provider: str, source: str = "session") -> None:
    """See that the key in use is called unreadable everywhere, and that no other steps in."""
    status = client.status(provider)
    assert (status["state"], status["source"]) == ("unreadable", source)
    for path in ("used", "chat"):
        answer = client.get(f"/{path}/{provider}")
        assert (answer.status_code, answer.get_json()["code"]) == (409, "key_unreadable")


def assert_serves(client: Browser, provider: str, api_key: str, source: str = "session") -> None:
    """See that this very key is in use."""
    used = client.get(f"/used/{provider}").get_json()
    assert used == {"source": source, "fingerprint": fingerprint(api_key)}


def _assert_unreadable(person: Person) -> None:
    assert_unreadable(person.client, person.provider)


def _assert_serves(person: Person) -> None:
    assert_serves(person.client, person.provider, person.api_key)


def test_every_ordered_swap(app: HostApp, vault: Any, fake: FakeProviders) -> None:
    """Moved to any other place, a ciphertext opens nowhere: the list still answers, and no other key steps in."""
    people = _people(app, vault, fake)
    records = vault.read()
    for source, target in permutations(people, 2):
        own = records[target.place]
        vault.write(target.place, {**own, "ciphertext": records[source.place]["ciphertext"]})
        _assert_unreadable(target)
        vault.write(target.place, records[source.place])
        _assert_unreadable(target)
        vault.write(target.place, own)
        _assert_serves(target)
    assert not any("operators" in (call.api_key or "") for call in fake.calls)


def test_between_a_visitor_and_the_user_of_the_same_session(
    app: HostApp, vault: Any, fake: FakeProviders
) -> None:
    """What a visitor saved does not open as the signed-in user's, not even in the same session."""
    client = browser(app)
    client.save(fake.api_key("openai", owner="visitor"))
    client.post("/sign-in/a")
    client.save(fake.api_key("openai", owner="a"))
    (own,) = (place for place in vault.read() if place[1] == "u")
    (waiting,) = (place for place in vault.read() if place[1] == "v")
    record = vault.read()[own]
    vault.write(own, {**record, "ciphertext": vault.read()[waiting]["ciphertext"]})
    assert_unreadable(client, "openai")


ALTERATIONS: dict[str, Callable[[str], str]] = {
    "cut short": lambda text: text[:-1],
    "cut in half": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "longer": lambda text: text + "A",
    "another key id": lambda text: text.replace(text.split(".")[1], "0" * 12),
    "another cipher": lambda text: text.replace(".f.", ".g."),
    "another format": lambda text: text.replace("byok1", "byok2"),
}


def test_altered_ciphertexts(app: HostApp, vault: Any, fake: FakeProviders) -> None:
    """An altered ciphertext shows as unreadable, and can be replaced."""
    person = _people(app, vault, fake)[0]
    for alter in ALTERATIONS.values():
        record = vault.read()[person.place]
        vault.write(person.place, {**record, "ciphertext": alter(record["ciphertext"])})
        _assert_unreadable(person)
        assert person.client.save(person.api_key).status_code == 200
        _assert_serves(person)


def test_every_character_counts(app: HostApp, vault: Any, fake: FakeProviders) -> None:
    """A change of any one character, here of every twentieth, makes it unreadable."""
    person = _people(app, vault, fake)[0]
    record = vault.read()[person.place]
    text = record["ciphertext"]
    for at in range(0, len(text), 20):
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        vault.write(person.place, {**record, "ciphertext": changed})
        _assert_unreadable(person)
    vault.write(person.place, record)
    _assert_serves(person)


def test_a_record_that_is_no_record(app: HostApp, vault: Any, fake: FakeProviders) -> None:
    """Garbage in one row leaves the others as they are."""
    people = _people(app, vault, fake)
    vault.write(people[0].place, {"not": "a record"})
    _assert_unreadable(people[0])
    _assert_serves(people[1])


def test_an_encryption_key_retired_too_early(
    app: HostApp, host: Callable[..., HostApp], vault: Any, fake: FakeProviders
) -> None:
    """Once its encryption key is gone the list answers, and no operator's key replaces what does not open."""
    person = _people(app, vault, fake)[0]
    cookie = person.client.get_cookie("session")
    assert cookie is not None
    successor = {"BYOK_ENCRYPTION_KEY": OTHER_ENCRYPTION_KEY}
    rotating = host(BYOK_ENCRYPTION_KEY_FALLBACKS=[ENCRYPTION_KEY], **successor)
    # Seals accounts anew; sessions are only when they are used.
    assert rotating.test_cli_runner().invoke(byok, ["rotate"]).exit_code == 0
    client = browser(host(**successor))
    client.set_cookie("session", cookie.value)
    assert_unreadable(client, "openai")
