"""The account store, on SQLite, PostgreSQL and a database that we do not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, event, insert, text, update
from sqlalchemy.exc import IntegrityError

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.wing import Subject
from flask_byok.errors import (
    InvalidFieldError,
    KeyExistsError,
    KeyNotFoundError,
    StoreError,
    VersionConflictError,
)
from flask_byok.model.credential import CredentialRecord, RecordedVerdict, Verdict, utcnow
from flask_byok.storage.tables import audit, audit_heads, credentials
from tests.services import PostgresServer

from .account_kinds import (
    ANN,
    BEN,
    KEYRING,
    SYSTEM,
    TEAM,
    count_statements,
    event_of,
    in_main_slot,
    make_record,
    open_key,
    promote,
)

VALID = RecordedVerdict(Verdict.VALID, utcnow(), "")


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store on each kind of database."""
    store = open_accounts(database_url, KEYRING)
    yield store
    assert store.audit.verify() == []
    store.engine.dispose()


def actions(store: AccountStore, owner: str = ANN) -> list[str]:
    """Return what was done to an owner's keys, the oldest first."""
    return [entry.event.action for entry in reversed(store.audit.entries(owner))]


def test_created_record_comes_back(store: AccountStore) -> None:
    """A record comes back as it was stored, with an id and the version 1."""
    end = utcnow() + timedelta(days=3)
    record = make_record(label="Work", description="…", expires_at=end, validity=VALID)
    created = store.create(record, event_of("set"))
    assert created.version == "1"
    assert created.current_validity() == RecordedVerdict(VALID.verdict, VALID.checked_at, "1")
    same = ("provider", "owner", "ciphertext", "hint", "label", "description", "expires_at")
    for name in (*same, "created_at", "updated_at", "slot", "active", "usage_count"):
        assert getattr(created, name) == getattr(record, name), name
    assert store.get(created.id, [ANN]) == created
    assert store.find([ANN], ["openai"]) == [created]
    assert actions(store) == ["set"]


def test_one_key_for_owner_provider_and_slot(store: AccountStore) -> None:
    """A second key for the same place is refused; another slot, provider or owner is another place."""
    store.create(make_record(), event_of())
    with pytest.raises(KeyExistsError):
        store.create(make_record(), event_of())
    for other in ({"slot": "2"}, {"provider": "groq"}, {"owner": BEN}, {"owner": SYSTEM}):
        store.create(make_record(**other), event_of())
    with pytest.raises(KeyExistsError):
        store.create(make_record(SYSTEM), event_of())


def test_database_itself_refuses_doubles_and_no_owner(store: AccountStore) -> None:
    """The table takes no second key for one place, the system's included, and none without an owner."""
    store.create(make_record(SYSTEM), event_of())
    with store.engine.connect() as connection:
        row = dict(connection.execute(credentials.select()).one()._mapping)
    for wrong in ({"id": "2"}, {"id": "3", "owner": None}):
        with store.engine.connect() as connection, pytest.raises(IntegrityError):
            connection.execute(insert(credentials), row | wrong)


def test_find_is_one_statement(store: AccountStore) -> None:
    """All tiers and any number of providers are read in one statement."""
    for owner in (ANN, BEN, TEAM, SYSTEM):
        for provider in ("openai", "groq", "xai"):
            store.create(make_record(owner, provider), event_of())
    owners, providers = [ANN, TEAM, SYSTEM], ["openai", "groq", "google"]
    assert count_statements(store.engine, lambda: store.find(owners, providers)) == 1
    assert count_statements(store.engine, lambda: store.find(owners)) == 1
    found = store.find(owners, providers)
    assert {(r.owner, r.provider) for r in found} == {
        (owner, provider) for owner in owners for provider in ("openai", "groq")
    }
    assert len(store.find(owners)) == 9
    assert store.find([], providers) == store.find([ANN], []) == []


def test_places_hold_the_same_records(store: AccountStore) -> None:
    """By owner and provider come the records that the list has, in one statement, slots in their order."""
    for owner in (ANN, BEN, SYSTEM):
        for slot in ("2", ""):
            store.create(make_record(owner, slot=slot), event_of())
    owners, providers = [ANN, SYSTEM, TEAM], ["openai", "groq"]
    assert count_statements(store.engine, lambda: store.places(owners, providers)) == 1
    found = {place: list(records) for place, records in store.places(owners, providers).items()}
    assert found == {(owner, "openai"): store.find([owner]) for owner in (ANN, SYSTEM)}
    assert [record.slot for record in found[ANN, "openai"]] == ["", "2"]


