"""Keys that expire, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.model.credential import utcnow

from .account_kinds import ANN, KEYRING, event_of, make_record

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


def test_what_expires_soon(store: AccountStore) -> None:
    """Keys that expire within some days are found in order, across pages and equal times."""
    soon = [record.provider for record in store.expiring(NOW, NOW + 9 * DAY, batch=2)]
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
