"""Sealing again, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text, update

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store import reseal
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.store.reseal import Progress
from flask_byok.model.credential import RecordedVerdict, SealedRecord, Verdict, utcnow
from flask_byok.sealing.keyring import Context, Keyring
from flask_byok.storage.tables import credentials

from .account_kinds import ANN, BEN, KEYRING, event_of, make_record, open_key

VALID = RecordedVerdict(Verdict.VALID, utcnow(), "")
NEW = Keyring("11" * 32, ["00" * 32])
ROTATE = event_of("rotate")


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store on each kind of database, of a worker that has the old encryption key alone."""
    store = open_accounts(database_url, KEYRING)
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


def test_other_cipher_is_due(store: AccountStore) -> None:
    """Another cipher is a reason to seal again although the encryption key is the same."""
    store.create(make_record(), event_of())
    other = Keyring("00" * 32, cipher="aes-256-gcm")
    rotating = open_accounts(store.engine.url, other)
    assert rotating.seals.count_due() == 1
    context = Context("account", ANN, "openai")
    rotating.seals.renew(
        lambda key: other.seal(other.open(key.ciphertext, context), context), ROTATE
    )
    assert rotating.seals.count_due() == 0
    assert open_key(store.find([ANN])[0]) == "sk-1"
    rotating.engine.dispose()


def test_what_changed_meanwhile_stays(store: AccountStore, rotating: AccountStore) -> None:
    """A key that is replaced, deleted or checked after it was read keeps what was done."""
    cleo = [store.create(make_record(owner), event_of()) for owner in (ANN, BEN, "user:cleo")][-1]

    def seal_late(key: SealedRecord) -> str | None:
        if key.owner == cleo.owner:
            assert store.record_verdict(cleo.id, cleo.version, VALID)
        if key.owner == ANN:
            store.put(make_record(ANN, api_key="newer"), event_of())
        if key.owner == BEN:
            store.clear(BEN, ["openai"], event_of("clear"))
        return seal(key)

    batch = rotating.seals.renew(seal_late, ROTATE)
    assert (batch.done, batch.missed) == (1, 2)
    assert open_key(store.find([ANN])[0]) == "newer"
    assert store.find([BEN]) == []
    (found,) = store.find([cleo.owner])
    assert (open_key(found, NEW), found.version) == ("sk-1", cleo.version)
    assert found.current_validity() is not None
    assert rotating.seals.count_due() == 1


def test_sealing_holds_nothing(postgres_url: str) -> None:
    """While keys are being sealed, nothing in the database is held."""
    store, rotating = open_accounts(postgres_url, KEYRING), open_accounts(postgres_url, NEW)
    store.create(make_record(), event_of())
    held = text("SELECT count(*) FROM pg_locks WHERE mode LIKE 'Row%'")

    def seal_watched(key: SealedRecord) -> str | None:
        with store.engine.connect() as connection:
            assert connection.execute(held).scalar() == 0
        return seal(key)

    assert rotating.seals.renew(seal_watched, ROTATE).done == 1
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
        held = list(store.seals.rotate(NEW.renewed, ROTATE))
        assert held[-1] == Progress(total=2, done=1, held=1)
        going_on = store.seals.rotate(NEW.renewed, ROTATE)
        assert next(going_on) == Progress(total=1, held=1)
        other.commit()
        assert list(going_on)[-1] == Progress(total=1, done=1)
    assert store.seals.count_due() == 0
    engine.dispose()
    store.engine.dispose()
