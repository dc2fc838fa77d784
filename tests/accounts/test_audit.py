"""The audit log: what it says, and that each change of it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, delete, event, insert, select, update

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store import audit_verify
from flask_byok.accounts.store.audit import row_hash
from flask_byok.accounts.store.audit_verify import Finding
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.errors import ConfigurationError, KeyNotFoundError, StoreError
from flask_byok.keys.ports import AuditEvent
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.sql import SqlDocuments
from flask_byok.storage.tables import audit, audit_heads, canaries, credentials

from .account_kinds import ANN, BEN, KEYRING, event_of, fingerprint_of, make_record, promote

ROWS = 4
#: What each column is changed to; None where it may be.
OTHER: dict[str, Any] = {
    "owner": "user:eve",
    "number": 99,
    "at": 1,
    "actor": "user:eve",
    "action": "other",
    "outcome": "other",
    "provider": "other",
    "slot": "other",
    "credential_id": "other",
    "version": 99,
    "request_id": None,
    "fingerprint": None,
    "previous": "0" * 64,
    "hash": "0" * 64,
    "was": "0" * 64,
    "became": "0" * 64,
}
OF_ANN = audit.c.owner == ANN


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store with a chain of four events of Ann's and one of Ben's."""
    store = open_accounts(database_url, KEYRING)
    extra = {"request_id": "request-1", "fingerprint": fingerprint_of(store)}
    record = store.create(make_record(), event_of(**extra))
    for label in ("a", "b", "c"):
        store.change(record.id, [ANN], {"label": label}, event_of("change", **extra))
    store.create(make_record(BEN), AuditEvent(BEN, "set"))
    yield store
    store.engine.dispose()


def tamper(store: AccountStore, change: Callable[[Connection], object]) -> None:
    """Change the database past the store, as one transaction."""
    with store._database.transactions.several() as connection:
        change(connection)


def rows_of(store: AccountStore, table: Any) -> list[dict[str, Any]]:
    """Return all rows of a table."""
    with store.engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(select(table))]


def found_owners(store: AccountStore) -> set[str]:
    """Return whose chains are not whole."""
    return {finding.owner for finding in store.audit.verify()}


def put_back(store: AccountStore, table: Any, rows: list[dict[str, Any]]) -> None:
    """Make a table what it was."""

    def restore(connection: Connection) -> None:
        connection.execute(delete(table))
        connection.execute(insert(table), rows)

    tamper(store, restore)


def test_entries_say_what_happened(store: AccountStore) -> None:
    """An entry says who did what to which key, when and with what outcome, the newest first."""
    (record,) = store.find([ANN])
    entries = store.audit.entries(ANN)
    assert [(entry.number, entry.event.action) for entry in entries] == [
        (4, "change"),
        (3, "change"),
        (2, "change"),
        (1, "set"),
    ]
    told = {"request_id": "request-1", "fingerprint": fingerprint_of(store)}
    assert entries[0].event == event_of("change", **told)
    assert (entries[0].provider, entries[0].credential_id) == ("openai", record.id)
    assert entries[0].at == record.updated_at or entries[0].at > record.updated_at
    assert {entry.owner for entry in store.audit.entries()} == {ANN, BEN}
    assert len(store.audit.entries(limit=2)) == 2
    assert store.audit.entries(before=entries[-1].at) == []


@pytest.mark.parametrize("column", [column.name for column in audit.columns])
def test_changed_column_shows(store: AccountStore, column: str) -> None:
    """Changing any column of any row is found, and found again gone when it is put back."""
    before = rows_of(store, audit)
    for number in range(1, ROWS + 1):
        change = update(audit).where(OF_ANN, audit.c.number == number)
        tamper(store, lambda c, change=change: c.execute(change.values({column: OTHER[column]})))
        assert store.audit.verify(), f"{column} of row {number}"
        put_back(store, audit, before)
        assert store.audit.verify() == []


@pytest.mark.parametrize("column", [column.name for column in audit_heads.columns])
def test_changed_head_shows(store: AccountStore, column: str) -> None:
    """Changing any column of a head is found."""
    other = {"owner": "user:eve", "number": 3, "checkpoint": 2}.get(column, "0" * 64)
    head = update(audit_heads).where(audit_heads.c.owner == ANN)
    tamper(store, lambda c: c.execute(head.values({column: other})))
    assert store.audit.verify()


@pytest.mark.parametrize("number", range(1, ROWS + 1))
def test_deleted_row_shows(store: AccountStore, number: int) -> None:
    """A row deleted from anywhere is found, the last one too."""
    tamper(store, lambda c: c.execute(delete(audit).where(OF_ANN, audit.c.number == number)))
    assert found_owners(store) == {ANN}


