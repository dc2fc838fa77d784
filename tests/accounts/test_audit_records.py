"""The audit log and what a key's record says: whoever changes that past the log is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store.audit_verify import Finding
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.errors import KeyNotFoundError
from flask_byok.keys.ports import AuditEvent
from flask_byok.model.credential import RecordedVerdict, Use, Verdict, utcnow
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.tables import audit, credentials

from .account_kinds import (
    ANN,
    BEN,
    KEYRING,
    SYSTEM,
    TEAM,
    event_of,
    fingerprint_of,
    make_record,
    promote,
)

NEW = Keyring("11" * 32, ["00" * 32])
LATER = 4_000_000_000_000
#: What somebody may want a key's record to be.
FORGED: list[dict[str, Any]] = [
    {"active": False},
    {"expires_at": 1000},
    {"expires_at": LATER},
    {"provider": "xai"},
    {"tier": "team"},
    {"slot": "other"},
    {"label": "pay here"},
    {"description": "pay here"},
    {"hint": "sk-…9999"},
    {"created_at": LATER},
    {"updated_at": LATER},
    {"set_at": LATER},
    {"set_at": None},
    {"id": "0" * 32},
]


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store with a key of Ann's, which was changed, and one of Ben's."""
    store = open_accounts(database_url, KEYRING)
    record = store.create(make_record(label="mine"), event_of(fingerprint=fingerprint_of(store)))
    store.change(record.id, [ANN], {"description": "for work"}, event_of("change"))
    store.create(make_record(BEN), AuditEvent(BEN, "set"))
    yield store
    store.engine.dispose()


def tamper(store: AccountStore, statement: Any) -> None:
    """Change the database past the store."""
    with store.engine.begin() as connection:
        connection.execute(statement)


def forge(store: AccountStore, owner: str = ANN, **columns: Any) -> None:
    """Change an owner's record past the store."""
    tamper(store, update(credentials).where(credentials.c.owner == owner).values(**columns))


def row_of(store: AccountStore, owner: str = ANN) -> Any:
    """Return the row of an owner's only key."""
    with store.engine.connect() as connection:
        return connection.execute(select(credentials).where(credentials.c.owner == owner)).one()


def problem_of(store: AccountStore) -> str:
    """Return the one problem that there is, which is Ann's."""
    (finding,) = store.audit.verify()
    assert finding.owner == ANN
    return finding.problem


@pytest.mark.parametrize("columns", FORGED, ids=str)
def test_forged_record_shows(store: AccountStore, columns: dict[str, Any]) -> None:
    """Whatever somebody makes of a record past the log is found, and no longer when it is undone."""
    before = row_of(store)
    forge(store, **columns)
    findings = store.audit.verify()
    assert findings
    assert {finding.owner for finding in findings} == {ANN}
    forge(store, **{name: getattr(before, name) for name in columns})
    assert store.audit.verify() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda store, id: store.change(id, [ANN], {"label": "new"}, event_of("change")),
        lambda store, id: store.put(make_record(label="new"), event_of()),
        lambda store, id: store.delete(id, [ANN], event_of("clear")),
        lambda store, id: store.clear(ANN, ["openai"], event_of("clear")),
        lambda store, id: store.purge_expired(utcnow(), event_of("purge")),
        lambda store, id: promote(
            store, [make_record(label="new")], replace=True, event=event_of("promote")
        ),
    ],
)
def test_no_change_hides_a_forged_record(
    store: AccountStore, change: Callable[[AccountStore, str], object]
) -> None:
    """A record that was made expired past the log is found also when it is changed or deleted since."""
    forge(store, expires_at=1000)
    (record,) = store.find([ANN])
    change(store, record.id)
    (finding,) = store.audit.verify()
    problem = f"the key {record.id} had been changed before it, and no row says so"
    assert finding == Finding(ANN, 3, problem)


def test_what_changes_without_an_event(store: AccountStore) -> None:
    """A verdict, a use and sealing anew, which is in the chain of the system, are no findings."""
    (record,) = store.find([ANN])
    found = RecordedVerdict(Verdict.INVALID, utcnow(), record.version)
    assert store.record_verdict(record.id, record.version, found)
    day = utcnow().date().isoformat()
    used = Use(ANN, "openai", record.id, day, "used", uses=3, last_used_at=LATER)
    store.usage.add(used)
    rotating = open_accounts(store.engine.url, NEW)
    assert list(rotating.seals.rotate(NEW.renewed, AuditEvent("cli", "rotate")))[-1].done == 2
    for keyring in (NEW, Keyring("11" * 32)):
        assert open_accounts(store.engine.url, keyring).audit.verify() == []
    rotating.change(record.id, [ANN], {"label": "after it"}, event_of("change"))
    assert rotating.audit.verify() == []


