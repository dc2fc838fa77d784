"""Keys that expire, and owners whom the host deletes, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import select

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store import rows
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.model.credential import Use, utcnow
from flask_byok.storage.tables import audit_heads, promotions, usage

from .account_kinds import ANN, BEN, KEYRING, event_of, make_record, promote

DAY = timedelta(days=1)
NOW = utcnow()


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store with keys of two owners that expired or expire in some days, and one that never does."""
    store = open_accounts(database_url, KEYRING)
    for number, days in enumerate((-40, -35, -31, -5, 5, 5, 5, 9)):
        end = NOW + days * DAY
        store.create(make_record(f"user:{number % 2}", f"p{number}", expires_at=end), event_of())
    store.create(make_record(), event_of())
    yield store
    assert store.audit.verify() == []
    store.engine.dispose()


def test_purge(store: AccountStore) -> None:
    """What expired long ago is deleted, in batches, and in the log; what did not, stays."""
    before = NOW - 30 * DAY
    assert store.count_expired(before) == 3
    purged = [store.purge_expired(before, event_of("purge"), limit=2) for _ in range(3)]
    assert purged == [2, 1, 0]
    assert store.count_expired(before) == 0
    left = {record.provider for record in store.page(None)[0]}
    assert left == {"p3", "p4", "p5", "p6", "p7", "openai"}
    actions = [entry.event.action for entry in store.audit.entries("user:0")]
    assert actions.count("purge") == 2


def test_purge_leaves_what_was_prolonged(
    store: AccountStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that got more time after it was found stays."""
    (prolonged,) = (record for record in store.page(None)[0] if record.provider == "p0")
    change = store.audit.change

    def prolong_first(owner: str, work: object) -> int:
        monkeypatch.undo()
        store.change(prolonged.id, None, {"expires_at": NOW + DAY}, event_of("change"))
        return change(owner, work)

    monkeypatch.setattr(store.audit, "change", prolong_first)
    assert store.purge_expired(NOW - 30 * DAY, event_of("purge")) == 2
    assert store.get(prolonged.id, None).provider == "p0"


def test_what_expires_soon(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that expire within some days are found in order, across pages and equal times."""
    monkeypatch.setattr(rows, "BATCH", 2)
    soon = [record.provider for record in store.expiring(NOW, NOW + 9 * DAY)]
    assert soon == ["p4", "p5", "p6", "p7"]
    assert [record.provider for record in store.expiring(NOW, NOW + 5 * DAY)] == soon[:3]
    assert list(store.expiring(NOW, NOW + DAY)) == []
    assert all(record.owner != ANN for record in store.expiring(NOW, NOW + 99 * DAY))


def test_what_no_session_has_any_more_is_forgotten(store: AccountStore) -> None:
    """Which of sessions' records are over is known until it is said to be long ago."""
    store.end(ANN, ["1", "2"], event_of("clear"), make_record())
    assert store.forget_over(NOW - DAY) == 0
    assert store.over(ANN, ["1", "2", "3"]) == {"1", "2"}
    assert store.forget_over(utcnow() + DAY) == 2
    assert store.over(ANN, ["1", "2"]) == set()


@pytest.fixture
def used(database_url: str) -> Iterator[AccountStore]:
    """Make a store where Ann and Ben have keys, which are used and came out of sessions."""
    store = open_accounts(database_url, KEYRING)
    for owner in (ANN, BEN):
        for provider in ("openai", "groq"):
            promoted = make_record(owner, provider)
            promote(store, [promoted], replace=False, event=event_of("promote"))
            (record,) = store.find([owner], [provider])
            store.usage.add(
                Use(owner, provider, record.id, "2026-05-04", "used", 1, 1_777_000_000_000)
            )
    yield store
    assert store.audit.verify() == []
    store.engine.dispose()


def rows_of(store: AccountStore, owner: str) -> list[int]:
    """Count an owner's keys, counts of use, notes of promotion and chains."""
    with store.engine.connect() as connection:
        return [
            len(store.find([owner])),
            *(
                len(connection.execute(select(table).where(table.c.owner == owner)).all())
                for table in (usage, promotions, audit_heads)
            ),
        ]


def test_forget(used: AccountStore) -> None:
    """All that an owner has goes but the log, which has each key's end; others keep theirs."""
    assert rows_of(used, ANN) == rows_of(used, BEN) == [2, 2, 2, 1]
    gone = used.forget(ANN, event_of("clear"))
    assert sorted(record.provider for record in gone) == ["groq", "openai"]
    assert rows_of(used, ANN) == [0, 0, 0, 1]
    assert rows_of(used, BEN) == [2, 2, 2, 1]
    entries = used.audit.entries(ANN)
    assert {entry.provider for entry in entries if entry.event.action == "clear"} == {
        "groq",
        "openai",
    }


def test_forget_again(used: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed half way is finished by doing it again."""
    monkeypatch.setattr(AccountStore, "_execute", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        used.forget(ANN, event_of("clear"))
    monkeypatch.undo()
    assert rows_of(used, ANN) == [0, 2, 2, 1]
    assert used.forget(ANN, event_of("clear")) == []
    assert rows_of(used, ANN) == [0, 0, 0, 1]


def test_forget_nobody(used: AccountStore) -> None:
    """Somebody of whom nothing is kept leaves nothing behind, no chain either."""
    assert used.forget("user:nobody", event_of("clear")) == []
    assert rows_of(used, "user:nobody") == [0, 0, 0, 0]