def test_put_replaces(store: AccountStore) -> None:
    """Storing again keeps id and birth, counts the version on, and forgets the old key's verdict."""
    first = store.put(make_record(validity=VALID), event_of())
    second = store.put(make_record(api_key="sk-2", label="New"), event_of())
    assert (second.id, second.created_at, second.version) == (first.id, first.created_at, "2")
    assert (open_key(second), second.label, second.validity) == ("sk-2", "New", None)
    third = store.put(make_record(api_key="sk-3", validity=VALID), event_of())
    validity = third.current_validity()
    assert validity is not None
    assert validity.verdict is Verdict.VALID
    assert store.find([ANN]) == [third]


def test_change_carries_the_verdict(store: AccountStore) -> None:
    """A change beside the key keeps its verdict current; a verdict that was stale stays stale."""
    record = store.create(make_record(validity=VALID), event_of())
    for number, changes in enumerate(
        ({"label": "A"}, {"description": "B"}, {"active": False}, {"expires_at": utcnow()}), 2
    ):
        record = store.change(record.id, [ANN], changes, event_of("change"))
        assert record.version == str(number)
        assert record.current_validity() is not None
        assert getattr(record, next(iter(changes))) == next(iter(changes.values()))
    assert store.change(record.id, [ANN], {"expires_at": None}, event_of()).expires_at is None
    with store.engine.begin() as connection:
        connection.execute(update(credentials).values(verdict_version=1))
    assert store.change(record.id, [ANN], {"label": ""}, event_of()).current_validity() is None


def test_change_that_changes_nothing(store: AccountStore) -> None:
    """Where all is as wanted already nothing is written or logged, but the version is compared."""
    record = store.create(make_record(label="A"), event_of("set"))
    wanted = {"label": "A", "active": True, "expires_at": None}
    for changes in ({}, wanted):
        assert store.change(record.id, [ANN], changes, event_of("change"), if_version=1) == record
        with pytest.raises(VersionConflictError):
            store.change(record.id, [ANN], changes, event_of("change"), if_version=2)
    assert store.change(record.id, [ANN], wanted | {"label": "B"}, event_of()).version == "2"
    assert actions(store)[0] == "set"
    assert len(actions(store)) == 2


def test_change_of_the_key_drops_the_verdict(store: AccountStore) -> None:
    """A new key starts without a verdict, or with the one that comes with it."""
    record = store.create(make_record(validity=VALID), event_of())
    new = {"ciphertext": make_record(api_key="sk-2").ciphertext, "hint": "…"}
    record = store.change(record.id, [ANN], new, event_of())
    assert (record.validity, open_key(record)) == (None, "sk-2")
    invalid = RecordedVerdict(Verdict.INVALID, utcnow(), "")
    record = store.change(record.id, [ANN], new | {"validity": invalid}, event_of())
    validity = record.current_validity()
    assert validity is not None
    assert validity.verdict is Verdict.INVALID


def test_versions_are_compared(store: AccountStore) -> None:
    """A change or deletion that was meant for another version does not happen."""
    record = store.create(make_record(), event_of())
    record = store.change(record.id, [ANN], {"label": "A"}, event_of(), if_version=1)
    with pytest.raises(VersionConflictError):
        store.change(record.id, [ANN], {"label": "B"}, event_of(), if_version=1)
    with pytest.raises(VersionConflictError):
        store.delete(record.id, [ANN], event_of(), if_version=1)
    assert store.get(record.id, [ANN]) == record
    assert store.delete(record.id, [ANN], event_of(), if_version=2) == record


def test_a_change_may_look_at_what_is_there(store: AccountStore) -> None:
    """What a function says of the record as it is then becomes of it; where that raises, nothing."""
    record = store.create(make_record(), event_of())
    store.change(record.id, [ANN], {"label": "A"}, event_of())

    def say(now: CredentialRecord) -> dict[str, str]:
        return {"label": f"{now.label}B"}

    def refuse(now: CredentialRecord) -> dict[str, str]:
        raise InvalidFieldError(now.label)

    assert store.change(record.id, [ANN], say, event_of()).label == "AB"
    with pytest.raises(InvalidFieldError, match="AB"):
        store.change(record.id, [ANN], refuse, event_of())
    assert store.get(record.id, [ANN]).version == "3"
    assert actions(store) == ["set"] * 3


