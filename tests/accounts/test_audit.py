"""The audit log: what it says, and that each change of it shows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, select, update
from sqlalchemy.exc import ProgrammingError

from flask_byok.accounts.store import AuditEvent, audit_verify
from flask_byok.accounts.store.audit import row_hash
from flask_byok.accounts.store.audit_verify import Finding
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.wing import open_accounts
from flask_byok.errors import ConfigurationError, StoreError
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.sql import SqlDocuments
from flask_byok.storage.tables import audit, audit_heads, canaries, credentials

from .account_kinds import ANN, BEN, KEYRING, event_of, fingerprint_of, make_record, promote, tamper

ROWS = 4
#: What each column is changed to.
OTHER: dict[str, Any] = {
    **dict.fromkeys(("owner", "actor"), "user:eve"),
    **dict.fromkeys(("action", "outcome", "provider", "slot", "credential_id"), "other"),
    **dict.fromkeys(("previous", "hash", "was", "became"), "0" * 64),
    **dict.fromkeys(("request_id", "fingerprint")),
    **{"number": 99, "at": 1, "version": 99},
}
OF_ANN = audit.c.owner == ANN
HEAD_OF_ANN = update(audit_heads).where(audit_heads.c.owner == ANN)


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store with a chain of four events of Ann's and one of Ben's."""
    store = open_accounts(database_url, KEYRING)
    extra = {"request_id": "request-1", "fingerprint": fingerprint_of(store)}
    record = store.put(make_record(), event_of(**extra))
    for label in ("a", "b", "c"):
        store.change(record.id, [ANN], {"label": label}, event_of("change", **extra))
    store.put(make_record(BEN), AuditEvent(BEN, "set"))
    yield store
    store.engine.dispose()


def rows_of(store: AccountStore, table: Any) -> list[dict[str, Any]]:
    """Return all rows of a table."""
    with store.engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(select(table))]


def found_owners(store: AccountStore) -> set[str]:
    """Return whose chains are not whole."""
    return {finding.owner for finding in store.audit.verify()}


@pytest.mark.parametrize("column", [column.name for column in audit.columns])
def test_changed_column_shows(store: AccountStore, column: str) -> None:
    """Changing any column of any row is found, and found again gone when it is put back."""
    before = rows_of(store, audit)
    for number in range(1, ROWS + 1):
        row = update(audit).where(OF_ANN, audit.c.number == number)
        tamper(store, row.values({column: OTHER[column]}))
        assert store.audit.verify(), f"{column} of row {number}"
        tamper(store, delete(audit), insert(audit).values(before))
        assert store.audit.verify() == []


@pytest.mark.parametrize("column", [column.name for column in audit_heads.columns])
def test_changed_head_shows(store: AccountStore, column: str) -> None:
    """Changing any column of a head is found."""
    other = {"owner": "user:eve", "number": 3, "checkpoint": 2}.get(column, "0" * 64)
    tamper(store, HEAD_OF_ANN.values({column: other}))
    assert store.audit.verify()


@pytest.mark.parametrize("number", range(1, ROWS + 1))
def test_deleted_row_shows(store: AccountStore, number: int) -> None:
    """A row deleted from anywhere is found, the last one too."""
    tamper(store, delete(audit).where(OF_ANN, audit.c.number == number))
    assert found_owners(store) == {ANN}


@pytest.mark.parametrize("first", range(1, ROWS))
def test_swapped_rows_show(store: AccountStore, first: int) -> None:
    """Two rows that change places are found."""
    for before, after in ((first, 99), (first + 1, first), (99, first + 1)):
        tamper(store, update(audit).where(OF_ANN, audit.c.number == before).values(number=after))
    assert store.audit.verify()


@pytest.mark.parametrize("kept", range(ROWS))
@pytest.mark.parametrize("seal", ["kept", ""])
def test_cut_chain_shows(store: AccountStore, kept: int, seal: str) -> None:
    """A chain cut short is found, even if its head is set back to a row that is still there."""
    hashes = ["", *(row["hash"] for row in rows_of(store, audit) if row["owner"] == ANN)]
    values = {"number": kept, "hash": hashes[kept]} | ({} if seal else {"seal": ""})
    tamper(store, delete(audit).where(OF_ANN, audit.c.number > kept), HEAD_OF_ANN.values(values))
    assert found_owners(store) == {ANN}
    store.audit.note(ANN, event_of("reveal"))
    assert found_owners(store) == {ANN}, "healed by the next event"


def test_renumbered_rows_show(store: AccountStore) -> None:
    """Rows that close up over a deleted one are found."""
    tamper(store, delete(audit).where(OF_ANN, audit.c.number == 1))
    for number in range(2, ROWS + 1):
        row = update(audit).where(OF_ANN, audit.c.number == number)
        tamper(store, row.values(number=number - 1))
    tamper(store, HEAD_OF_ANN.values(number=ROWS - 1))
    assert store.audit.verify()


@pytest.mark.parametrize("tables", [(audit,), (audit_heads,), (audit, audit_heads)])
def test_emptied_tables_show(store: AccountStore, tables: tuple[Any, ...]) -> None:
    """Emptying the log, the heads or both is found while there are keys."""
    tamper(store, *map(delete, tables))
    assert found_owners(store) == {ANN, BEN}


@pytest.mark.parametrize("table", [audit_heads, audit])
def test_tampered_chain_goes_on(store: AccountStore, table: Any) -> None:
    """Keys can be changed after tampering, and no later event heals it."""
    tamper(store, delete(table).where(table.c.owner == ANN))
    store.put(make_record(), event_of())
    store.put(make_record(), event_of())
    assert found_owners(store) == {ANN}


