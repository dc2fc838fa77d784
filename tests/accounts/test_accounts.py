"""The account store, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import create_engine, event, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from flask_byok.accounts.store import NoRecord, rows
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.wing import open_accounts
from flask_byok.errors import StoreError
from flask_byok.model.credential import RecordedVerdict, Use, Verdict, utcnow
from flask_byok.storage.sql import Database
from flask_byok.storage.tables import audit_heads, credentials, promotions, usage

from .account_kinds import (
    ANN,
    BEN,
    KEYRING,
    SYSTEM,
    event_of,
    in_main_slot,
    make_record,
    open_key,
    promote,
)

NOW, DAY = utcnow(), timedelta(days=1)
VALID = RecordedVerdict(Verdict.VALID, NOW, "")


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store on each kind of database."""
    store = open_accounts(database_url, KEYRING)
    yield store
    assert store.audit.verify() == []
    store.engine.dispose()


def test_created_record_comes_back(store: AccountStore) -> None:
    """A record comes back as it was stored, with an id and the version 1."""
    end = utcnow() + timedelta(days=3)
    record = make_record(label="Work", description="…", expires_at=end, validity=VALID)
    created = store.put(record, event_of("set"))
    assert created.version == "1"
    assert created.current_validity() == RecordedVerdict(VALID.verdict, VALID.checked_at, "1")
    same = ("provider", "owner", "ciphertext", "hint", "label", "description", "expires_at")
    for name in (*same, "created_at", "updated_at", "slot", "active", "usage_count"):
        assert getattr(created, name) == getattr(record, name), name
    assert store.get(created.id, [ANN]) == created
    assert store.find([ANN], ["openai"]) == [created]


def test_database_itself_refuses_doubles_and_no_owner(store: AccountStore) -> None:
    """The table takes no second key for one place, the system's included, and none without an owner."""
    store.put(make_record(SYSTEM), event_of())
    with store.engine.connect() as connection:
        row = dict(connection.execute(credentials.select()).one()._mapping)
    for wrong in ({"id": "2"}, {"id": "3", "owner": None}):
        with store.engine.connect() as connection, pytest.raises(IntegrityError):
            connection.execute(insert(credentials), row | wrong)


def test_put_replaces(store: AccountStore) -> None:
    """Storing again keeps id and birth, counts the version on, and forgets the old key's verdict."""
    first = store.put(make_record(validity=VALID), event_of())
    second = store.put(make_record(api_key="sk-2", label="New"), event_of())
    assert (second.id, second.created_at, second.version) == (first.id, first.created_at, "2")
    assert (open_key(second), second.label, second.validity) == ("sk-2", "New", None)
    third = store.put(make_record(api_key="sk-3", validity=VALID), event_of())
    assert third.current_validity() == RecordedVerdict(VALID.verdict, VALID.checked_at, "3")
    assert store.find([ANN]) == [third]


def test_change_carries_the_verdict(store: AccountStore) -> None:
    """A change beside the key keeps its verdict current, a new key drops it; a stale verdict stays stale."""
    record = store.put(make_record(validity=VALID), event_of())
    for number, changes in enumerate(
        ({"label": "A"}, {"description": "B"}, {"active": False}, {"expires_at": utcnow()}), 2
    ):
        record = store.change(record.id, [ANN], changes, event_of("change"))
        assert record.version == str(number)
        assert record.current_validity() is not None
        assert getattr(record, next(iter(changes))) == next(iter(changes.values()))
    assert store.change(record.id, [ANN], {"expires_at": None}, event_of()).expires_at is None
    other = {"ciphertext": make_record(api_key="sk-2").ciphertext, "hint": "…"}
    replaced = store.change(record.id, [ANN], other, event_of())
    assert (replaced.validity, open_key(replaced)) == (None, "sk-2")
    with store.engine.begin() as connection:
        stale = {"verdict": "valid", "verdict_at": 0, "verdict_version": 1}
        connection.execute(update(credentials).values(stale))
    assert store.change(record.id, [ANN], {"label": ""}, event_of()).current_validity() is None


@pytest.mark.parametrize(
    ("there", "at_most", "goes_to"),
    [
        ([], 1, ""),
        ([""], 1, ""),
        (["work"], 1, "work"),
        (["work"], 2, ""),
        (["10", "9"], 2, "9"),
        (["a", "", "b"], 2, ""),
        (["c", "b"], 1, "b"),
        (["work"], None, ""),
    ],
)
@pytest.mark.parametrize("way", ["put", "promote"])
def test_the_slot_of_a_key_without_one(
    store: AccountStore, there: list[str], at_most: int | None, goes_to: str, way: str
) -> None:
    """It goes to the first slot if that is there or there is room, else in the place of the one that serves first."""
    before = {slot: store.put(make_record(slot=slot), event_of()) for slot in there}
    new = make_record(api_key="sk-new")
    if way == "put":
        store.put(new, event_of(), seat=in_main_slot(at_most))
    else:
        stays = ([], ["openai"]) if goes_to in there else (["openai"], [])
        options: Any = {"event": event_of(), "at_most": at_most}
        assert promote(store, [new], replace=False, **options) == stays
        assert promote(store, [new], replace=True, **options) == (["openai"], [])
    after = {record.slot: record for record in store.find([ANN])}
    assert after.keys() == before.keys() | {goes_to}
    assert {slot: open_key(record) for slot, record in after.items()} == {
        **dict.fromkeys(there, "sk-1"),
        goes_to: "sk-new",
    }
    if goes_to in there:
        assert (after[goes_to].id, after[goes_to].version) == (before[goes_to].id, "2")
    assert store.audit.verify() == []


