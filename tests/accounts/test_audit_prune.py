"""Old rows of the audit log are deleted, and the rest is whole; nobody else can delete any unseen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, select, update
from sqlalchemy.exc import ProgrammingError

from flask_byok.accounts.store import AuditEvent, Head, audit_prune
from flask_byok.accounts.store import audit as audit_module
from flask_byok.accounts.store.audit_prune import Pruning, count_prunable, prune
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.wing import open_accounts
from flask_byok.errors import StoreError
from flask_byok.model.credential import utcnow
from flask_byok.storage.tables import audit, audit_heads, credentials

from .account_kinds import ANN, BEN, KEYRING, event_of, fingerprint_of, make_record, tamper

PRUNE = AuditEvent("cli", "prune")
DAY = timedelta(days=1)
OF_ANN = audit.c.owner == ANN
HEAD_OF_ANN = update(audit_heads).where(audit_heads.c.owner == ANN)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the log's clock to so many days ago."""

    def set_to(days_ago: int) -> None:
        monkeypatch.setattr(audit_module, "utcnow", lambda: utcnow() - days_ago * DAY)

    return set_to


@pytest.fixture
def store(database_url: str, clock: Callable[[int], None]) -> Iterator[AccountStore]:
    """Make a store with six old rows of Ann's about two keys, one of Ben's, and a new one of each of them."""
    store = open_accounts(database_url, KEYRING)
    clock(100)
    key = store.put(make_record(), event_of(fingerprint=fingerprint_of(store)))
    store.put(make_record(provider="groq"), event_of())
    store.put(make_record(provider="xai"), event_of())
    store.clear(ANN, ["xai"], event_of("clear"))
    store.audit.note(ANN, event_of("reveal"), key)
    store.change(key.id, [ANN], {"label": "old"}, event_of("change"))
    store.put(make_record(BEN), AuditEvent(BEN, "set"))
    clock(0)
    store.change(key.id, [ANN], {"label": "new"}, event_of("change"))
    store.audit.note(BEN, AuditEvent(BEN, "reveal"))
    yield store
    store.engine.dispose()


def prune_all(store: AccountStore, before: datetime | None = None) -> Pruning:
    """Delete what is older than a time, a month ago by default, and return what came of it."""
    steps = list(prune(store.audit, before or utcnow() - 30 * DAY, PRUNE))
    return steps[-1] if steps else Pruning()


def rows_of(store: AccountStore, owner: str = ANN) -> list[tuple[int, str]]:
    """Return number and action of an owner's rows, oldest first."""
    entries = store.audit.entries(owner, limit=1000)
    return sorted((entry.number, entry.action) for entry in entries)