def test_other_ciphertext_shows(store: AccountStore) -> None:
    """A key that was replaced and is put back past the log is found, whatever else changes since."""
    old = row_of(store)
    (record,) = store.find([ANN])
    fresh = event_of(fingerprint=fingerprint_of(store, "sk-2"))
    store.put(make_record(api_key="sk-2"), fresh)
    assert store.audit.verify() == []
    forge(store, ciphertext=old.ciphertext)
    problem = f"the key {record.id} holds another secret than its rows say"
    assert problem_of(store) == problem
    store.change(record.id, [ANN], {"label": "new"}, event_of("change"))
    assert problem_of(store) == problem
    store.put(make_record(api_key="sk-2"), fresh)
    assert store.audit.verify() == []


def test_ciphertext_of_another_shows(store: AccountStore) -> None:
    """A ciphertext that does not open in its place is found."""
    forge(store, ciphertext=row_of(store, BEN).ciphertext)
    assert problem_of(store).endswith("does not open")


def test_stripped_rows_show(store: AccountStore) -> None:
    """Nobody can take out of rows what they say of records, or make old rows say something."""
    for values in ({"was": None}, {"became": None}, {"was": "0" * 64}, {"became": "0" * 64}):
        before = rows_of(store)
        tamper(store, update(audit).where(audit.c.owner == ANN).values(values))
        problems = {(finding.number, finding.problem) for finding in store.audit.verify()}
        assert (2, "it was changed") in problems
        for row in before:
            same = (audit.c.owner == ANN, audit.c.number == row.number)
            tamper(store, update(audit).where(*same).values(row._asdict()))
        assert store.audit.verify() == []


def rows_of(store: AccountStore) -> list[Any]:
    """Return Ann's rows of the log."""
    with store.engine.connect() as connection:
        query = select(audit).where(audit.c.owner == ANN).order_by(audit.c.number)
        return list(connection.execute(query))


def test_shared_keys_of_another_tier(store: AccountStore) -> None:
    """Whatever its column says, admins of teams and of the system neither see nor reach a person's key."""
    kept = [store.create(make_record(owner), event_of()).id for owner in (TEAM, SYSTEM)]
    (mine,) = store.find([ANN])
    for tier in ("team", "system"):
        forge(store, tier=tier)
        assert [record.id for record in store.page(["system", "team"])[0]] == kept
        assert [record.id for record in store.page([tier])[0]] == [kept[tier == "system"]]
        assert store.usage.stats([tier])["total"] == 1
        with pytest.raises(KeyNotFoundError):
            store.get(mine.id, ["system", "team"])
        assert "is not what its last row says" in problem_of(store)


def test_fingerprints_are_keyed(sqlite_url: str) -> None:
    """One key has one fingerprint in one log and another in another, so nobody can guess keys by it."""
    first, second = open_accounts(sqlite_url, KEYRING), open_accounts(sqlite_url, KEYRING)
    assert fingerprint_of(first) == fingerprint_of(second) != fingerprint_of(first, "sk-2")
    assert fingerprint_of(open_accounts("sqlite://", KEYRING)) != fingerprint_of(first)
    first.engine.dispose()
    second.engine.dispose()


def test_when_a_key_was_saved(store: AccountStore) -> None:
    """A record says when its key was saved, and a change of what is beside the key leaves that alone."""
    (record,) = store.find([ANN])
    assert record.saved_at == record.created_at
    moved = make_record(api_key="sk-2", set_at=record.created_at - timedelta(days=3))
    assert store.put(moved, event_of()).saved_at == moved.saved_at
    changed = store.change(record.id, [ANN], {"label": "new"}, event_of("change"))
    assert changed.saved_at == moved.saved_at
    sealed = {"ciphertext": make_record(api_key="sk-3").ciphertext, "hint": "sk-…"}
    assert store.change(record.id, [ANN], sealed, event_of()).saved_at > record.created_at