@pytest.mark.parametrize("way", ["put", "promote"])
def test_no_slot_too_many_at_once(store: AccountStore, way: str) -> None:
    """However a key is stored, many at once make no more slots than there may be."""

    def write(slot: str) -> None:
        record, happened = make_record(slot=slot), event_of()
        if way == "promote":
            promote(store, [record], replace=True, event=happened, at_most=2)
        else:
            store.put(record, happened, seat=in_main_slot(2))

    store.canary.secret()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, ["a", "b", "c", "d", "e"]))
    found = store.find([ANN])
    assert 1 <= len(found) <= 2
    assert [open_key(record) for record in found] == ["sk-1"] * len(found)


@pytest.mark.parametrize("logged", [True, False])
def test_what_learnt_nothing_lifts_no_refusal(store: AccountStore, logged: bool) -> None:
    """A refusal gives way to what was learnt of that version; a check that learnt nothing is logged."""
    noted = event_of("validate") if logged else None
    for known, late in product(Verdict, (Verdict.UNREACHABLE, Verdict.UNCHECKED, Verdict.VALID)):
        record = store.put(make_record(), event_of("set"))
        stays = known.valid is False and late.valid is None
        for verdict, stored in ((known, True), (late, not stays)):
            found = RecordedVerdict(verdict, utcnow(), record.version)
            assert store.record_verdict(record.id, record.version, found, noted) is stored
        validity = store.find([ANN])[0].current_validity()
        assert validity is not None
        assert validity.verdict is (known if stays else late)
        assert store.audit.entries(ANN)[0].action == ("validate" if logged else "set")


def test_a_refusal_of_an_older_version_hinders_no_verdict(store: AccountStore) -> None:
    """What was refused before the key was replaced says nothing of what is found since."""
    store.put(make_record(), event_of("set"))
    record = store.put(make_record(api_key="sk-2"), event_of("set"))
    with store.engine.begin() as connection:
        refused = {"verdict": "invalid", "verdict_at": 0, "verdict_version": 1}
        connection.execute(update(credentials).values(refused))
    late = RecordedVerdict(Verdict.UNREACHABLE, utcnow(), "2")
    assert store.record_verdict(record.id, "2", late)
    assert store.find([ANN])[0].current_validity() == late


def test_a_promotion_repeated_is_judged_by_the_key(store: AccountStore) -> None:
    """What is said of a record that is over goes by the very key that is there: hints of short ones are alike."""
    waiting = [make_record(api_key="bravo-key")]
    store.end(ANN, [waiting[0].version], event_of("clear"), NoRecord("openai"))
    store.put(make_record(api_key="alpha-key"), event_of("set"))
    for replace in (True, False):
        done = promote(store, waiting, replace=replace, event=event_of("promote"))
        assert done == ([], ["openai"])
    store.put(make_record(api_key="bravo-key"), event_of("set"))
    assert promote(store, waiting, replace=False, event=event_of("promote")) == (["openai"], [])


def test_unknown_verdict_is_none(store: AccountStore) -> None:
    """A verdict that a later version wrote reads as none."""
    record = store.put(make_record(validity=VALID), event_of())
    with store.engine.begin() as connection:
        connection.execute(update(credentials).values(verdict="valid_in_the_future"))
    assert store.get(record.id, [ANN]).validity is None


# keys that expire, and owners whom the host deletes


@pytest.fixture
def expiring(store: AccountStore) -> AccountStore:
    """Add keys of two owners that expired or expire in some days, and one that never does."""
    for number, days in enumerate((-40, -35, -31, -5, 5, 5, 5, 9)):
        end = NOW + days * DAY
        store.put(make_record(f"user:{number % 2}", f"p{number}", expires_at=end), event_of())
    store.put(make_record(), event_of())
    return store


