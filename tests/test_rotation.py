"""Rotation, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from sqlalchemy import create_engine, update

from flask_byok.accounts import open_accounts, rotation
from flask_byok.accounts.rotation import Progress, rotate
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.errors import ConfigurationError
from flask_byok.keys.ports import AuditEvent
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.tables import credentials
from tests.accounts.account_kinds import ANN, BEN, KEYRING, event_of, make_record, open_key

NEW = Keyring("11" * 32, ["00" * 32])
OLD_ID, NEW_ID = KEYRING.key_ids[0], NEW.key_ids[0]
EVENT = AuditEvent("cli", "rotate")


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def url(request: pytest.FixtureRequest) -> str:
    """Name a database with five keys that the old encryption key sealed."""
    address: str = request.getfixturevalue(request.param)
    store = open_accounts(address, KEYRING)
    for number in range(5):
        store.create(make_record(f"user:{number}"), event_of())
    store.engine.dispose()
    return address


@pytest.fixture
def store(url: str) -> Iterator[AccountStore]:
    """Make a store with the new encryption key."""
    store = open_accounts(url, NEW)
    yield store
    store.engine.dispose()


def test_everything_is_sealed_anew(url: str, store: AccountStore) -> None:
    """Afterwards the old encryption key opens nothing that is stored, and is needed for nothing."""
    assert list(rotate(store, NEW, EVENT)) == [Progress(total=5, done=5)]
    assert store.seals.count_by_key_id() == {NEW_ID: 6}
    retired = open_accounts(url, Keyring("11" * 32))
    assert {open_key(record, Keyring("11" * 32)) for record in retired.page(None)[0]} == {"sk-1"}
    retired.put(make_record(BEN), event_of())
    assert retired.audit.verify() == []
    retired.engine.dispose()


def test_nothing_to_do(store: AccountStore) -> None:
    """Where all is done nothing is written, into the log neither."""
    list(rotate(store, NEW, EVENT))
    entries = store.audit.count()
    assert list(rotate(store, NEW, EVENT)) == [Progress(total=0)]
    assert store.audit.count() == entries


def test_broken_off(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done before it was broken off stays done, and the next one does the rest."""
    in_batches_of(2, store, monkeypatch)
    assert list(islice(rotate(store, NEW, EVENT), 1)) == [Progress(total=5, done=2)]
    assert store.seals.count_by_key_id() == {NEW_ID: 2, OLD_ID: 4}
    assert [p.done for p in rotate(store, NEW, EVENT)] == [2, 3]
    assert store.seals.count_due() == 0


def test_unreadable(store: AccountStore) -> None:
    """A key that does not open is counted and left as it is, at each rotation."""
    store.create(make_record(keyring=Keyring("22" * 32)), event_of())
    before = store.find([ANN])
    for done in (5, 0):
        *_, last = rotate(store, NEW, EVENT)
        assert (last.done, last.unreadable) == (done, 1)
    assert store.find([ANN]) == before


def test_wrong_encryption_key(url: str) -> None:
    """With a wrong encryption key nothing is tried."""
    wrong = Keyring("22" * 32)
    store = open_accounts(url, wrong)
    with pytest.raises(ConfigurationError, match="BYOK_ENCRYPTION_KEY_FALLBACKS"):
        next(rotate(store, wrong, EVENT))
    store.engine.dispose()


def test_held_keys_are_taken_up_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody is changing is done once they have, and given up if they never have."""
    monkeypatch.setattr(rotation, "_ROUNDS", 3)
    monkeypatch.setattr(rotation, "_PAUSE", 0.01)
    store = open_accounts(postgres_url, NEW)
    for owner in (ANN, BEN):
        store.create(make_record(owner), event_of())
    engine = create_engine(postgres_url)
    with engine.begin() as other:
        other.execute(update(credentials).where(credentials.c.owner == ANN).values(label="x"))
        held = list(rotate(store, NEW, EVENT))
        assert held[-1] == Progress(total=2, done=1, held=1)
        going_on = rotate(store, NEW, EVENT)
        assert next(going_on) == Progress(total=1, held=1)
        other.commit()
        assert list(going_on)[-1] == Progress(total=1, done=1)
    assert store.seals.count_due() == 0
    engine.dispose()
    store.engine.dispose()


def in_batches_of(limit: int, store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make batches small."""
    renew = store.seals.renew
    small = {"limit": limit}
    monkeypatch.setattr(store.seals, "renew", lambda *a, **options: renew(*a, **options | small))
