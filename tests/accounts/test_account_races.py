"""Accounts' keys beside a writer that holds, stops or dies, and while they are sealed again."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, event, select, text, update
from sqlalchemy.exc import DBAPIError

from flask_byok.accounts.store import reseal
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.store.reseal import Progress
from flask_byok.accounts.wing import open_accounts
from flask_byok.errors import StoreError
from flask_byok.model.credential import CredentialRecord, RecordedVerdict, Verdict, utcnow
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.engine import open_engine, patiently
from flask_byok.storage.sql import Transactions
from flask_byok.storage.tables import audit_heads, credentials
from tests.patience import in_time, short_limits

from .account_kinds import ANN, BEN, KEYRING, event_of, make_record, open_key


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
    with short_limits():
        store = open_accounts(postgres_url, KEYRING)
    store.put(make_record(), event_of())
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
    with short_limits():
        engine = open_engine(postgres_url)
    transactions = Transactions(engine)

    def sleep() -> None:
        with transactions.single() as connection:
            connection.execute(text("SELECT pg_sleep(0.6)"))

    def limits() -> list[object]:
        with transactions.several() as connection:
            names = ("statement_timeout", "lock_timeout")
            return [connection.execute(text(f"SHOW {name}")).scalar() for name in names]

    with short_limits(), patiently(5):
        transactions.call(sleep)
        assert transactions.call(limits) == ["5s", "5s"]
    assert transactions.call(limits) == ["350ms", "300ms"]
    engine.dispose()


def test_long_call_within_a_call(postgres_url: str) -> None:
    """The time of a longer call within a call does not count against the outer one."""
    transactions = Transactions(open_engine(postgres_url))

    def ask(seconds: float) -> None:
        with transactions.single() as connection:
            connection.execute(text(f"SELECT pg_sleep({seconds})"))

    def outer() -> bool:
        with patiently(5):
            transactions.call(lambda: ask(1.1))
        before = transactions.in_time(0)
        with pytest.raises(DBAPIError):
            ask(3)
        return before and not transactions.in_time(0)

    with patiently(1):
        assert transactions.call(outer)


# sealing again


VALID = RecordedVerdict(Verdict.VALID, utcnow(), "")
NEW = Keyring(
    "4fc82b26aecb47d2868c4efbe3581732a3e7cbcc6c2efb32062c08170a05eeb8",
    ["f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e"],
)
ROTATE = event_of("rotate")


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store on each kind of database, of a worker that has the old encryption key alone."""
    store = open_accounts(database_url, KEYRING)
    yield store
    knows_all = open_accounts(
        store.engine.url,
        Keyring(
            "4fc82b26aecb47d2868c4efbe3581732a3e7cbcc6c2efb32062c08170a05eeb8",
            [
                "f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e",
                "785f3ec7eb32f30b90cd0fcf3657d388b5ff4297f2f9716ff66e9b69c05ddd09",
            ],
        ),
    )
    assert knows_all.audit.verify() == []
    knows_all.engine.dispose()
    store.engine.dispose()


@pytest.fixture
def rotating(store: AccountStore) -> Iterator[AccountStore]:
    """Make a store of a worker with the new encryption key on the same database."""
    rotating = open_accounts(store.engine.url, NEW)
    yield rotating
    rotating.engine.dispose()


seal = NEW.renewed


def test_other_cipher_is_due(store: AccountStore) -> None:
    """Another cipher is a reason to seal again although the encryption key is the same."""
    store.put(make_record(), event_of())
    other = Keyring(
        "f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e", cipher="aes-256-gcm"
    )
    rotating = open_accounts(store.engine.url, other)
    assert rotating.seals.count_due() == 1
    assert next(rotating.seals.rotate(other.renewed, ROTATE)).done == 1
    assert rotating.seals.count_due() == 0
    assert open_key(store.find([ANN])[0]) == "sk-1"
    rotating.engine.dispose()


def test_what_changed_meanwhile_stays(store: AccountStore, rotating: AccountStore) -> None:
    """A key that is replaced, deleted or checked after it was read keeps what was done."""
    cleo = [store.put(make_record(owner), event_of()) for owner in (ANN, BEN, "user:cleo")][-1]

    def seal_late(key: CredentialRecord) -> str | None:
        if key.owner == cleo.owner:
            assert store.record_verdict(cleo.id, cleo.version, VALID)
        if key.owner == ANN:
            store.put(make_record(ANN, api_key="newer"), event_of())
        if key.owner == BEN:
            store.clear(BEN, ["openai"], event_of("clear"))
        return seal(key)

    assert next(rotating.seals.rotate(seal_late, ROTATE)) == Progress(total=3, done=1, held=2)
    assert open_key(store.find([ANN])[0]) == "newer"
    assert store.find([BEN]) == []
    (found,) = store.find([cleo.owner])
    assert (open_key(found, NEW), found.version) == ("sk-1", cleo.version)
    assert found.current_validity() is not None
    assert rotating.seals.count_due() == 1


def test_sealing_holds_nothing(postgres_url: str) -> None:
    """While keys are being sealed, nothing in the database is held."""
    store, rotating = open_accounts(postgres_url, KEYRING), open_accounts(postgres_url, NEW)
    store.put(make_record(), event_of())
    held = text("SELECT count(*) FROM pg_locks WHERE mode LIKE 'Row%'")

    def seal_watched(key: CredentialRecord) -> str | None:
        with store.engine.connect() as connection:
            assert connection.execute(held).scalar() == 0
        return seal(key)

    assert next(rotating.seals.rotate(seal_watched, ROTATE)).done == 1
    store.engine.dispose()
    rotating.engine.dispose()


def test_held_keys_are_taken_up_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that another transaction is changing is sealed once that ends, and left over if it never does."""
    monkeypatch.setattr(reseal, "_ROUNDS", 3)
    monkeypatch.setattr(reseal, "_PAUSE", 0.01)
    store = open_accounts(postgres_url, NEW)
    for owner in (ANN, BEN):
        store.put(make_record(owner), event_of())
    engine = create_engine(postgres_url)
    with engine.begin() as other:
        other.execute(update(credentials).where(credentials.c.owner == ANN).values(label="x"))
        held = list(store.seals.rotate(NEW.renewed, ROTATE))
        assert held[-1] == Progress(total=2, done=1, held=1)
        going_on = store.seals.rotate(NEW.renewed, ROTATE)
        assert next(going_on) == Progress(total=1, held=1)
        other.commit()
        assert list(going_on)[-1] == Progress(total=1, done=1)
    assert store.seals.count_due() == 0
    engine.dispose()
    store.engine.dispose()