def test_expired_keys_are_deleted_in_batches(
    expiring: AccountStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches delete what expired long ago and leave the rest, also a key that gets more time meanwhile."""
    store, before = expiring, NOW - 30 * DAY
    (prolonged,) = (record for record in store.page(None)[0] if record.provider == "p0")
    change = store.audit.change

    def prolong_first(owner: str, work: object) -> int:
        monkeypatch.undo()
        store.change(prolonged.id, None, {"expires_at": NOW + DAY}, event_of("change"))
        return change(owner, work)

    monkeypatch.setattr(store.audit, "change", prolong_first)
    purged = [store.purge_expired(before, event_of("purge"), limit=2) for _ in range(3)]
    assert sum(purged) == 2
    left = {record.provider for record in store.page(None)[0]}
    assert left == {"p0", "p3", "p4", "p5", "p6", "p7", "openai"}


def test_what_expires_soon(expiring: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that expire within some days are found in order, across pages and equal times."""
    monkeypatch.setattr(rows, "BATCH", 2)
    soon = [record.provider for record in expiring.expiring(NOW, NOW + 9 * DAY)]
    assert soon == ["p4", "p5", "p6", "p7"]
    assert [record.provider for record in expiring.expiring(NOW, NOW + 5 * DAY)] == soon[:3]
    assert all(record.owner != ANN for record in expiring.expiring(NOW, NOW + 99 * DAY))


def test_forget_again(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that an owner has goes but the log; what failed half way is finished by doing it again."""
    for owner in (ANN, BEN):
        promote(store, [make_record(owner)], replace=False, event=event_of("promote"))
        (record,) = store.find([owner])
        store.usage.add(Use(owner, "openai", record.id, "2026-05-04", "used", 1, 1))

    def rows_of(owner: str) -> list[int]:
        with store.engine.connect() as connection:
            queries = [
                select(table).where(table.c.owner == owner)
                for table in (credentials, usage, promotions, audit_heads)
            ]
            return [len(connection.execute(query).all()) for query in queries]

    monkeypatch.setattr(Database, "write", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.forget(ANN, event_of("clear"))
    monkeypatch.undo()
    assert rows_of(ANN) == [0, 1, 1, 1]
    assert store.forget(ANN, event_of("clear")) == []
    assert (rows_of(ANN), rows_of(BEN)) == ([0, 0, 0, 1], [1, 1, 1, 1])
    assert store.forget("user:unknown", event_of("clear")) == []
    assert rows_of("user:unknown") == [0, 0, 0, 0]


# what no calendar has, and connections that are lost


@pytest.mark.parametrize("moment", [2**62, 9223372036854775, -(2**62)])
def test_time_that_there_is_not(sqlite_url: str, moment: int) -> None:
    """A record with a time that no calendar has is unreadable; it can be changed and deleted."""
    store = open_accounts(sqlite_url, KEYRING)
    for column in (
        "created_at",
        "updated_at",
        "expires_at",
        "last_used_at",
        "verdict_at",
        "set_at",
    ):
        record = store.put(make_record(), event_of())
        values = {"verdict": "invalid", "verdict_version": 1, "verdict_at": 0, column: moment}
        with store.engine.begin() as connection:
            connection.execute(update(credentials).values(values))
        (found,) = store.find([ANN])
        # As it is, it does not open.
        assert (found.ciphertext, found.state(utcnow())) == ("", "active"), column
        changed = store.change(record.id, [ANN], {"label": "new"}, event_of("change"))
        assert (changed.label, changed.version) == ("new", "2"), column
        assert list(store.expiring(utcnow(), utcnow() + timedelta(days=7))) == [], column
        store.delete(record.id, [ANN], event_of("clear"), if_version=2)
    store.engine.dispose()


@pytest.fixture
def lose(postgres_url: str) -> Iterator[Callable[[Any], None]]:
    """Return a function that ends a connection from the server's side, and waits until it has ended."""
    other = create_engine(postgres_url)

    def terminate(connection: Any) -> None:
        backend = connection.connection.dbapi_connection.info.backend_pid
        with other.connect() as administrator:
            end = text("SELECT pg_terminate_backend(:backend, 5000)")
            assert administrator.execute(end, {"backend": backend}).scalar()

    yield terminate
    other.dispose()


@pytest.mark.parametrize("point", ["INSERT INTO byok_credentials", "UPDATE byok_audit_heads"])
def test_connection_lost_within_a_change(
    postgres_url: str, lose: Callable[[Any], None], point: str
) -> None:
    """A connection lost before the commit costs no call, and the change happens once."""
    store = open_accounts(postgres_url, KEYRING)
    store.put(make_record(BEN), event_of())

    def lose_once(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith(point):
            event.remove(store.engine, "before_cursor_execute", lose_once)
            lose(connection)

    event.listen(store.engine, "before_cursor_execute", lose_once)
    assert store.put(make_record(), event_of()) == store.find([ANN])[0]
    assert len(store.audit.entries(ANN)) == 1
    assert store.audit.verify() == []


def test_connection_lost_at_the_commit(postgres_url: str, lose: Callable[[Any], None]) -> None:
    """A commit that fails is a StoreError and not repeated: it might have happened."""
    store = open_accounts(postgres_url, KEYRING)
    store.put(make_record(BEN), event_of())
    commits: list[Any] = []
    event.listen(store.engine, "commit", commits.append)
    event.listen(store.engine, "commit", lose)
    with pytest.raises(StoreError):
        store.put(make_record(), event_of())
    event.remove(store.engine, "commit", lose)
    assert len(commits) == 1
    assert store.find([ANN]) == store.audit.entries(ANN) == []
    store.put(make_record(), event_of())
    assert store.audit.verify() == []
