"""Accounts' keys on a PostgreSQL that does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import create_engine, select, text

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.errors import StoreError
from flask_byok.storage.engine import Transactions, open_engine
from flask_byok.storage.tables import audit_heads
from tests.patience import everyday_limits, in_time
from tests.services import PostgresServer, wait_until

from .account_kinds import ANN, BEN, KEYRING, event_of, make_record


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that may be frozen."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def store(server: PostgresServer) -> Iterator[AccountStore]:
    """Make a store with a key in it."""
    with everyday_limits():
        store = open_accounts(server.create_database(), KEYRING)
    store.create(make_record(), event_of())
    yield store
    pool = store.engine.pool
    # What nobody waited for comes back to the pool once the server goes on.
    wait_until(lambda: pool.checkedout() == 0, "pool")  # type: ignore[attr-defined]
    store.engine.dispose()


def assert_refused_in_time(call: Callable[[], object]) -> None:
    """Fail unless the call ends with StoreError, and soon."""
    with in_time(), pytest.raises(StoreError):
        call()


def test_frozen(store: AccountStore, server: PostgresServer) -> None:
    """Reading and changing end in time on a frozen server, and work again by themselves."""
    with server.frozen():
        assert_refused_in_time(lambda: store.find([ANN], ["openai"]))
        assert_refused_in_time(lambda: store.put(make_record(), event_of()))
        assert store.breaker.is_open
    wait_until(lambda: store.find([ANN]), "store", timeout=5)
    assert store.put(make_record(), event_of()).version in ("2", "3")
    assert store.audit.verify() == []


def test_frozen_at_first_use(server: PostgresServer) -> None:
    """A first use that meets a frozen server ends in time as well, and leaves nothing behind."""
    store = open_accounts(server.create_database(), KEYRING)
    with server.frozen():
        assert_refused_in_time(lambda: store.create(make_record(), event_of()))
    wait_until(lambda: store.find([ANN]) == [], "store", timeout=5)
    store.engine.dispose()


def test_held_chain(store: AccountStore) -> None:
    """An owner whose chain somebody holds is refused in time; reading and other owners go on."""
    other = create_engine(store.engine.url)
    with other.begin() as holder:
        theirs = select(audit_heads).where(audit_heads.c.owner == ANN)
        holder.execute(theirs.with_for_update())
        assert_refused_in_time(lambda: store.put(make_record(), event_of()))
        assert store.find([ANN])
        store.put(make_record(BEN), event_of())
        assert not store.breaker.is_open
    other.dispose()
    assert store.put(make_record(), event_of()).version == "2"


def test_long_calls_may_wait(server: PostgresServer) -> None:
    """What is given a longer time gets it from the server too, and nothing after it does."""
    with everyday_limits():
        engine = open_engine(server.create_database())
    transactions = Transactions(engine)

    def sleep() -> None:
        with transactions.single() as connection:
            connection.execute(text("SELECT pg_sleep(0.6)"))

    def limits() -> list[object]:
        with transactions.several() as connection:
            names = ("statement_timeout", "lock_timeout")
            return [connection.execute(text(f"SHOW {name}")).scalar() for name in names]

    with everyday_limits():
        transactions.call(sleep, limit=5)
        assert transactions.call(limits, limit=5) == ["5s", "5s"]
    assert transactions.call(limits) == ["350ms", "300ms"]
    engine.dispose()


def test_long_call_within_a_call(server: PostgresServer) -> None:
    """The time of a longer call within a call does not count against the outer one."""
    transactions = Transactions(open_engine(server.create_database()))

    def outer() -> bool:
        transactions.call(time.sleep, 1.1, limit=5)
        before = transactions.in_time()
        time.sleep(1.05)
        return before and not transactions.in_time()

    assert transactions.call(outer, limit=1)