def test_slots_serve_in_the_order_of_their_numbers(store: AccountStore) -> None:
    """The tenth slot comes after the second, whenever each was made."""
    for slot in ("10", "work", "3", "", "2"):
        store.create(make_record(slot=slot), event_of())
    slots = [record.slot for record in store.find([ANN], ["openai"])]
    assert slots == ["", "2", "3", "10", "work"]


def test_put_makes_no_slot_too_many(store: AccountStore) -> None:
    """A key is put in the place of another of its slot, and in a new slot only where there is room."""
    store.put(make_record(slot="work"), event_of(), at_most=1)
    replaced = store.put(make_record(slot="work"), event_of(), at_most=1)
    assert replaced.version == "2"
    with pytest.raises(KeyExistsError):
        store.put(make_record(), event_of(), at_most=1)
    assert store.find([ANN]) == [replaced]
    assert [r.slot for r in (store.put(make_record(), event_of()), replaced)] == ["", "work"]


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
@pytest.mark.parametrize("way", ["keep", "promote"])
def test_the_slot_of_a_key_without_one(
    store: AccountStore, there: list[str], at_most: int | None, goes_to: str, way: str
) -> None:
    """It goes to the first slot if that is there or there is room, else in the place of the one that serves first."""
    before = {slot: store.create(make_record(slot=slot), event_of()) for slot in there}
    new = make_record(api_key="sk-new")
    if way == "keep":
        store.keep(new, event_of(), seat=in_main_slot(at_most))
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


@pytest.mark.parametrize("way", ["create", "put", "keep", "promote"])
def test_no_slot_too_many_at_once(store: AccountStore, way: str) -> None:
    """However a key is stored, many at once make no more slots than there may be."""

    def write(slot: str) -> None:
        record, happened = make_record(slot=slot), event_of()
        with suppress(KeyExistsError):
            if way == "promote":
                promote(store, [record], replace=True, event=happened, at_most=2)
            else:
                options: Any = {"at_most": 2}
                if way == "keep":
                    options = {"seat": in_main_slot(2)}
                getattr(store, way)(record, happened, **options)

    store.canary.secret()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, ["a", "b", "c", "d", "e"]))
    found = store.find([ANN])
    assert 1 <= len(found) <= 2
    assert [open_key(record) for record in found] == ["sk-1"] * len(found)


def test_foreign_ids_do_not_exist(store: AccountStore) -> None:
    """No call finds another owner's id, and nothing happens to it."""
    record = store.create(make_record(BEN), event_of())
    for owners in ([ANN], [ANN, TEAM, SYSTEM], ["user:"], ["user:%"], [], ["team", "system"]):
        for call in (
            lambda o=owners: store.get(record.id, o),
            lambda o=owners: store.change(record.id, o, {"label": "x"}, event_of()),
            lambda o=owners: store.delete(record.id, o, event_of()),
        ):
            with pytest.raises(KeyNotFoundError):
                call()
        assert store.page(owners) == ([], None)
    assert store.get(record.id, None) == store.get(record.id, [BEN]) == record


def test_every_team(store: AccountStore) -> None:
    """A bare "team" stands for every team and for nothing else."""
    for owner in (ANN, TEAM, "team:blue", SYSTEM, "user:team"):
        store.create(make_record(owner), event_of())
    shared, _ = store.page(["team", SYSTEM])
    of = {record.owner: record.id for record in shared}
    assert (len(shared), set(of)) == (3, {TEAM, "team:blue", SYSTEM})
    assert store.get(of["team:blue"], ["team"]).owner == "team:blue"


def test_clear(store: AccountStore) -> None:
    """Clearing deletes every slot of the providers named, and no others, and is logged key by key."""
    for place in ({}, {"slot": "2"}, {"provider": "groq"}, {"provider": "xai"}, {"owner": BEN}):
        store.create(make_record(**place), event_of("set"))
    assert store.clear(ANN, ["xai", "google", "openai"], event_of("clear")) == ["xai", "openai"]
    assert store.clear(ANN, ["xai", "openai"], event_of("clear")) == []
    assert [record.provider for record in store.find([ANN, BEN])] == ["groq", "openai"]
    assert actions(store) == ["set"] * 4 + ["clear"] * 3


def test_pages(store: AccountStore) -> None:
    """Pages have every record once, in the order in which they were made, and an end."""
    made = [store.create(make_record(ANN, f"p{n:02}"), event_of()) for n in range(7)]
    store.create(make_record(BEN), event_of())
    seen, cursor = [], None
    for _ in range(4):
        page, cursor = store.page([ANN], after=cursor, limit=2)
        seen += page
    assert cursor is None
    assert sorted(seen, key=lambda r: r.id) == seen
    assert {r.id for r in seen} == {r.id for r in made}
    assert len(store.page(None, limit=8)[0]) == 8
    assert store.page([ANN], limit=7)[1] is None
    assert [r.provider for r in store.page([ANN], provider="p03")[0]] == ["p03"]


