"""Count the uses of keys in memory, and hand them on in batches: no call waits for a count."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from .credentials import Credential
from .errors import StoreError
from .owners import OPERATOR_TIERS, Caller, Tier

#: How a call with a key ended: the provider answered, refused the key, or did neither.
Outcome = Literal["used", "rejected", "failed"]
#: Called with the outcome of each call that was made.
Count = Callable[[Outcome], None]

#: Seconds between two batches: what a crash loses.
INTERVAL = 1.0
#: How many different entries of one kind wait at most while their store is away; they take about 5 MB.
MAX_PENDING = 10_000
# After so many faults a batch ends, as the store may be away: then each may take half a second.
_FAULTS = 3
# Seconds that the end of the process waits for a batch that is being written.
_PATIENCE = 2.0
_EPOCH = date(1970, 1, 1).toordinal()

_logger = logging.getLogger("flask_byok.usage")

# Owner, provider, id of the credential, day since 1970, outcome.
_OwnersKey = tuple[str, str, str, int, Outcome]
# Ref, provider, version.
_SessionsKey = tuple[str, str, str]


@dataclass(slots=True)
class Use:
    """How often an owner used a key on one day (ISO 8601, UTC) with one outcome.

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


@dataclass(slots=True)
class SessionUse:
    """How often a key was used that lies in a session: ``ref`` names that, ``version`` the key.

    ``last_used_at`` and ``ticket`` are as in ``Use``.
    """

    ref: str
    provider: str
    version: str
    uses: int
    last_used_at: int
    ticket: str = ""


def counted_owner(caller: Caller, credential: Credential) -> str | None:
    """Return whose use this is, or None where nobody's statistics count it.

    What a visitor keeps in the session has nobody to count it for; a user's session key counts for the user.
    """
    if credential.source == "argument":
        return None
    if credential.source == Tier.SESSION:
        return caller.identity or None
    return "system" if credential.source in OPERATOR_TIERS else credential.owner


class UsageRecorder:
    """Notes uses at about a microsecond each, and hands them to the stores every second.

    A process that is killed loses what it noted in its last second; one that ends hands it over.
    While a store is away everything of it waits, up to ``MAX_PENDING`` entries. Each process that a
    server forks has counts and threads of its own.

    A store writes one use, wholly or not at all. When it raises, the use is handed over again,
    later and together with what was noted since; unless it carries a ticket: then as it was.

    :param add: writes what an owner did; None where nobody keeps it.
    :param interval: in seconds.
    :param count: writes what was done with a key in a session.
    """

    def __init__(
        self,
        add: Callable[[Use], None] | None,
        interval: float = INTERVAL,
        *,
        count: Callable[[SessionUse], None] | None = None,
    ) -> None:
        self._owners = None if add is None else _Notes(_Tally(add, _use), interval)
        self._sessions = None if count is None else _Notes(_Tally(count, _session_use), interval)

    def note(self, owner: str, provider: str, credential_id: str, outcome: Outcome) -> None:
        """Count one use of an owner's, now."""
        if self._owners is not None:
            now = time.time()
            self._owners.note((owner, provider, credential_id, int(now // 86_400), outcome), now)

    def note_in_session(self, ref: str, provider: str, version: str, outcome: Outcome) -> None:
        """Count one use of a key that lies in a session, now; ``used`` ones alone."""
        if self._sessions is not None and outcome == "used":
            self._sessions.note((ref, provider, version), time.time())

    def counter(self, caller: Caller, credential: Credential) -> Count | None:
        """Return what counts the calls with a credential; None where they are not counted."""
        for_owner = self._for_owner(caller, credential)
        for_session = self._for_session(caller, credential)
        if for_owner is None or for_session is None:
            return for_owner or for_session

        def for_both(outcome: Outcome) -> None:
            for_owner(outcome)
            for_session(outcome)

        return for_both

    def flush(self) -> None:
        """Hand everything over now.

        :raises StoreError: a store does not answer; what is left is handed over later.
        """
        for notes in (self._owners, self._sessions):
            if notes is not None:
                notes.tally.flush()

    def _for_owner(self, caller: Caller, credential: Credential) -> Count | None:
        owner = counted_owner(caller, credential)
        if self._owners is None or owner is None:
            return None
        return partial(self.note, owner, credential.provider, credential.id)

    def _for_session(self, caller: Caller, credential: Credential) -> Count | None:
        session, version = caller.session, credential.version
        if self._sessions is None or credential.source != Tier.SESSION:
            return None
        if session is None or version is None:
            return None
        return partial(self.note_in_session, session.ref, credential.provider, version)


class _AnyUse(Protocol):
    uses: int
    last_used_at: int
    ticket: str


K = TypeVar("K", bound=tuple[Any, ...])
U = TypeVar("U", bound=_AnyUse)


class _Notes(Generic[K, U]):
    """Uses of one kind, and the thread that hands them over; it ends when nobody holds this any longer."""

    def __init__(self, tally: _Tally[K, U], interval: float) -> None:
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


class _Tally(Generic[K, U]):
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


def _use(key: _OwnersKey, uses: int, at: float) -> Use:
    owner, provider, credential_id, day, outcome = key
    written = date.fromordinal(_EPOCH + day).isoformat()
    return Use(owner, provider, credential_id, written, outcome, uses, int(at * 1000))


def _session_use(key: _SessionsKey, uses: int, at: float) -> SessionUse:
    return SessionUse(*key, uses, int(at * 1000))


def _run(tally: _Tally[Any, Any], notes: weakref.ref[_Notes[Any, Any]], interval: float) -> None:
    while notes() is not None:
        time.sleep(interval)
        tally.flush_quietly()
    tally.flush_quietly()


_tallies: weakref.WeakSet[_Tally[Any, Any]] = weakref.WeakSet()


@atexit.register
def _flush_all() -> None:
    for tally in list(_tallies):
        tally.flush_quietly()


def _forget_parents_counts() -> None:
    for tally in list(_tallies):
        tally.forget()


os.register_at_fork(after_in_child=_forget_parents_counts)
