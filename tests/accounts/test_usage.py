"""The counts of uses, on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.exc import OperationalError

from flask_byok.accounts.store import usage as module
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.wing import open_accounts
from flask_byok.errors import StoreError
from flask_byok.keys.traffic import Traffic
from flask_byok.model.credential import (
    CredentialRecord,
    Outcome,
    Use,
    from_milliseconds,
    isoformat,
    utcnow,
)
from flask_byok.storage.tables import credentials, usage
from tests.services import wait_until

from .account_kinds import ANN, BEN, KEYRING, SYSTEM, TEAM, count_statements, event_of, make_record
from .test_account_races import exit_code, fork

NOW = utcnow()
TODAY = NOW.date().isoformat()
AT = 1_700_000_000_000
OUTCOMES: tuple[Outcome, ...] = ("used", "rejected", "failed")
#: The first day that is not long ago.
KEPT_SINCE = (NOW - timedelta(days=89)).date()


@pytest.fixture(autouse=True)
def _one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be one day throughout, also if the tests run past midnight."""
    monkeypatch.setattr("flask_byok.accounts.store.usage.utcnow", lambda: NOW)


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store on each kind of database."""
    store = open_accounts(database_url, KEYRING)
    yield store
    store.engine.dispose()


@pytest.fixture
def database(database_url: str) -> str:
    """Name a database that has its tables and a key of Ann's."""
    store = open_accounts(database_url, KEYRING)
    store.put(make_record(), event_of())
    store.engine.dispose()
    return database_url


def use_of(key: CredentialRecord | None = None, outcome: Outcome = "used", **fields: Any) -> Use:
    """Make a use of Ann's, or of a stored key."""
    owner, provider = (ANN, "openai") if key is None else (key.owner, key.provider)
    id = "" if key is None else key.id
    return replace(Use(owner, provider, id, TODAY, outcome, 1, AT), **fields)


def rows(engine: Engine) -> list[dict[str, Any]]:
    """Read the table."""
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(select(usage))]


def count_of(store: AccountStore, outcome: str = "used") -> int:
    """Add up what was counted with an outcome."""
    return sum(row["uses"] for row in rows(store.engine) if row["outcome"] == outcome)


def test_uses_add_up(store: AccountStore) -> None:
    """Each day, outcome and key has one row, with its tokens; the row and the key know the latest time."""
    key = store.put(make_record(), event_of())
    store.usage.add(use_of(key, uses=2, last_used_at=AT + 5, input_tokens=900, output_tokens=20))
    store.usage.add(use_of(key, uses=0, input_tokens=5_000_000_000))
    store.usage.add(use_of(key, uses=3))
    store.usage.add(use_of(key, "failed", last_used_at=AT + 9))
    store.usage.add(use_of(key, day="2024-02-29"))
    found = {(row["day"], row["outcome"]): row for row in rows(store.engine)}
    assert len(found) == 3
    assert found[TODAY, "used"]["uses"] == 5
    assert found[TODAY, "used"]["input_tokens"] == 5_000_000_900
    assert found[TODAY, "used"]["output_tokens"] == 20
    assert found[TODAY, "used"]["last_used_at"] == AT + 5
    assert found[TODAY, "failed"]["uses"] == 1
    counted = store.get(key.id, [ANN])
    assert counted.usage_count == 6
    assert counted.last_used_at == from_milliseconds(AT + 5)
    # Nothing else has changed, the version included.
    assert counted == replace(key, usage_count=6, last_used_at=counted.last_used_at)


def test_a_use_of_what_is_gone_is_counted(store: AccountStore) -> None:
    """A key that was deleted, and one that the database never had, are counted all the same."""
    key = store.put(make_record(), event_of())
    store.delete(key.id, [ANN], event_of("clear"))
    store.usage.add(use_of(key))
    store.usage.add(use_of(owner=SYSTEM))
    tiers = {row["owner"]: row["tier"] for row in rows(store.engine)}
    assert tiers == {ANN: "user", SYSTEM: "system"}