def test_page_outlives_changes(store: AccountStore) -> None:
    """A cursor still works after its record was deleted."""
    for number in range(4):
        store.create(make_record(ANN, f"p{number}"), event_of())
    page, cursor = store.page([ANN], limit=2)
    store.delete(page[1].id, [ANN], event_of())
    rest, end = store.page([ANN], after=cursor, limit=2)
    assert (len(rest), end) == (2, None)
    assert not {r.id for r in rest} & {r.id for r in page}


def test_late_verdict(store: AccountStore) -> None:
    """A verdict about an earlier version is dropped."""
    record = store.create(make_record(), event_of("set"))
    assert store.record_verdict(record.id, "1", VALID)
    store.put(make_record(api_key="sk-2"), event_of("set"))
    assert not store.record_verdict(record.id, "1", VALID)
    assert not store.record_verdict("0", "1", VALID)
    assert store.find([ANN])[0].validity is None
    assert store.record_verdict(record.id, "2", VALID, event_of("validate"))
    assert store.find([ANN])[0].current_validity() is not None
    assert store.find([ANN])[0].version == "2"
    assert actions(store) == ["set", "set", "validate"]


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
        assert actions(store)[-1] == ("validate" if logged else "set")


def test_a_refusal_of_an_older_version_is_in_nobodys_way(store: AccountStore) -> None:
    """What was refused before the key was replaced says nothing of what is found since."""
    store.create(make_record(), event_of("set"))
    record = store.put(make_record(api_key="sk-2"), event_of("set"))
    with store.engine.begin() as connection:
        refused = {"verdict": "invalid", "verdict_at": 0, "verdict_version": 1}
        connection.execute(update(credentials).values(refused))
    late = RecordedVerdict(Verdict.UNREACHABLE, utcnow(), "2")
    assert store.record_verdict(record.id, "2", late)
    assert store.find([ANN])[0].current_validity() == late


def test_promotion(store: AccountStore) -> None:
    """Promotion adds what is new, keeps what the owner has, and is logged where it did something."""
    own = store.create(make_record(api_key="own"), event_of("set"))
    waiting = [make_record(api_key="new"), make_record(provider="groq", validity=VALID)]
    done = promote(store, waiting, replace=False, event=event_of("promote"))
    assert done == (["groq"], ["openai"])
    groq = store.find([ANN], ["groq"])[0]
    assert groq.current_validity() is not None
    assert store.find([ANN], ["openai"]) == [own]
    assert promote(store, waiting, replace=True, event=event_of("promote")) == (
        ["openai", "groq"],
        [],
    )
    assert open_key(store.find([ANN], ["openai"])[0]) == "new"
    assert store.find([ANN], ["groq"]) == [groq]
    assert actions(store) == ["set", "promote", "promote"]


def test_promotion_happens_once(store: AccountStore) -> None:
    """A repeated promotion changes nothing, even if the key was replaced or deleted since."""
    waiting = [make_record(api_key="old"), make_record(provider="groq")]
    for _ in range(2):
        assert promote(store, waiting, replace=True, event=event_of("promote")) == (
            ["openai", "groq"],
            [],
        )
    store.put(make_record(api_key="newer"), event_of("set"))
    store.clear(ANN, ["groq"], event_of("clear"))
    promote(store, waiting, replace=True, event=event_of("promote"))
    assert [open_key(record) for record in store.find([ANN])] == ["newer"]
    assert actions(store) == ["promote", "promote", "set", "clear"]


def test_a_promotion_repeated_is_judged_by_the_key(store: AccountStore) -> None:
    """What is said of a record that is over goes by the very key that is there: hints of short ones are alike."""
    waiting = [make_record(api_key="bravo-key")]
    store.end(ANN, [waiting[0].version], event_of("clear"), Subject("openai"))
    store.put(make_record(api_key="alpha-key"), event_of("set"))
    for replace in (True, False):
        done = promote(store, waiting, replace=replace, event=event_of("promote"))
        assert done == ([], ["openai"])
    store.put(make_record(api_key="bravo-key"), event_of("set"))
    assert promote(store, waiting, replace=False, event=event_of("promote")) == (["openai"], [])


