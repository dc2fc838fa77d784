"""Accounts' keys beside a writer that holds, stops or dies, and on a PostgreSQL that takes long."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, event, select, text

from flask_byok.accounts import open_accounts
from flask_byok.errors import StoreError
from flask_byok.storage.engine import open_engine
from flask_byok.storage.sql import Transactions
from flask_byok.storage.tables import audit_heads
from tests.patience import everyday_limits, in_time

from .account_kinds import ANN, BEN, KEYRING, event_of, make_record


def fork(function: Callable[[], object]) -> int:
    """Run a function in a process of its own, which exits with 0 if it returns, and return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
        child = os.fork()
    if child:
        return child
    signal.alarm(300)  # nothing waits for it longer
    try:
        function()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def exit_code(child: int) -> int:
    """Wait for a process; a signal that ended it is negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_worker_that_dies_within_a_change(postgres_url: str) -> None:
    """A change held up by a worker that is then killed goes on, and the dead one's did not happen."""
    store = open_accounts(postgres_url, KEYRING)
    store.put(make_record(), event_of())

    def stand_still() -> None:
        forked = open_accounts(postgres_url, KEYRING)
        forked.find([ANN])
        forked.canary.secret()  # as a worker has it
        event.listen(forked.engine, "commit", lambda *_: os.kill(os.getpid(), signal.SIGSTOP))
        forked.put(make_record(), event_of())

    child = fork(stand_still)
    with ThreadPoolExecutor(1) as pool:
        try:
            os.waitpid(child, os.WUNTRACED)
            assert len(store.find([ANN])) == 1, "reading waits for nothing"
            store.put(make_record("user:other"), event_of())
            waiting = pool.submit(store.put, make_record(), event_of())
            time.sleep(0.2)
            assert not waiting.done()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert waiting.result(10).version == "2"
    assert store.audit.verify() == []
    store.engine.dispose()


def test_held_chain(postgres_url: str) -> None:
    """An owner whose chain another transaction holds is refused in time; reading and other owners go on."""
    with everyday_limits():
        store = open_accounts(postgres_url, KEYRING)
    store.create(make_record(), event_of())
    other = create_engine(postgres_url)
    with other.begin() as holder:
        theirs = select(audit_heads).where(audit_heads.c.owner == ANN)
        holder.execute(theirs.with_for_update())
        with in_time(), pytest.raises(StoreError):
            store.put(make_record(), event_of())
        assert store.find([ANN])
        store.put(make_record(BEN), event_of())
        assert not store.breaker.is_open
    other.dispose()
    assert store.put(make_record(), event_of()).version == "2"
    store.engine.dispose()


def test_long_calls_may_wait(postgres_url: str) -> None:
    """What is given a longer time gets it from the server too, and nothing after it does."""
    with everyday_limits():
        engine = open_engine(postgres_url)
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


def test_long_call_within_a_call(postgres_url: str) -> None:
    """The time of a longer call within a call does not count against the outer one."""
    transactions = Transactions(open_engine(postgres_url))

    def outer() -> bool:
        transactions.call(time.sleep, 1.1, limit=5)
        before = transactions.in_time()
        time.sleep(1.05)
        return before and not transactions.in_time()

    assert transactions.call(outer, limit=1)