def test_statistics(store: AccountStore) -> None:
    """Keys, uses and days are summed up for these owners alone."""
    now = utcnow()
    key = store.put(make_record(), event_of())
    store.put(make_record(slot="2", active=False), event_of())
    store.put(make_record(provider="groq", expires_at=now - timedelta(days=1)), event_of())
    other = store.put(make_record(BEN), event_of())
    yesterday = (now - timedelta(days=1)).date().isoformat()
    store.usage.add(use_of(key, uses=4, last_used_at=AT + 1, input_tokens=70, output_tokens=6))
    store.usage.add(use_of(key, "rejected", uses=2, last_used_at=AT + 7))
    store.usage.add(use_of(key, day=yesterday, uses=3, input_tokens=30))
    store.usage.add(use_of(key, day="2020-01-01", input_tokens=500, output_tokens=50))
    store.usage.add(use_of(provider="xai", outcome="failed"))
    store.usage.add(use_of(other, uses=100, input_tokens=100, output_tokens=100))
    stats = store.usage.stats([ANN])
    last = isoformat(from_milliseconds(AT + 1))
    no_tokens = {"input_tokens": 0, "output_tokens": 0}
    none = {"keys": 0, "uses": 0, "rejected": 0, "failed": 0, **no_tokens, "last_used_at": None}
    openai = {"keys": 2, "uses": 8, "rejected": 2, "input_tokens": 600, "output_tokens": 56}
    assert stats == {
        "total": 3,
        "active": 1,
        "expired": 1,
        "by_provider": {
            "groq": none | {"keys": 1},
            "openai": none | openai | {"last_used_at": last},
            "xai": none | {"failed": 1},
        },
        "daily": [
            {"day": yesterday, "used": 3, "rejected": 0, "failed": 0, **no_tokens}
            | {"input_tokens": 30},
            {"day": TODAY, "used": 4, "rejected": 2, "failed": 1}
            | {"input_tokens": 70, "output_tokens": 6},
        ],
    }


def test_statistics_of_whole_tiers(store: AccountStore) -> None:
    """All teams and the system are summed up by their tiers, everybody without a name; no owner has nothing."""
    for owner in (ANN, TEAM, "team:blue", SYSTEM):
        store.usage.add(use_of(store.put(make_record(owner), event_of())))
    expected = {None: 4, ("team", SYSTEM): 3, ("team",): 2, (ANN, TEAM): 2, (): 0}
    for owners, total in expected.items():
        found = store.usage.stats(owners)
        assert sum(day["used"] for day in found["daily"]) == found["total"] == total, owners
    nothing = {"total": 0, "active": 0, "expired": 0, "by_provider": {}, "daily": []}
    assert store.usage.stats(()) == nothing


def test_statistics_are_three_statements(store: AccountStore) -> None:
    """However many keys and days there are."""
    for provider in ("openai", "groq"):
        store.usage.add(use_of(store.put(make_record(provider=provider), event_of())))
    assert count_statements(store.engine, lambda: store.usage.stats([ANN])) == 3


@pytest.mark.parametrize("owners", [[ANN], ["team"], [ANN, TEAM], ["team", SYSTEM]])
def test_statistics_read_by_index(database_url: str, owners: list[str]) -> None:
    """With 20,000 other owners no table is read from end to end."""
    store = open_accounts(database_url, KEYRING)
    key = store.put(make_record(), event_of())
    store.usage.add(use_of(key))
    postgres = store.engine.dialect.name == "postgresql"
    with store.engine.connect() as connection:
        for table in (credentials, usage):
            values = {"owner": "'user:' || n", "id": "'other' || n"}
            names = [column.name for column in table.c]
            row = ", ".join(values.get(name, name) for name in names)
            connection.exec_driver_sql(
                f"INSERT INTO {table.name} ({', '.join(names)}) WITH RECURSIVE numbers(n) AS"
                " (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 20000)"
                f" SELECT {row} FROM {table.name}, numbers"
            )
        if postgres:  # which does so by itself; SQLite never does
            connection.exec_driver_sql("ANALYZE")
        explain = "EXPLAIN" if postgres else "EXPLAIN QUERY PLAN"
        old = module._old(TODAY, 200)
        reading = (module._keys(owners, 0), module._uses(owners), module._daily(owners, TODAY))
        for query in (*reading, old):
            sql = str(query.compile(store.engine, compile_kwargs={"literal_binds": True}))
            found = connection.exec_driver_sql(f"{explain} {sql}".replace("%", "%%"))
            plan = "\n".join(str(tuple(line)) for line in found)
            assert "Seq Scan" not in plan, plan
            assert "SCAN byok" not in plan, plan
    store.engine.dispose()