@pytest.mark.parametrize("first", range(1, ROWS))
def test_swapped_rows_show(store: AccountStore, first: int) -> None:
    """Two rows that change places are found."""

    def swap(connection: Connection) -> None:
        for before, after in ((first, 99), (first + 1, first), (99, first + 1)):
            row = update(audit).where(OF_ANN, audit.c.number == before)
            connection.execute(row.values(number=after))

    tamper(store, swap)
    assert store.audit.verify()


@pytest.mark.parametrize("kept", range(ROWS))
@pytest.mark.parametrize("seal", ["kept", ""])
def test_cut_chain_shows(store: AccountStore, kept: int, seal: str) -> None:
    """A chain cut short is found, even if its head is set back to a row that is still there."""
    hashes = ["", *(row["hash"] for row in rows_of(store, audit) if row["owner"] == ANN)]

    def cut(connection: Connection) -> None:
        connection.execute(delete(audit).where(OF_ANN, audit.c.number > kept))
        values = {"number": kept, "hash": hashes[kept]} | ({} if seal else {"seal": ""})
        connection.execute(update(audit_heads).where(audit_heads.c.owner == ANN).values(values))

    tamper(store, cut)
    assert found_owners(store) == {ANN}
    store.audit.note(ANN, event_of("reveal"))
    assert found_owners(store) == {ANN}, "healed by the next event"


def test_renumbered_rows_show(store: AccountStore) -> None:
    """Rows that close up over a deleted one are found."""

    def renumber(connection: Connection) -> None:
        connection.execute(delete(audit).where(OF_ANN, audit.c.number == 1))
        for number in range(2, ROWS + 1):
            row = update(audit).where(OF_ANN, audit.c.number == number)
            connection.execute(row.values(number=number - 1))
        head = update(audit_heads).where(audit_heads.c.owner == ANN)
        connection.execute(head.values(number=ROWS - 1))

    tamper(store, renumber)
    assert store.audit.verify()


@pytest.mark.parametrize("tables", [(audit,), (audit_heads,), (audit, audit_heads)])
def test_emptied_tables_show(store: AccountStore, tables: tuple[Any, ...]) -> None:
    """Emptying the log, the heads or both is found while there are keys."""

    def empty(connection: Connection) -> None:
        for table in tables:
            connection.execute(delete(table))

    tamper(store, empty)
    assert found_owners(store) == {ANN, BEN}


@pytest.mark.parametrize("table", [audit_heads, audit])
def test_tampered_chain_goes_on(store: AccountStore, table: Any) -> None:
    """Keys can be changed after tampering, and no later event heals it."""
    tamper(store, lambda c: c.execute(delete(table).where(table.c.owner == ANN)))
    store.put(make_record(), event_of())
    store.put(make_record(), event_of())
    assert found_owners(store) == {ANN}


def test_forged_row_shows(store: AccountStore) -> None:
    """A row made with another encryption key's secret is found."""
    forger = row_hash(b"guessed", rows_of(store, audit)[0] | {"action": "clear"})
    row = update(audit).where(OF_ANN, audit.c.number == ROWS)
    tamper(store, lambda c: c.execute(row.values(action="clear", hash=forger)))
    assert Finding(ANN, ROWS, "it was changed") in store.audit.verify()


def test_replayed_row_shows(store: AccountStore) -> None:
    """A row that once was in the same place, and was cut off then, is found where it comes back."""
    heads = [row for row in rows_of(store, audit_heads) if row["owner"] == ANN]
    place = (OF_ANN, audit.c.number == ROWS + 1)
    store.audit.note(ANN, event_of("reveal", request_id="harmless"))
    (replayed,) = (row for row in rows_of(store, audit) if row["number"] == ROWS + 1)

    def cut(connection: Connection) -> None:
        connection.execute(delete(audit).where(*place))
        connection.execute(update(audit_heads).where(audit_heads.c.owner == ANN).values(heads[0]))

    tamper(store, cut)
    for request in ("to be hidden", "next"):
        store.audit.note(ANN, event_of("reveal", request_id=request))
    tamper(store, lambda c: c.execute(delete(audit).where(*place)))
    tamper(store, lambda c: c.execute(insert(audit).values(replayed)))
    problem = "it does not follow the row before it"
    assert store.audit.verify() == [Finding(ANN, ROWS + 2, problem)]


def test_chain_without_rows_and_head_is_not_healed(store: AccountStore) -> None:
    """Where all of a chain is gone but its key, no later event makes a new chain that passes."""

    def empty(connection: Connection) -> None:
        connection.execute(delete(audit).where(OF_ANN))
        connection.execute(delete(audit_heads).where(audit_heads.c.owner == ANN))

    tamper(store, empty)
    store.put(make_record(api_key="sk-2"), event_of())
    assert Finding(ANN, None, "its head was changed") in store.audit.verify()
    (record,) = store.find([ANN])
    store.delete(record.id, [ANN], event_of("clear"))
    assert found_owners(store) == {ANN}


def test_moved_row_shows(store: AccountStore) -> None:
    """A row moved to another owner's chain is found in both."""
    move = update(audit).where(OF_ANN, audit.c.number == 2).values(owner=BEN)
    tamper(store, lambda c: c.execute(move))
    assert found_owners(store) == {ANN, BEN}