@pytest.mark.parametrize("batch", [1, 2, 500])
def test_old_rows_go(store: AccountStore, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Old rows go, whatever the batches; new ones say again what the keys are, and the log is whole."""
    monkeypatch.setattr(audit_prune, "_BATCH", batch)
    assert count_prunable(store.audit, utcnow() - 30 * DAY) == 7
    assert prune_all(store) == Pruning(done=7)
    assert count_prunable(store.audit, utcnow() - 30 * DAY) == 0
    assert rows_of(store)[0] == (7, "change")
    assert {action for _, action in rows_of(store)[1:]} == {"prune"}
    assert rows_of(store, BEN) == [(2, "reveal"), (3, "prune"), (4, "prune")]
    assert rows_of(store, "system") == [(1, "prune")]
    assert store.audit.verify() == []
    for owner in (ANN, BEN):
        for record in store.find([owner]):
            store.put(make_record(owner, record.provider, api_key="sk-2"), event_of())
    store.clear(ANN, ["openai", "groq"], event_of("clear"))
    assert store.audit.verify() == []


def test_time_to_come(store: AccountStore) -> None:
    """With a time that is yet to come all goes but the last row of each chain, and the next run changes nothing."""
    prune_all(store, utcnow() + 365 * DAY)
    left = rows_of(store)
    assert [action for _, action in left] == ["change", *["prune"] * (len(left) - 1)]
    prune_all(store, utcnow() + 365 * DAY)
    assert rows_of(store) == left
    assert store.audit.verify() == []


def test_chain_without_keys(store: AccountStore, clock: Callable[[int], None]) -> None:
    """Of an owner without keys the last row stays, however old, and beside it the one about the pruning."""
    clock(90)
    store.put(make_record("user:cat"), event_of())
    store.clear("user:cat", ["openai"], event_of("clear"))
    clock(0)
    prune_all(store)
    assert rows_of(store, "user:cat") == [(2, "clear"), (3, "prune")]
    store.put(make_record("user:cat"), event_of())
    assert store.audit.verify() == []


@pytest.mark.parametrize("then", ["change", "clear"])
def test_deleted_key_brought_back(store: AccountStore, then: str) -> None:
    """A deleted key that a writer of the database brings back after a pruning shows, whatever the app does next."""
    key = store.put(make_record(provider="xai"), event_of())
    with store.engine.connect() as connection:
        query = select(credentials).where(credentials.c.id == key.id)
        row = dict(connection.execute(query).mappings().one())
    store.clear(ANN, ["xai"], event_of("clear"))
    prune_all(store, utcnow() + DAY)
    tamper(store, insert(credentials).values(row))
    assert store.audit.verify() != []
    if then == "change":
        store.change(key.id, [ANN], {"label": "new"}, event_of("change"))
    else:
        store.clear(ANN, ["xai"], event_of("clear"))
    (finding,) = store.audit.verify()
    assert "no row says so" in finding.problem
    assert prune_all(store, utcnow() + DAY).broken == [ANN]
    assert store.audit.verify() == [finding]


def test_pruning_hides_no_change(store: AccountStore) -> None:
    """A chain with a later row about a key that no row explains is left as it is."""
    with store.engine.connect() as connection:
        query = select(credentials).where(credentials.c.owner == ANN).limit(1)
        row = dict(connection.execute(query).mappings().one())
    forged = row | {"id": "f" * 32, "slot": "forged"}
    tamper(store, insert(credentials).values(forged))
    store.change("f" * 32, [ANN], {"label": "new"}, event_of("change"))
    findings = store.audit.verify()
    assert prune_all(store).broken == [ANN]
    assert store.audit.verify() == findings != []


@pytest.mark.parametrize("statement", ["INSERT INTO byok_audit ", "DELETE", "UPDATE"])
def test_all_or_nothing(store: AccountStore, statement: str) -> None:
    """A batch whose rows, checkpoint or new rows cannot be written has changed nothing."""
    # The first ones are the note in the chain of the system.
    seen = count(1 if statement == "DELETE" else 0)

    def fail(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith(statement) and next(seen):
            raise ProgrammingError(sql, None, ValueError("no such table"))

    before = rows_of(store)
    event.listen(store.engine, "before_cursor_execute", fail)
    with pytest.raises(StoreError):
        prune_all(store)
    event.remove(store.engine, "before_cursor_execute", fail)
    assert rows_of(store) == before
    assert store.audit.verify() == []


# what it does not hide


@pytest.mark.parametrize(
    "changed", [{"label": "pay here"}, {"active": False}, {"version": 9}, {"ciphertext": "x"}]
)
@pytest.mark.parametrize("provider", ["openai", "groq"])
def test_forged_record_shows_afterwards(
    store: AccountStore, provider: str, changed: dict[str, Any]
) -> None:
    """A key that was changed past the log shows as well after the old rows about it are gone."""
    of_key = (credentials.c.owner == ANN, credentials.c.provider == provider)
    tamper(store, update(credentials).where(*of_key).values(changed))
    before = store.audit.verify()
    assert [finding.owner for finding in before] == [ANN]
    prune_all(store)
    assert store.audit.verify() == before


def test_other_secret_shows_afterwards(store: AccountStore) -> None:
    """The fingerprint of a key outlives the row that had it, also if a later row has none."""
    other = make_record(api_key="sk-other").ciphertext
    of_key = (credentials.c.owner == ANN, credentials.c.provider == "openai")
    prune_all(store)
    tamper(store, update(credentials).where(*of_key).values(ciphertext=other))
    assert "holds another secret" in store.audit.verify()[0].problem


@pytest.mark.parametrize(
    "harm",
    [
        update(audit).where(OF_ANN, audit.c.number == 2).values(actor="eve"),
        delete(audit).where(OF_ANN, audit.c.number == 3),
        update(audit).where(OF_ANN, audit.c.number == 7).values(was="0" * 64),
        HEAD_OF_ANN.values(seal=""),
    ],
)
def test_chain_that_is_not_whole_stays(store: AccountStore, harm: Any) -> None:
    """A chain that is not whole is named and stays as it is; others are pruned."""
    tamper(store, harm)
    before, findings = rows_of(store), store.audit.verify()
    assert prune_all(store) == Pruning(done=1, broken=[ANN])
    assert rows_of(store) == before
    assert store.audit.verify() == findings != []


@pytest.mark.parametrize("column", ["number", "hash", "checkpoint", "checkpoint_hash", "seal"])
def test_forged_head_shows(store: AccountStore, column: str) -> None:
    """Changing any column of a pruned chain's head is found, before and after the next event."""
    prune_all(store)
    value = 8 if column in ("number", "checkpoint") else "0" * 64
    tamper(store, HEAD_OF_ANN.values({column: value}))
    assert {finding.owner for finding in store.audit.verify()} == {ANN}
    store.audit.note(ANN, event_of("reveal"))
    assert {finding.owner for finding in store.audit.verify()} == {ANN}


def test_moved_checkpoint_shows(store: AccountStore) -> None:
    """Somebody who deletes rows as pruning does cannot make the checkpoint for it."""
    with store.engine.connect() as connection:
        last = connection.execute(select(audit).where(OF_ANN, audit.c.number == 2)).one()
    moved = HEAD_OF_ANN.values(checkpoint=last.number, checkpoint_hash=last.hash)
    tamper(store, delete(audit).where(OF_ANN, audit.c.number <= 2), moved)
    assert {finding.owner for finding in store.audit.verify()} == {ANN}


def test_pruned_rows_that_come_back_show(store: AccountStore) -> None:
    """Rows before the checkpoint are found and stay, and an old head that is put back with them is found."""
    with store.engine.connect() as connection:
        of_ann = select(audit_heads).where(audit_heads.c.owner == ANN)
        head = connection.execute(of_ann).one()._asdict()
        rows = [r._asdict() for r in connection.execute(select(audit).where(OF_ANN))]
    kept = list(store.audit.heads())
    prune_all(store)
    since = list(store.audit.heads())
    tamper(store, insert(audit).values([row for row in rows if row["number"] < 7]))
    assert {finding.owner for finding in store.audit.verify()} == {ANN}
    store.audit.note(ANN, event_of("reveal"))
    assert prune_all(store, utcnow() + DAY).broken == [ANN], "pruning does not hide them"
    tamper(store, delete(audit).where(OF_ANN), insert(audit).values(rows), HEAD_OF_ANN.values(head))
    assert store.audit.verify() == [], "the whole chain is as it was"
    assert store.audit.missing(kept) == ([], 0)
    assert [finding.owner for finding in store.audit.missing(since)[0]] == [ANN]


def test_old_heads(store: AccountStore) -> None:
    """A head before the checkpoint is pruned, not missing; one at it, and later ones, are still compared."""
    store.audit.note("system", event_of("rotate"))
    with store.engine.connect() as connection:
        rows = connection.execute(select(audit).where(OF_ANN).order_by(audit.c.number)).all()
    heads = [Head(row.owner, row.number, row.hash) for row in rows]
    prune_all(store)
    assert store.audit.missing(heads) == ([], 5)
    forged = [Head(head.owner, head.number, "0" * 64) for head in heads]
    findings, pruned = store.audit.missing(forged)
    assert ([finding.number for finding in findings], pruned) == ([6, 7], 5)


# beside others


def test_verifies_while_rows_go(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning between two pages of a verification is no finding, wherever it stands."""
    for days in (90, 60):
        monkeypatch.setattr("flask_byok.accounts.store.audit_verify._PAGE", 1)
        told: list[int] = []

        def go_on(rows: int, chains: int, days: int = days, told: list[int] = told) -> None:
            told.append(rows)
            if len(told) == 2:
                prune_all(store, utcnow() - days * DAY)

        assert store.audit.verify(report=go_on) == []
        assert len(told) > 2


def test_beside_writers(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes, rotation and verification go on while old rows go, and nothing is found."""
    monkeypatch.setattr(audit_prune, "_BATCH", 1)
    over = threading.Event()

    def write() -> None:
        mine = open_accounts(store.engine.url, KEYRING)
        while not over.is_set():
            mine.put(make_record(api_key="sk-2"), event_of())
            mine.audit.note(ANN, event_of("reveal"))
            assert mine.audit.verify() == []
        mine.engine.dispose()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(10):
                prune_all(store, utcnow())
        finally:
            over.set()
        writing.result()
    assert store.audit.verify() == []
