"""Sealing again, on SQLite, PostgreSQL and a database that we do not know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text, update

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store import reseal
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.store.reseal import Progress, Seal
from flask_byok.model.credential import RecordedVerdict, SealedRecord, Verdict, utcnow
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.tables import credentials

from .account_kinds import ANN, BEN, KEYRING, SYSTEM, event_of, make_record, open_key

VALID = RecordedVerdict(Verdict.VALID, utcnow(), "")
NEW = Keyring("11" * 32, ["00" * 32])
OLD_ID, NEW_ID = KEYRING.key_ids[0], NEW.key_ids[0]
ROTATE = event_of("rotate")


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def store(request: pytest.FixtureRequest) -> Iterator[AccountStore]:
    """Make a store on each kind of database, of a worker that has the old encryption key alone."""
    store = open_accounts(request.getfixturevalue(request.param), KEYRING)
    yield store
    knows_all = open_accounts(store.engine.url, Keyring("11" * 32, ["00" * 32, "22" * 32]))
    assert knows_all.audit.verify() == []
    knows_all.engine.dispose()
    store.engine.dispose()


@pytest.fixture
def rotating(store: AccountStore) -> Iterator[AccountStore]:
    """Make a store of a worker with the new encryption key on the same database."""
    rotating = open_accounts(store.engine.url, NEW)
    yield rotating
    rotating.engine.dispose()


seal = NEW.renewed


def rotate(store: AccountStore, seal: Seal = seal) -> Iterator[Progress]:
    """Seal again what is due."""
    return store.seals.rotate(seal, ROTATE)


def test_key_ids_are_counted(store: AccountStore) -> None:
    """It can be told how much each encryption key has sealed, the audit log's secret included."""
    store.create(make_record(), event_of())
    store.create(make_record(provider="groq", keyring=NEW), event_of())
    store.create(make_record(BEN), event_of())
    assert store.seals.count_by_key_id() == {OLD_ID: 3, NEW_ID: 1}


def test_batches(
    store: AccountStore, rotating: AccountStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches seal everything again, keep version and verdict, and leave what does not open."""
    monkeypatch.setattr(reseal, "_BATCH", 3)
    for number in range(7):
        store.create(make_record(f"user:{number}", validity=VALID), event_of())
    store.create(make_record(keyring=Keyring("22" * 32)), event_of())
    done = [(each.total, each.done, each.unreadable) for each in rotate(rotating)]
    assert done == [(8, 3, 0), (8, 6, 0), (8, 7, 1)]
    assert list(rotate(rotating)) == [Progress(total=1, unreadable=1)]
    found = [record for record in store.page(None)[0] if record.owner != ANN]
    assert {(open_key(record, NEW), record.version) for record in found} == {("sk-1", "1")}
    assert all(record.current_validity() for record in found)
    assert rotating.seals.count_by_key_id()[NEW_ID] == 8
    assert [entry.event.action for entry in store.audit.entries(SYSTEM)] == ["rotate"] * 3


def test_other_cipher_is_due(store: AccountStore) -> None:
    """Another cipher is a reason to seal again although the encryption key is the same."""
    store.create(make_record(), event_of())
    other = Keyring("00" * 32, cipher="aes-256-gcm")
    rotating = open_accounts(store.engine.url, other)
    assert rotating.seals.count_due() == 1
    assert next(rotate(rotating, other.renewed)).done == 1
    assert rotating.seals.count_due() == 0
    assert open_key(store.find([ANN])[0]) == "sk-1"
    rotating.engine.dispose()


def test_what_changed_meanwhile_stays(store: AccountStore, rotating: AccountStore) -> None:
    """A key that is replaced or deleted after it was read keeps what its owner did."""
    for owner in (ANN, BEN, "user:cleo"):
        store.create(make_record(owner), event_of())

    def seal_late(key: SealedRecord) -> str | None:
        if key.owner == ANN:
            store.put(make_record(ANN, api_key="newer"), event_of())
        if key.owner == BEN:
            store.clear(BEN, ["openai"], event_of("clear"))
        return seal(key)

    assert next(rotate(rotating, seal_late)) == Progress(total=3, done=1, held=2)
    assert open_key(store.find([ANN])[0]) == "newer"
    assert store.find([BEN]) == []
    assert rotating.seals.count_due() == 1


def test_verdict_meanwhile_stays(store: AccountStore, rotating: AccountStore) -> None:
    """A verdict that comes while its key is being sealed again is kept."""
    record = store.create(make_record(), event_of())

    def seal_late(key: SealedRecord) -> str | None:
        assert store.record_verdict(record.id, record.version, VALID)
        return seal(key)

    assert next(rotate(rotating, seal_late)).done == 1
    assert store.find([ANN])[0].current_validity() is not None


def test_held_rows_are_left(postgres_url: str) -> None:
    """A row that another transaction holds is not waited for."""
    store, rotating = open_accounts(postgres_url, KEYRING), open_accounts(postgres_url, NEW)
    for owner in (ANN, BEN):
        store.create(make_record(owner), event_of())
    with (
        store.engine.connect().execution_options(isolation_level="READ COMMITTED") as other,
        other.begin(),
    ):
        other.execute(update(credentials).where(credentials.c.owner == ANN).values(label="x"))
        assert next(rotate(rotating)) == Progress(total=2, done=1, held=1)
    assert next(rotate(rotating)).done == 1
    assert [record.label for record in store.find([ANN])] == ["x"]
    store.engine.dispose()
    rotating.engine.dispose()


def test_nobody_is_kept_waiting(postgres_url: str) -> None:
    """While keys are being sealed, nothing in the database is held."""
    store, rotating = open_accounts(postgres_url, KEYRING), open_accounts(postgres_url, NEW)
    store.create(make_record(), event_of())
    held = text("SELECT count(*) FROM pg_locks WHERE mode LIKE 'Row%'")

    def seal_watched(key: SealedRecord) -> str | None:
        with store.engine.connect() as connection:
            assert connection.execute(held).scalar() == 0
        return seal(key)

    assert next(rotate(rotating, seal_watched)).done == 1
    store.engine.dispose()
    rotating.engine.dispose()


def test_held_keys_are_taken_up_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that another transaction is changing is sealed once that ends, and left over if it never does."""
    monkeypatch.setattr(reseal, "_ROUNDS", 3)
    monkeypatch.setattr(reseal, "_PAUSE", 0.01)
    store = open_accounts(postgres_url, NEW)
    for owner in (ANN, BEN):
        store.create(make_record(owner), event_of())
    engine = create_engine(postgres_url)
    with engine.begin() as other:
        other.execute(update(credentials).where(credentials.c.owner == ANN).values(label="x"))
        held = list(rotate(store))
        assert held[-1] == Progress(total=2, done=1, held=1)
        going_on = rotate(store)
        assert next(going_on) == Progress(total=1, held=1)
        other.commit()
        assert list(going_on)[-1] == Progress(total=1, done=1)
    assert store.seals.count_due() == 0
    engine.dispose()
    store.engine.dispose()