def test_long_chains_are_read_in_pages(
    store: AccountStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that end anywhere lose and invent nothing."""
    for size in range(1, 7):
        monkeypatch.setattr(audit_verify, "_PAGE", size)
        assert store.audit.verify() == []
    tamper(store, lambda c: c.execute(delete(audit).where(OF_ANN, audit.c.number == 2)))
    for size in range(1, 7):
        monkeypatch.setattr(audit_verify, "_PAGE", size)
        assert [(f.owner, f.number) for f in store.audit.verify()] == [(ANN, 3)]


@pytest.mark.parametrize("statement", ["INSERT INTO byok_audit ", "UPDATE byok_audit_heads"])
def test_no_change_without_its_entry(store: AccountStore, statement: str) -> None:
    """If the event cannot be written, what it is about does not happen either."""

    def fail(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith(statement):
            cursor.execute("SELECT * FROM no_such_table")

    (record,) = store.find([ANN])
    event.listen(store.engine, "before_cursor_execute", fail)
    for change in (
        lambda: store.put(make_record(api_key="sk-2"), event_of()),
        lambda: store.create(make_record(provider="groq"), event_of()),
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


def test_no_entry_without_its_change(store: AccountStore) -> None:
    """What is refused or finds nothing leaves no entry."""
    before = len(store.audit.entries())
    with pytest.raises(KeyNotFoundError):
        store.delete("0", [ANN], event_of())
    assert store.clear(ANN, ["groq"], event_of()) == []
    assert len(store.audit.entries()) == before


def test_rotation_keeps_the_log_whole(store: AccountStore) -> None:
    """The log verifies with the new encryption key alone once all is sealed again, but not before."""
    new = Keyring("11" * 32, ["00" * 32])
    rotating = open_accounts(store.engine.url, new)
    assert rotating.canary.reseal()
    assert not rotating.canary.reseal()
    retired = open_accounts(store.engine.url, Keyring("11" * 32))
    assert all(found.problem.endswith("does not open") for found in retired.audit.verify())
    assert found_owners(retired) == {ANN, BEN}
    list(rotating.seals.rotate(new.renewed, event_of("rotate")))
    assert retired.audit.verify() == []
    retired.audit.note(ANN, event_of("rotate"))
    assert retired.audit.verify() == []


def test_wrong_encryption_key(store: AccountStore) -> None:
    """With a wrong encryption key the canary says what to do, and nothing can be changed."""
    wrong = open_accounts(store.engine.url, Keyring("22" * 32))
    with pytest.raises(ConfigurationError, match="BYOK_ENCRYPTION_KEY_FALLBACKS"):
        wrong.canary.secret()
    with pytest.raises(ConfigurationError):
        wrong.put(make_record(), event_of())


def test_verification_says_how_far_it_is(
    store: AccountStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells after each page, and at the end, of how many rows of how many chains."""
    rows, told = store.audit.count(), []
    assert rows == len(store.audit.entries())
    monkeypatch.setattr("flask_byok.accounts.store.audit_verify._PAGE", 1)
    assert store.audit.verify(report=lambda *at: told.append(at)) == []
    assert [at[0] for at in told] == [*range(1, rows + 1), rows]
    assert told[-1][1] == len({entry.owner for entry in store.audit.entries()})
    assert store.audit.count(BEN) == 1


def test_canaries_of_apps_are_their_own(store: AccountStore) -> None:
    """An app's canary lies in the same table, and what becomes of the log's secret is nothing to it."""
    sessions = SqlDocuments(store.engine.url)
    assert sessions.hold("app", "sealed", replace=False) == "sealed"
    assert open_accounts(store.engine.url, Keyring("11" * 32, ["00" * 32])).canary.reseal()
    assert sessions.hold("app", "other", replace=False) == "sealed"
    sessions.hold("app", "other", replace=True)
    assert open_accounts(store.engine.url, Keyring("11" * 32)).canary.secret()
    sessions.engine.dispose()


def test_lost_canary(store: AccountStore) -> None:
    """A canary that is gone while there is a log is refused; on empty tables a new one is made."""
    tamper(store, lambda c: c.execute(delete(canaries)))
    with pytest.raises(ConfigurationError, match="byok_canary"):
        open_accounts(store.engine.url, KEYRING).canary.secret()
    for table in (audit, audit_heads, credentials):
        tamper(store, lambda c, table=table: c.execute(delete(table)))
    open_accounts(store.engine.url, KEYRING).create(make_record(), event_of())


def test_one_canary_for_all(database_url: str) -> None:
    """Workers that start at once agree on one canary."""
    stores = [open_accounts(database_url, KEYRING) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda store: store.canary.secret(), stores))
    assert len(secrets) == 1
    assert len(secrets.pop()) == 32
    for store in stores:
        store.engine.dispose()