def test_no_row_is_waited_for_twice(postgres_url: str) -> None:
    """Writers of the same rows in any order do not deadlock: each holds one count, then one key."""
    store = open_accounts(postgres_url, KEYRING)
    keys = [store.put(make_record(slot=str(n)), event_of()) for n in range(4)]

    def write(seed: int) -> None:
        for number in range(40):
            key = keys[(seed * 7 + number * 3) % 4]
            outcome: Outcome = "used" if number % 2 else "failed"
            store.usage.add(use_of(key, outcome))
            if number % 10 == seed:
                store.change(key.id, None, {"label": str(number)}, event_of("change"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert count_of(store) == count_of(store, "failed") == 160
    assert sum(store.get(key.id, None).usage_count for key in keys) == 160
    store.engine.dispose()


# long ago


def day_of(days_ago: int) -> str:
    """Name the day so long ago."""
    return (utcnow() - timedelta(days=days_ago)).date().isoformat()


def old_uses(store: AccountStore, days: int = 5) -> CredentialRecord:
    """Count uses of some owners on days that are long ago and on those that are not, and return a key."""
    key = store.put(make_record(), event_of())
    for number in range(days):
        for outcome in OUTCOMES:
            for days_ago in (0, number, 89, 90 + number):
                at = AT + days_ago + number
                day = day_of(days_ago)
                tokens = {"input_tokens": days_ago, "output_tokens": 1} if outcome == "used" else {}
                facts = {"day": day, "uses": number + 1, "last_used_at": at, **tokens}
                store.usage.add(use_of(key, outcome, **facts))
        store.usage.add(use_of(owner=SYSTEM, day=day_of(200 + number)))
    return key


def fold_all(store: AccountStore, limit: int = 200) -> int:
    """Fold until nothing is left to be folded, and return how much there was."""
    done = 0
    while folded := store.usage.fold(KEPT_SINCE, limit=limit):
        assert folded <= limit
        done += folded
    return done


def totals(store: AccountStore) -> list[Any]:
    """Return what nobody may see changed by folding."""
    return [store.usage.stats(owners) for owners in ([ANN], [SYSTEM], None)]


@pytest.mark.parametrize("limit", [1, 3, 200])
def test_folding_keeps_the_totals(store: AccountStore, limit: int) -> None:
    """What is long ago becomes one row for each key and outcome, all at once or bit by bit; sums stay."""
    key, before = old_uses(store), totals(store)
    assert fold_all(store, limit) == 20
    assert totals(store) == before
    assert fold_all(store, limit) == 0
    long_ago = [row for row in rows(store.engine) if row["day"] < KEPT_SINCE.isoformat()]
    assert sorted((row["tier"], row["outcome"], row["uses"]) for row in long_ago) == [
        ("system", "used", 5),
        *(("user", outcome, 15) for outcome in sorted(OUTCOMES)),
    ]
    assert {row["day"] for row in long_ago} == {module.LONG_AGO}
    (used,) = (row for row in long_ago if row["owner"] == ANN and row["outcome"] == "used")
    assert (used["input_tokens"], used["output_tokens"]) == (460, 5)
    assert store.get(key.id, None).usage_count == 60


def test_folding_goes_on(store: AccountStore) -> None:
    """What is counted for a folded day later, and days that have become old, are added the next time."""
    old_uses(store)
    fold_all(store)
    store.usage.add(use_of(day=day_of(90), uses=100, last_used_at=AT * 2))
    store.usage.add(use_of(owner=SYSTEM, day=day_of(90), uses=100, last_used_at=AT * 2))
    before = totals(store)
    assert fold_all(store) == 2
    assert totals(store) == before
    (row,) = (row for row in rows(store.engine) if row["owner"] == SYSTEM)
    assert (row["day"], row["uses"], row["last_used_at"]) == (module.LONG_AGO, 105, AT * 2)


def test_folding_while_uses_are_counted(store: AccountStore) -> None:
    """Three that fold at once, while others count for the very days that are folded, lose and double nothing."""
    keys = [store.put(make_record(slot=str(n)), event_of()) for n in range(3)]

    def add(seed: int) -> None:
        for number in range(40):
            key = keys[(seed + number) % 3]
            day = day_of(90 + (seed * 5 + number) % 7)
            store.usage.add(use_of(key, day=day, input_tokens=7, output_tokens=2))

    with ThreadPoolExecutor(6) as threads:
        counting = [threads.submit(add, seed) for seed in range(3)]
        folding = [
            threads.submit(lambda: [store.usage.fold(KEPT_SINCE, limit=4) for _ in range(25)])
            for _ in range(3)
        ]
        for each in (*counting, *folding):
            each.result()
    assert count_of(store) == 120
    fold_all(store)
    assert count_of(store) == sum(store.get(key.id, None).usage_count for key in keys) == 120
    found = rows(store.engine)
    assert len(found) == 3
    assert sum(row["input_tokens"] for row in found) == 120 * 7
    assert sum(row["output_tokens"] for row in found) == 120 * 2


def test_two_that_fold_in_opposite_orders_do_not_deadlock(postgres_url: str) -> None:
    """Each takes the sums of what it folds in one order, whichever it finds their days in."""
    store = open_accounts(postgres_url, KEYRING)
    for number, slots in enumerate(("ab", "ba")):
        for slot in slots:
            store.usage.add(use_of(credential_id=slot, day=day_of(100 + number)))
    both_hold_a_sum = threading.Barrier(2)
    first = threading.Event()
    holding: set[int] = set()

    def meet(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT") and threading.get_ident() not in holding:
            holding.add(threading.get_ident())
            first.set()
            # In one order the other waits for this very sum, and holds none.
            with suppress(threading.BrokenBarrierError):
                both_hold_a_sum.wait(1)

    event.listen(store.engine, "after_cursor_execute", meet)
    with ThreadPoolExecutor(2) as threads:
        folding = [threads.submit(store.usage.fold, KEPT_SINCE, limit=2)]
        assert first.wait(20)
        folding.append(threads.submit(store.usage.fold, KEPT_SINCE, limit=2))
        assert [each.result() for each in folding] == [2, 2]
    found = {row["credential_id"]: (row["day"], row["uses"]) for row in rows(store.engine)}
    assert found == dict.fromkeys("ab", (module.LONG_AGO, 2))
    store.engine.dispose()


@pytest.mark.parametrize("step", range(5))
def test_a_fold_that_breaks_off_has_changed_nothing(store: AccountStore, step: int) -> None:
    """Whichever statement a fold ends at, it has changed nothing, and the next one folds everything, once."""
    old_uses(store)
    before, sent = totals(store), count()

    def fail(*_: Any) -> None:
        if next(sent) == step:
            raise LookupError

    event.listen(store.engine, "after_cursor_execute", fail)
    with pytest.raises(LookupError):
        store.usage.fold(KEPT_SINCE)
    event.remove(store.engine, "after_cursor_execute", fail)
    assert totals(store) == before
    assert fold_all(store) == 20
    assert totals(store) == before


# with the recorder


def test_counts_that_fail_keep_no_request_from_the_database(store: AccountStore) -> None:
    """However often writing counts fails, keys are read and changed as ever."""

    def fail(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if "byok_usage" in statement:
            raise OperationalError(statement, None, OSError("out of order"))

    store.put(make_record(), event_of())
    event.listen(store.engine, "before_cursor_execute", fail)
    for _ in range(5):
        with pytest.raises(StoreError):
            store.usage.add(use_of())
    assert not store.breaker.is_open
    assert store.find([ANN]) != []


def test_a_killed_process_loses_its_last_second(database: str) -> None:
    """What was noted longer ago than the interval, and the time to write, is there after a kill."""
    reading, writing = os.pipe()

    def note_on() -> None:
        store = open_accounts(database, KEYRING)
        key = store.find([ANN])[0]
        recorder = Traffic(store.usage.add)
        while True:
            recorder.note(ANN, "openai", key.id, "used")
            os.write(writing, b"%d\n" % time.time_ns())
            time.sleep(0.005)

    child = fork(note_on)
    os.close(writing)
    with os.fdopen(reading) as noted:
        noted.readline()  # a busy machine takes its time to begin
        time.sleep(5)
        os.kill(child, 9)
        killed = time.time_ns()
        os.waitpid(child, 0)
        times = [int(line) for line in noted if line.endswith("\n")]
    store = open_accounts(database, KEYRING)
    owed = [at for at in times if at < killed - 3_000_000_000]
    assert owed
    assert len(owed) <= count_of(store) <= len(times) + 2
    assert store.find([ANN])[0].usage_count == count_of(store)
    store.engine.dispose()


def test_forked_processes_count_for_themselves(database: str) -> None:
    """What waits at a fork is written once, by the parent; the child's own uses by its own thread."""
    store = open_accounts(database, KEYRING)
    key = store.find([ANN])[0]
    recorder = Traffic(store.usage.add, interval=0.2)
    recorder.note(ANN, "openai", key.id, "used")

    def work(outcome: Outcome) -> None:
        recorder.note(ANN, "openai", key.id, outcome)
        wait_until(lambda: count_of(store, outcome), "the child's count")

    children = [fork(partial(work, outcome)) for outcome in ("failed", "rejected")]
    assert [exit_code(child) for child in children] == [0, 0]
    recorder.flush()
    assert [row["uses"] for row in rows(store.engine)] == [1, 1, 1]
    store.engine.dispose()
