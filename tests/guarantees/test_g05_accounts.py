"""G5 for accounts: a ciphertext that was moved to another owner, provider, slot or scope does not open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask_login import current_user
from sqlalchemy import Engine, create_engine, select, update

from flask_byok.storage.tables import credentials, session_documents
from flask_byok.testing import FakeProviders
from tests.app import KEYS, OTHER_ENCRYPTION_KEY, HostApp, make_app
from tests.documents import change_records, records
from tests.keeper import OWN, SHARED, Keeper, close, keeper

from .test_g05_bound_ciphertext import ALTERATIONS, assert_serves, assert_unreadable


class Vault:
    """The sealed keys of accounts by id, as somebody with access to the database sees them."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = create_engine(url)

    def read(self) -> dict[str, str]:
        with self._engine.connect() as connection:
            found = connection.execute(select(credentials.c.id, credentials.c.ciphertext))
            return {row.id: row.ciphertext for row in found}

    def write(self, id: str, ciphertext: str) -> None:
        change = update(credentials).where(credentials.c.id == id).values(ciphertext=ciphertext)
        with self._engine.begin() as connection:
            assert connection.execute(change).rowcount == 1

    def of_a_session(self) -> str:
        """Return the one ciphertext that is kept for a session."""
        with self._engine.connect() as connection:
            body = connection.execute(select(session_documents.c.body)).scalar_one()
        (record,) = records("", body).values()
        found: str = json.loads(record)["ciphertext"]
        return found

    def give_the_session(self, ciphertext: str) -> None:
        """Put a ciphertext in the place of that one."""
        change_records(self._engine, lambda record: {**record, "ciphertext": ciphertext})

    def close(self) -> None:
        self._engine.dispose()


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def url(request: pytest.FixtureRequest) -> str:
    """Name an empty database, of each kind in turn."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture
def vault(url: str) -> Iterator[Vault]:
    """Open the place where accounts are kept."""
    opened = Vault(url)
    yield opened
    opened.close()


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders, url: str, operators_keys: None) -> Iterator[HostApp]:
    """Make a host on that database, whose operator has keys that could step in."""
    app = make_host(tmp_path, fake, url)
    yield app
    close(app)


def make_host(directory: Path, fake: FakeProviders, url: str, **config: Any) -> HostApp:
    """Make a host with an admin, and with teams that are called as their only member."""
    options = {"BYOK_VALIDATE_ON_SET": "off", "BYOK_KEYS_PER_PROVIDER": 2, **config}
    app = make_app(directory, fake, BYOK_DATABASE_URL=url, **options)
    app.byok.admin_loader(lambda: current_user.get_id() == "root")
    app.byok.team_loader(lambda: [current_user.get_id()])
    return app


class Kept(NamedTuple):
    """A key in the database, and somebody whom it serves or who manages it."""

    id: str
    provider: str
    slot: str
    api_key: str
    tier: str
    client: Keeper
    admin: Keeper

    @property
    def serves(self) -> bool:
        """Say whether it is the first of its slots, which is the one in use."""
        return self.slot == ""

    def state(self) -> str:
        """Return what the list of records says of it, which has to answer."""
        records = self.client.records() if self.tier == "user" else self.admin.records(SHARED)
        return str(next(record for record in records if record["id"] == self.id)["state"])


def keep_all(app: HostApp, fake: FakeProviders) -> list[Kept]:
    """Keep keys of two users, in two slots, for two providers, of two teams and of the system."""
    admin = keeper(app, "root")
    made: list[Kept] = []

    def keep(owner: str, user: str, provider: str = "openai", slot: str = "") -> None:
        tier = owner.partition(":")[0]
        client = keeper(app, user)
        api_key = fake.api_key(provider, owner=f"{owner}-{slot}")
        if tier == "user":
            record = client.keep(api_key, provider, slot=slot)
        else:
            record = admin.keep(api_key, provider, path=SHARED, owner=owner, slot=slot)
        made.append(Kept(record["id"], provider, slot, api_key, tier, client, admin))

    keep("user:ann", "ann")
    keep("user:ann", "ann", slot="2")
    keep("user:ann", "ann", "groq")
    keep("user:ben", "ben")
    keep("team:red", "red")
    keep("team:blue", "blue")
    keep("system", "nobody")
    return made


def assert_opens_not(kept: Kept) -> None:
    """See that it is listed, as unreadable, and that no other key steps in."""
    assert kept.state() == "unreadable"
    assert kept.client.get(KEYS).status_code == 200
    if kept.serves:
        assert_unreadable(kept.client, kept.provider, kept.tier)


def assert_opens(kept: Kept) -> None:
    """See that it is whole, and in use where it should be."""
    assert kept.state() == "active"
    if kept.serves:
        assert_serves(kept.client, kept.provider, kept.api_key, kept.tier)


def test_every_ordered_swap(app: HostApp, vault: Vault, fake: FakeProviders) -> None:
    """Moved to any other owner, provider or slot, a ciphertext opens nowhere, and nobody else's key steps in."""
    made = keep_all(app, fake)
    sealed = vault.read()
    for source, target in permutations(made, 2):
        vault.write(target.id, sealed[source.id])
        assert_opens_not(target)
        vault.write(target.id, sealed[target.id])
    for kept in made:
        assert_opens(kept)
    assert not any("operators" in (call.api_key or "") for call in fake.calls)


def test_between_a_session_and_an_account(app: HostApp, vault: Vault, fake: FakeProviders) -> None:
    """What a user keeps for the session does not open in the same user's account, nor the other way round."""
    client = keeper(app, "ann")
    own = client.keep(fake.api_key("openai", owner="account"), "openai")
    assert client.save(fake.api_key("openai", owner="session")).status_code == 200
    of_session, of_account = vault.of_a_session(), vault.read()[own["id"]]
    vault.give_the_session(of_account)
    vault.write(own["id"], of_session)
    assert_unreadable(client, "openai")
    assert [record["state"] for record in client.records()] == ["unreadable"]
    vault.give_the_session(of_session)
    vault.write(own["id"], of_account)
    assert client.get("/used/openai").get_json()["source"] == "session"
    assert [record["state"] for record in client.records()] == ["active"]


def test_altered_ciphertexts(app: HostApp, vault: Vault, fake: FakeProviders) -> None:
    """An altered ciphertext is listed as unreadable, and can be replaced and deleted."""
    client, api_key = keeper(app, "ann"), fake.api_key("openai", owner="ann")
    id = client.keep(api_key)["id"]
    kept = Kept(id, "openai", "", api_key, "user", client, client)
    for alter in ALTERATIONS.values():
        vault.write(id, alter(vault.read()[id]))
        assert_opens_not(kept)
        assert client.ask("PATCH", f"{OWN}/{id}", {"api_key": api_key}).status_code == 200
        assert_opens(kept)
    vault.write(id, "")
    assert client.ask("DELETE", f"{OWN}/{id}").status_code == 204


def test_an_encryption_key_that_is_gone(
    app: HostApp, fake: FakeProviders, tmp_path: Path, url: str
) -> None:
    """Without its encryption key every key is listed as unreadable, and none of the operator's replaces it."""
    keeper(app, "ann").keep(fake.api_key("openai"))
    # Elsewhere it would not even start.
    other = make_host(tmp_path, fake, url, TESTING=True, BYOK_ENCRYPTION_KEY=OTHER_ENCRYPTION_KEY)
    client = keeper(other, "ann")
    assert [record["state"] for record in client.records()] == ["unreadable"]
    assert_unreadable(client, "openai", "user")
    close(other)
