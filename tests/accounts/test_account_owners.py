"""An owner whom the host deletes, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.model.credential import Use
from flask_byok.storage.tables import audit_heads, promotions, usage

from .account_kinds import ANN, BEN, KEYRING, event_of, make_record, promote


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
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


def test_forget(store: AccountStore) -> None:
    """All that an owner has goes but the log, which has each key's end; others keep theirs."""
    assert rows_of(store, ANN) == rows_of(store, BEN) == [2, 2, 2, 1]
    gone = store.forget(ANN, event_of("clear"))
    assert sorted(record.provider for record in gone) == ["groq", "openai"]
    assert rows_of(store, ANN) == [0, 0, 0, 1]
    assert rows_of(store, BEN) == [2, 2, 2, 1]
    entries = store.audit.entries(ANN)
    assert {entry.provider for entry in entries if entry.event.action == "clear"} == {
        "groq",
        "openai",
    }


def test_forget_again(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed half way is finished by doing it again."""
    monkeypatch.setattr(AccountStore, "_execute", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.forget(ANN, event_of("clear"))
    monkeypatch.undo()
    assert rows_of(store, ANN) == [0, 2, 2, 1]
    assert store.forget(ANN, event_of("clear")) == []
    assert rows_of(store, ANN) == [0, 0, 0, 1]


def test_forget_nobody(store: AccountStore) -> None:
    """Somebody of whom nothing is kept leaves nothing behind, no chain either."""
    assert store.forget("user:nobody", event_of("clear")) == []
    assert rows_of(store, "user:nobody") == [0, 0, 0, 0]