def test_unknown_verdict_is_none(store: AccountStore) -> None:
    """A verdict that a later version wrote reads as none."""
    record = store.create(make_record(validity=VALID), event_of())
    with store.engine.begin() as connection:
        connection.execute(update(credentials).values(verdict="valid_in_the_future"))
    assert store.get(record.id, [ANN]).validity is None


@pytest.mark.parametrize(
    "column",
    ["created_at", "updated_at", "expires_at", "last_used_at", "verdict_at", "set_at"],
)
@pytest.mark.parametrize("moment", [2**62, 9223372036854775, -(2**62)])
def test_time_that_there_is_not(store: AccountStore, column: str, moment: int) -> None:
    """A record with such a time is unreadable and no trouble to others; it can be changed and deleted."""
    broken = store.create(make_record(), event_of())
    whole = store.create(make_record(provider="groq"), event_of())
    values: dict[str, Any] = {"verdict": "invalid", "verdict_version": 1, "verdict_at": 0}
    with store.engine.begin() as connection:
        mine = update(credentials).where(credentials.c.id == broken.id)
        connection.execute(mine.values({**values, column: moment}))
    found = {record.provider: record for record in store.find([ANN])}
    assert found["groq"] == whole
    assert found["openai"].ciphertext == ""
    assert found["openai"].state(utcnow()) == "active"  # as it is, it does not open
    assert [record.id for record in store.page(None)[0]] == [broken.id, whole.id]
    changed = store.change(broken.id, [ANN], {"label": "new"}, event_of("change"))
    assert (changed.label, changed.version) == ("new", "2")
    expiring = list(store.expiring(utcnow(), utcnow() + timedelta(days=7)))
    assert expiring == []
    store.delete(broken.id, [ANN], event_of("clear"), if_version=2)
    unlogged = column in ("last_used_at", "verdict_at")
    assert bool(store.audit.verify()) != unlogged
    with store.engine.begin() as connection:
        for table in (audit, audit_heads, credentials):
            connection.execute(delete(table))


@pytest.mark.parametrize("call", ["find", "put", "delete"])
def test_restarted_postgresql_costs_no_call(call: str) -> None:
    """Connections that a restart has closed are replaced unseen, for changes too, which happen once."""
    with PostgresServer() as server:
        store = open_accounts(server.create_database(), KEYRING)
        record = store.create(make_record(), event_of())
        server.restart()
        calls: dict[str, Callable[[], object]] = {
            "find": lambda: store.find([ANN]),
            "put": lambda: store.put(make_record(), event_of()),
            "delete": lambda: store.delete(record.id, [ANN], event_of()),
        }
        calls[call]()
        assert len(store.audit.entries()) == (1 if call == "find" else 2)
        store.engine.dispose()


@pytest.mark.parametrize("point", ["INSERT INTO byok_credentials", "UPDATE byok_audit_heads"])
def test_connection_lost_within_a_change(postgres_url: str, point: str) -> None:
    """A connection lost before the commit costs no call, and the change happens once."""
    store = open_accounts(postgres_url, KEYRING)
    store.create(make_record(BEN), event_of())
    other = create_engine(postgres_url)

    def lose(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith(point):
            event.remove(store.engine, "before_cursor_execute", lose)
            _terminate(other, connection)

    event.listen(store.engine, "before_cursor_execute", lose)
    assert store.create(make_record(), event_of()) == store.find([ANN])[0]
    assert len(store.audit.entries(ANN)) == 1
    assert store.audit.verify() == []
    other.dispose()


def test_connection_lost_at_the_commit(postgres_url: str) -> None:
    """A commit that fails is a StoreError and not repeated: it might have happened."""
    store = open_accounts(postgres_url, KEYRING)
    store.create(make_record(BEN), event_of())
    other = create_engine(postgres_url)
    commits: list[Any] = []

    def lose(connection: Any) -> None:
        commits.append(connection)
        _terminate(other, connection)

    event.listen(store.engine, "commit", lose)
    with pytest.raises(StoreError):
        store.create(make_record(), event_of())
    event.remove(store.engine, "commit", lose)
    assert len(commits) == 1
    assert store.find([ANN]) == store.audit.entries(ANN) == []
    store.create(make_record(), event_of())
    assert store.audit.verify() == []
    other.dispose()


def _terminate(other: Engine, connection: Any) -> None:
    """End a connection from the server's side, and wait until it has ended."""
    backend = connection.connection.dbapi_connection.info.backend_pid
    with other.connect() as administrator:
        end = text("SELECT pg_terminate_backend(:backend, 5000)")
        assert administrator.execute(end, {"backend": backend}).scalar()
