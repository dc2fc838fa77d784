"""Count the uses of keys in memory, and hand them on in batches: no call waits for a count."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Literal

from .credentials import Credential
from .errors import StoreError
from .owners import OPERATOR_TIERS, Caller, Tier

#: How a call with a key ended: the provider answered, refused the key, or did neither.
Outcome = Literal["used", "rejected", "failed"]
#: Called with the outcome of each call that was made.
Count = Callable[[Outcome], None]

#: Seconds between two batches: what a crash loses.
INTERVAL = 1.0
#: How many different entries wait at most while the database is away; they take about 5 MB.
MAX_PENDING = 10_000
# Seconds that the end of the process waits for a batch that is being written.
_PATIENCE = 2.0
_EPOCH = date(1970, 1, 1).toordinal()

_logger = logging.getLogger("flask_byok.usage")

# Owner, provider, id of the credential, day since 1970, outcome.
_Key = tuple[str, str, str, int, Outcome]


@dataclass(slots=True)
class Use:
    """How often a key was used on one day (ISO 8601, UTC) with one outcome.

    ``last_used_at`` is in milliseconds since 1970. ``credential_id`` is empty for keys that the
    database does not keep.
    """

    owner: str
    provider: str
    credential_id: str
    day: str
    outcome: Outcome
    uses: int
    last_used_at: int
    #: Set by a store that cannot tell whether this was written; by it the store finds out later.
    ticket: str = ""


def counted_owner(caller: Caller, credential: Credential) -> str | None:
    """Return whose use this is, or None where it is not counted.

    What a visitor keeps in the session has nobody to count it for; a user's session key counts for the user.
    """
    if credential.source == "argument":
        return None
    if credential.source == Tier.SESSION:
        return caller.identity or None
    return "system" if credential.source in OPERATOR_TIERS else credential.owner


class UsageRecorder:
    """Notes uses at about a microsecond each, and hands them to a store every second.

    A process that is killed loses what it noted in its last second; one that ends hands it over.
    While the store is away everything waits, up to ``MAX_PENDING`` entries. Each process that a
    server forks has counts and a thread of its own.

    :param add: writes one use, wholly or not at all. When it raises, the use is handed over again,
        later and together with what was noted since; unless it carries a ticket: then as it was.
    :param interval: in seconds.
    """

    def __init__(self, add: Callable[[Use], None], interval: float = INTERVAL) -> None:
        self._tally = _Tally(add)
        self._interval = interval

    def note(self, owner: str, provider: str, credential_id: str, outcome: Outcome) -> None:
        """Count one use, now."""
        tally = self._tally
        tally.note(owner, provider, credential_id, outcome)
        if not tally.running:
            self._start()

    def counter(self, caller: Caller, credential: Credential) -> Count | None:
        """Return what counts the calls with a credential; None where they are not counted."""
        owner = counted_owner(caller, credential)
        if owner is None:
            return None
        return partial(self.note, owner, credential.provider, credential.id)

    def flush(self) -> None:
        """Hand everything over now.

        :raises StoreError: the store does not answer; what is left is handed over later.
        """
        self._tally.flush()

    def _start(self) -> None:
        if not self._tally.may_start():
            return
        arguments = (self._tally, weakref.ref(self), self._interval)
        try:
            threading.Thread(target=_run, args=arguments, name="byok-usage", daemon=True).start()
        except RuntimeError:
            # The process is about to end, and hands over by itself; or it has no room for a thread now.
            self._tally.running = False


class _Tally:
    """What one process has counted and not handed over yet.

    Apart from its recorder, so that the thread keeps this alive and not the recorder.
    """

    def __init__(self, add: Callable[[Use], None]) -> None:
        self._add = add
        self.forget()
        _tallies.add(self)

    def forget(self) -> None:
        """Begin anew, as a forked process has to: its parent hands over what it counted."""
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._pending: dict[_Key, tuple[int, float]] = {}
        # What the batch that is being written has left, and what may or may not have been written.
        self._taken: dict[_Key, Use] = {}
        self._unclear: deque[Use] = deque()
        self._full = False
        self.running = False

    def may_start(self) -> bool:
        """Say, to one caller only, that nobody has started the thread."""
        with self._lock:
            started, self.running = self.running, True
        return not started

    def note(self, owner: str, provider: str, credential_id: str, outcome: Outcome) -> None:
        """Count one use, now."""
        now = time.time()
        key = (owner, provider, credential_id, int(now // 86_400), outcome)
        with self._lock:
            found = self._pending.get(key)
            if found is not None:
                self._pending[key] = (found[0] + 1, now)
            elif len(self._pending) + len(self._taken) < MAX_PENDING:
                self._pending[key] = (1, now)
            elif not self._full:
                self._full = True
                _logger.warning("The database is away for too long: uses of keys are not counted.")

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
                pass  # the database has logged it
            except Exception as error:
                _logger.warning("Uses of keys wait to be written: %s", type(error).__name__)
            finally:
                self._flushing.release()

    def _flush(self) -> None:
        self._take()
        while self._unclear:
            self._add(self._unclear[0])
            self._unclear.popleft()
        for key in list(self._taken):
            self._hand_over(key)
        self._full = False

    def _take(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, {}
        for key, (uses, at) in pending.items():
            use = self._taken.get(key)
            if use is None:
                self._taken[key] = _use(key, uses, at)
            else:
                use.uses += uses
                use.last_used_at = int(at * 1000)

    def _hand_over(self, key: _Key) -> None:
        use = self._taken.pop(key)
        try:
            self._add(use)
        except BaseException:
            if use.ticket:
                self._unclear.append(use)
            else:
                # At the end: what stands in the way of this one keeps no other waiting.
                self._taken[key] = use
            raise


def _use(key: _Key, uses: int, at: float) -> Use:
    owner, provider, credential_id, day, outcome = key
    written = date.fromordinal(_EPOCH + day).isoformat()
    return Use(owner, provider, credential_id, written, outcome, uses, int(at * 1000))


def _run(tally: _Tally, recorder: weakref.ref[UsageRecorder], interval: float) -> None:
    while recorder() is not None:
        time.sleep(interval)
        tally.flush_quietly()
    tally.flush_quietly()


_tallies: weakref.WeakSet[_Tally] = weakref.WeakSet()


@atexit.register
def _flush_all() -> None:
    for tally in list(_tallies):
        tally.flush_quietly()


def _forget_parents_counts() -> None:
    for tally in list(_tallies):
        tally.forget()


os.register_at_fork(after_in_child=_forget_parents_counts)