def test_forged_row_shows(store: AccountStore) -> None:
    """A row made with another encryption key's secret is found."""
    forger = row_hash(b"guessed", rows_of(store, audit)[0] | {"action": "clear"})
    row = update(audit).where(OF_ANN, audit.c.number == ROWS)
    tamper(store, row.values(action="clear", hash=forger))
    assert Finding(ANN, ROWS, "it was changed") in store.audit.verify()


def test_replayed_row_shows(store: AccountStore) -> None:
    """A row that once was in the same place, and was cut off then, is found where it comes back."""
    heads = [row for row in rows_of(store, audit_heads) if row["owner"] == ANN]
    place = (OF_ANN, audit.c.number == ROWS + 1)
    store.audit.note(ANN, event_of("reveal", request_id="harmless"))
    (replayed,) = (row for row in rows_of(store, audit) if row["number"] == ROWS + 1)
    tamper(store, delete(audit).where(*place), HEAD_OF_ANN.values(heads[0]))
    for request in ("to be hidden", "next"):
        store.audit.note(ANN, event_of("reveal", request_id=request))
    tamper(store, delete(audit).where(*place), insert(audit).values(replayed))
    problem = "it does not follow the row before it"
    assert store.audit.verify() == [Finding(ANN, ROWS + 2, problem)]


def test_chain_without_rows_and_head_is_not_healed(store: AccountStore) -> None:
    """Where all of a chain is gone but its key, no later event makes a new chain that passes."""
    tamper(
        store, delete(audit).where(OF_ANN), delete(audit_heads).where(audit_heads.c.owner == ANN)
    )
    store.put(make_record(api_key="sk-2"), event_of())
    assert Finding(ANN, None, "its head was changed") in store.audit.verify()
    (record,) = store.find([ANN])
    store.delete(record.id, [ANN], event_of("clear"))
    assert found_owners(store) == {ANN}


def test_moved_row_shows(store: AccountStore) -> None:
    """A row moved to another owner's chain is found in both."""
    tamper(store, update(audit).where(OF_ANN, audit.c.number == 2).values(owner=BEN))
    assert found_owners(store) == {ANN, BEN}


def test_long_chains_are_read_in_pages(
    store: AccountStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that end anywhere lose and invent nothing."""
    for size in range(1, 7):
        monkeypatch.setattr(audit_verify, "_PAGE", size)
        assert store.audit.verify() == []
    tamper(store, delete(audit).where(OF_ANN, audit.c.number == 2))
    for size in range(1, 7):
        monkeypatch.setattr(audit_verify, "_PAGE", size)
        assert [(f.owner, f.number) for f in store.audit.verify()] == [(ANN, 3)]


@pytest.mark.parametrize("statement", ["INSERT INTO byok_audit ", "UPDATE byok_audit_heads"])
def test_no_change_without_its_entry(store: AccountStore, statement: str) -> None:
    """If the event cannot be written, what it is about does not happen either."""

    def fail(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith(statement):
            raise ProgrammingError(sql, None, ValueError("no such table"))

    (record,) = store.find([ANN])
    event.listen(store.engine, "before_cursor_execute", fail)
    for change in (
        lambda: store.put(make_record(api_key="sk-2"), event_of()),
        lambda: store.put(make_record(provider="groq"), event_of()),
        lambda: store.change(record.id, [ANN], {"label": "x"}, event_of()),
        lambda: store.delete(record.id, [ANN], event_of()),
        lambda: store.clear(ANN, ["openai"], event_of()),
        lambda: promote(store, [make_record(provider="groq")], replace=True, event=event_of()),
    ):
        with pytest.raises(StoreError):
            change()
        store.breaker.success()
    event.remove(store.engine, "before_cursor_execute", fail)
    assert store.find([ANN]) == [record]
    assert store.audit.verify() == []


def test_canaries_of_apps_are_their_own(store: AccountStore) -> None:
    """An app's canary lies in the same table, and what becomes of the log's secret is nothing to it."""
    sessions = SqlDocuments(store.engine.url)
    assert sessions.hold("app", "sealed", replace=False) == "sealed"
    open_accounts(
        store.engine.url,
        Keyring(
            "4fc82b26aecb47d2868c4efbe3581732a3e7cbcc6c2efb32062c08170a05eeb8",
            ["f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e"],
        ),
    ).canary.reseal()
    assert sessions.hold("app", "other", replace=False) == "sealed"
    sessions.hold("app", "other", replace=True)
    assert open_accounts(
        store.engine.url,
        Keyring("4fc82b26aecb47d2868c4efbe3581732a3e7cbcc6c2efb32062c08170a05eeb8"),
    ).canary.secret()
    sessions.engine.dispose()


def test_lost_canary(store: AccountStore) -> None:
    """A canary that is gone while there is a log is refused; on empty tables a new one is made."""
    tamper(store, delete(canaries))
    with pytest.raises(ConfigurationError, match="byok_canary"):
        open_accounts(store.engine.url, KEYRING).canary.secret()
    tamper(store, *map(delete, (audit, audit_heads, credentials)))
    open_accounts(store.engine.url, KEYRING).put(make_record(), event_of())


def test_one_canary_for_all(database_url: str) -> None:
    """Workers that start at once agree on one canary."""
    stores = [open_accounts(database_url, KEYRING) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda store: store.canary.secret(), stores))
    assert len(secrets) == 1
    assert len(secrets.pop()) == 32
    for store in stores:
        store.engine.dispose()
