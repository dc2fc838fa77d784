"""Many processes at one owner's keys, and processes that are killed."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.errors import KeyExistsError, KeyNotFoundError, VersionConflictError
from flask_byok.keys.ports import AuditEvent
from flask_byok.model.credential import RecordedVerdict, Verdict, utcnow
from flask_byok.sealing.keyring import Keyring

from .account_kinds import ANN, KEYRING, event_of, make_record, promote

PROVIDERS = ("openai", "groq", "xai")
NEW_KEYRING = Keyring("11" * 32, ["00" * 32])


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


class Worker:
    """Does random things to one owner's keys, and writes down what was acknowledged."""

    def __init__(self, url: str, number: int, path: Path) -> None:
        self.url = url
        self.number = number
        self.path = path
        self.random = random.Random(number)
        self.seen: list[Any] = []

    def run(self, steps: int) -> None:
        """Do so many things. Only what may be refused is; any other error ends the process."""
        store = open_accounts(self.url, KEYRING)
        store.canary.secret()  # sealed with the key that all workers have, before anybody rotates
        self.rotating = open_accounts(self.url, NEW_KEYRING)
        calls = [
            self._create,
            self._create,
            self._put,
            self._change,
            self._delete,
            self._clear,
            self._promote,
            self._check,
            self._reseal,
        ]
        with self.path.open("w") as acknowledged:
            for step in range(steps):
                request = f"{self.number}-{step}"
                self.seen = store.find([ANN])
                try:
                    done = self.random.choice(calls)(store, request)
                except (KeyExistsError, KeyNotFoundError, VersionConflictError):
                    continue
                if done:
                    print(request, done, file=acknowledged, flush=True)
        store.engine.dispose()

    def _record(self) -> Any:
        return make_record(provider=self.random.choice(PROVIDERS), api_key=f"sk-{self.number}")

    def _create(self, store: AccountStore, request: str) -> int:
        store.create(self._record(), event_of("create", request_id=request))
        return 1

    def _put(self, store: AccountStore, request: str) -> int:
        store.put(self._record(), event_of("put", request_id=request))
        return 1

    def _change(self, store: AccountStore, request: str) -> int:
        for record in self.seen[:1]:
            happened = event_of("change", request_id=request)
            wanted = int(record.version) if self.random.random() < 0.5 else None
            store.change(record.id, [ANN], {"label": request}, happened, if_version=wanted)
        return len(self.seen[:1])

    def _delete(self, store: AccountStore, request: str) -> int:
        for record in self.seen[:1]:
            store.delete(record.id, [ANN], event_of("delete", request_id=request))
        return len(self.seen[:1])

    def _clear(self, store: AccountStore, request: str) -> int:
        providers = self.random.sample(PROVIDERS, 2)
        return len(store.clear(ANN, providers, event_of("delete", request_id=request)))

    def _promote(self, store: AccountStore, request: str) -> int:
        records = [make_record(provider=p) for p in self.random.sample(PROVIDERS, 2)]
        happened = event_of("put", request_id=request)
        promoted, _ = promote(store, records, replace=self.random.random() < 0.5, event=happened)
        return len(promoted)

    def _check(self, store: AccountStore, request: str) -> int:
        for record in self.seen:
            verdict = RecordedVerdict(Verdict.VALID, utcnow(), record.version)
            store.record_verdict(record.id, record.version, verdict)
        return 0

    def _reseal(self, store: AccountStore, request: str) -> int:
        self.rotating.seals.renew(NEW_KEYRING.renewed, AuditEvent("cli", "rotate"))
        return 0


def replay(store: AccountStore) -> Counter[str]:
    """Follow the log and return the version of each key that must be there, by id."""
    versions: Counter[str] = Counter()
    places: dict[str, str] = {}
    for entry in sorted(store.audit.entries(ANN, limit=10**6), key=lambda e: e.number):
        key, action = entry.credential_id, entry.event.action
        if action == "delete":
            assert places.pop(entry.provider) == key
            del versions[key]
        else:
            assert places.setdefault(entry.provider, key) == key
            assert (action == "create") <= (versions[key] == 0)
            versions[key] += 1
    return versions


def race(url: str, folder: Path, steps: int) -> None:
    """Let eight processes loose on one owner's keys, and compare what is there with the log."""
    workers = [Worker(url, number, folder / str(number)) for number in range(8)]
    children = [fork(lambda worker=worker: worker.run(steps)) for worker in workers]
    assert [exit_code(child) for child in children] == [0] * 8
    store = open_accounts(url, KEYRING)
    lines = [line.split() for worker in workers for line in worker.path.read_text().splitlines()]
    acknowledged = Counter({request: int(count) for request, count in lines})
    logged = Counter(e.event.request_id for e in store.audit.entries(ANN, limit=10**6))
    assert acknowledged == logged
    assert len(acknowledged) > steps
    assert {r.id: int(r.version) for r in store.find([ANN])} == dict(replay(store))
    assert open_accounts(url, NEW_KEYRING).audit.verify() == []
    store.engine.dispose()


def test_eight_processes(postgres_url: str, tmp_path: Path) -> None:
    """Nothing acknowledged is lost, nothing is there twice, and nothing fails or deadlocks."""
    race(postgres_url, tmp_path, 30)


def test_eight_processes_on_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    """The same holds on SQLite."""
    race(sqlite_url, tmp_path, 10)


@pytest.mark.stress
def test_eight_processes_for_long(postgres_url: str, tmp_path: Path) -> None:
    """The same holds over thousands of changes."""
    race(postgres_url, tmp_path, 1000)


@pytest.mark.stress
def test_many_creations_at_once(database_url: str, tmp_path: Path) -> None:
    """Of creations at once in several processes, exactly one succeeds and the others are told."""

    def create(number: int) -> None:
        store = open_accounts(database_url, KEYRING)
        won = 0
        for place in range(100):
            try:
                store.create(make_record(provider=f"p{place}"), event_of())
                won += 1
            except KeyExistsError:
                pass
        (tmp_path / str(number)).write_text(str(won))

    children = [fork(lambda n=n: create(n)) for n in range(4)]
    assert [exit_code(child) for child in children] == [0] * 4
    assert sum(int((tmp_path / str(n)).read_text()) for n in range(4)) == 100


@pytest.fixture
def frozen_worker(postgres_url: str) -> Iterator[Callable[[], None]]:
    """Return a function that ends a process which stands still in the middle of a change."""
    store = open_accounts(postgres_url, KEYRING)
    store.put(make_record(), event_of())

    def stand_still() -> None:
        forked = open_accounts(postgres_url, KEYRING)
        forked.find([ANN])

        def stop(*_: Any) -> None:
            os.kill(os.getpid(), signal.SIGSTOP)

        event.listen(forked.engine, "commit", stop)
        forked.put(make_record(), event_of())

    child = fork(stand_still)
    os.waitpid(child, os.WUNTRACED)
    ended = False

    def end() -> None:
        nonlocal ended
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ended = True

    yield end
    end()
    store.engine.dispose()


def test_worker_that_dies_within_a_change(
    postgres_url: str, frozen_worker: Callable[[], None]
) -> None:
    """A change held up by a worker that is then killed goes on, and the dead one's did not happen."""
    store = open_accounts(postgres_url, KEYRING)
    assert len(store.find([ANN])) == 1, "reading waits for nobody"
    store.put(make_record("user:other"), event_of())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.put, make_record(), event_of())
        time.sleep(0.2)
        assert not waiting.done()
        frozen_worker()
        assert waiting.result(10).version == "2"
    assert store.audit.verify() == []
    store.engine.dispose()
