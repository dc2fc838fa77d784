"""Many processes at one owner's keys, and processes that are killed."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from flask_byok.accounts import open_accounts
from flask_byok.errors import KeyExistsError

from .account_kinds import ANN, KEYRING, event_of, make_record

PROVIDERS = ("openai", "groq", "xai")


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


@pytest.mark.stress
def test_many_creations_at_once(database_url: str, tmp_path: Path) -> None:
    """If several processes create a key at once, one succeeds and the others get KeyExistsError."""

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
        forked.canary.secret()  # as a worker has it

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
