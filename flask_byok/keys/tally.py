"""Add up in memory what happens often, and hand it on in batches on a thread: nobody waits for a count."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ..errors import StoreError

#: How many different entries of one kind wait at most while their store is away; they take about 5 MB.
MAX_PENDING = 10_000
# After so many faults a batch ends, as the store may be away: then each may take half a second.
_FAULTS = 3
# Seconds that the end of the process waits for a batch that is being written.
_PATIENCE = 2.0

_logger = logging.getLogger("flask_byok.usage")


class Counted(Protocol):
    """What is handed over: how often, when last (milliseconds since 1970), and a store's ticket or nothing."""

    uses: int
    last_used_at: int
    ticket: str


K = TypeVar("K", bound=tuple[Any, ...])
U = TypeVar("U", bound=Counted)


class Notes(Generic[K, U]):
    """Uses of one kind, and the thread that hands them over; it ends when nobody holds this any longer."""

    def __init__(self, tally: Tally[K, U], interval: float) -> None:
        self.tally = tally
        self._interval = interval

    def note(self, key: K, at: float) -> None:
        """Count one use, at a time in seconds since 1970."""
        self.tally.note(key, at)
        if not self.tally.running:
            self._start()

    def _start(self) -> None:
        if not self.tally.may_start():
            return
        arguments = (self.tally, weakref.ref(self), self._interval)
        try:
            threading.Thread(target=_run, args=arguments, name="byok-usage", daemon=True).start()
        except RuntimeError:
            # The process is about to end, and hands over by itself; or it has no room for a thread now.
            self.tally.running = False


class Tally(Generic[K, U]):
    """What one process has counted and not handed over yet.

    Apart from the notes, so that the thread keeps this alive and not them.

    :param make: makes a use of its key, how many there were, and the last time, in seconds since 1970.
    """

    def __init__(self, add: Callable[[U], None], make: Callable[[K, int, float], U]) -> None:
        self._add = add
        self._make = make
        self.forget()
        _tallies.add(self)

    def forget(self) -> None:
        """Begin anew, as a forked process has to: its parent hands over what it counted."""
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._pending: dict[K, tuple[int, float]] = {}
        # What batches have left, and what may or may not have been written, which comes before what was
        # noted of the same key since.
        self._taken: dict[K, U] = {}
        self._unclear: dict[K, U] = {}
        self._full = False
        self.running = False

    def may_start(self) -> bool:
        """Say, to one caller only, that nobody has started the thread."""
        with self._lock:
            started, self.running = self.running, True
        return not started

    def note(self, key: K, at: float) -> None:
        """Count one use."""
        with self._lock:
            found = self._pending.get(key)
            if found is not None:
                self._pending[key] = (found[0] + 1, at)
            elif len(self._pending) + len(self._taken) + len(self._unclear) < MAX_PENDING:
                self._pending[key] = (1, at)
            elif not self._full:
                self._full = True
                _logger.warning("A store is away for too long: uses of keys are not counted.")

    def flush(self) -> None:
        """Hand over one after the other; what was handed over is forgotten at once."""
        with self._flushing:
            self._flush()

    def flush_quietly(self) -> None:
        """Hand over what can be; errors are for later."""
        if self._flushing.acquire(timeout=_PATIENCE):
            try:
                self._flush()
            except StoreError:
                pass  # the store has logged it
            except Exception as error:
                _logger.warning("Uses of keys wait to be written: %s", type(error).__name__)
            finally:
                self._flushing.release()

    def _flush(self) -> None:
        self._take()
        faults = 0
        # Those that failed before come last, so that they keep no other waiting.
        fresh = [key for key in self._taken if key not in self._unclear]
        for key in [*fresh, *self._unclear]:
            try:
                self._hand_over(key)
            except StoreError:
                faults += 1
                if faults == _FAULTS:
                    raise
        if faults:
            raise StoreError
        self._full = False

    def _take(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, {}
        for key, (uses, at) in pending.items():
            use = self._taken.get(key)
            if use is None:
                self._taken[key] = self._make(key, uses, at)
            else:
                use.uses += uses
                use.last_used_at = int(at * 1000)

    def _hand_over(self, key: K) -> None:
        for waiting in (self._unclear, self._taken):
            if key in waiting:
                self._hand_over_from(waiting, key)

    def _hand_over_from(self, waiting: dict[K, U], key: K) -> None:
        use = waiting.pop(key)
        try:
            self._add(use)
        except BaseException:
            # At the end: what stands in the way of this one keeps no other waiting.
            (self._unclear if use.ticket else waiting)[key] = use
            raise


def _run(tally: Tally[Any, Any], notes: weakref.ref[Notes[Any, Any]], interval: float) -> None:
    while notes() is not None:
        time.sleep(interval)
        tally.flush_quietly()
    tally.flush_quietly()


_tallies: weakref.WeakSet[Tally[Any, Any]] = weakref.WeakSet()


@atexit.register
def _flush_all() -> None:
    for tally in list(_tallies):
        tally.flush_quietly()


def _forget_parents_counts() -> None:
    for tally in list(_tallies):
        tally.forget()


os.register_at_fork(after_in_child=_forget_parents_counts)
