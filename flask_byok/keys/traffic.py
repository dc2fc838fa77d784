"""What real calls tell: how often keys are used, what they take, and which of them their providers reject.

Uses are counted in memory, at about a microsecond each, and a background thread hands them to the stores every second.
A process that is killed loses its last second; one that ends hands it over. A forked process counts for itself.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from ..errors import StoreError
from ..model.credential import Credential, Outcome, SessionUse, Tokens, Use
from ..model.owner import OPERATOR_TIERS, Caller, Tier
from ..providers import Count

#: Seconds between two batches: what a crash loses.
INTERVAL = 1.0
#: How many different entries of one kind wait at most while their store is away; they take about 5 MB.
MAX_PENDING = 10_000
# A batch ends after this many faults: the store may be down, and each may then take seconds.
_FAULTS = 3
# Seconds that the end of the process waits for a batch that is being written.
_PATIENCE = 2.0

_logger = logging.getLogger("flask_byok.usage")

T = TypeVar("T")
_Key = tuple[Any, ...]
#: How often a key was used, when last (seconds since 1970), and the tokens in and out.
_Sum = list[Any]


@dataclass(eq=False)
class Traffic:
    """Counts uses, and makes the callbacks of provider objects.

    A store writes a use wholly or not at all, and raises if not; the use is then handed over again with what was
    counted since. A count may be off by one batch if a database went away in the moment of its COMMIT. While a store
    is away its uses wait, up to ``MAX_PENDING`` entries.

    :param add: writes an owner's uses.
    :param interval: in seconds.
    :param count: writes the uses of a session's key.
    """

    add: Callable[[Use], None]
    interval: float = INTERVAL
    count: Callable[[SessionUse], None] = lambda use: None

    def __post_init__(self) -> None:
        # Two, since one store may be away alone.
        self._owners = _Tally(Use, self.add, self.interval)
        # Sessions keep no tokens.
        self._sessions = _Tally(lambda *facts: SessionUse(*facts[:5]), self.count, self.interval)
        for tally in (self._owners, self._sessions):
            # Its thread keeps the tally alive, and ends after this object.
            weakref.finalize(self, setattr, tally, "ended", True).atexit = False

    def note(self, owner: str, provider: str, credential_id: str, what: Outcome | Tokens) -> None:
        """Count one use by an owner, or the tokens of one, now."""
        now = time.time()
        day = datetime.fromtimestamp(now, UTC).date().isoformat()
        # Tokens come with a use that was counted before.
        if isinstance(what, Tokens):
            self._owners.note((owner, provider, credential_id, day, "used"), [0, now, *what])
        else:
            self._owners.note((owner, provider, credential_id, day, what), [1, now, 0, 0])

    def counter(self, caller: Caller, credential: Credential) -> Count:
        """Return the callback that counts the calls with a credential, and their tokens."""
        owner, session = counted_owner(caller, credential), caller.session
        # Not the credential itself: the callback may outlive it.
        provider, id, version = credential.provider, credential.id, credential.version
        in_session = credential.source == Tier.SESSION and version is not None

        def count(what: Outcome | Tokens) -> None:
            if owner is not None:
                self.note(owner, provider, id, what)
            if in_session and session is not None and what == "used":
                self._sessions.note((session.ref, provider, version), [1, time.time(), 0, 0])

        return count

    def flush(self) -> None:
        """Hand everything over now.

        :raises StoreError: a store does not answer; the rest is handed over later.
        """
        self._owners.flush()
        self._sessions.flush()

    def flush_quietly(self) -> None:
        """Hand over as much as possible now; the rest is handed over later."""
        self._owners.flush_quietly()
        self._sessions.flush_quietly()


def counted_owner(caller: Caller, credential: Credential) -> str | None:
    """Return the owner whose statistics count a use, or None.

    A visitor's session key counts for no owner, a user's session key for the user.
    """
    if credential.source == Tier.SESSION:
        return caller.identity or None
    return "system" if credential.source in OPERATOR_TIERS else credential.owner


class _Tally:
    """Adds up uses of one kind, and writes them on a thread.

    :param kind: makes a use of a key (a tuple), how often it was used, when last (milliseconds since 1970), and tokens.
    :param write: writes one to its store.
    """

    def __init__(self, kind: Callable[..., T], write: Callable[[T], None], interval: float) -> None:
        self._write: Callable[..., None] = lambda *facts: write(kind(*facts))
        self._interval = interval
        #: Lets the thread end after its next batch.
        self.ended = False
        self.forget()
        _tallies.add(self)

    def forget(self) -> None:
        """Start from nothing, as a forked process must: its parent writes its own counts."""
        # Garbage collection may end a stream, and count its tokens, while this very thread counts.
        self._lock, self._flushing = threading.RLock(), threading.Lock()
        self._pending: dict[_Key, _Sum] = {}
        # Left by former batches; those that failed stand last, so that they do not delay the others.
        self._left: dict[_Key, _Sum] = {}
        self._full = False
        self._running = False

    def note(self, key: _Key, new: _Sum) -> None:
        """Add to a key's sum."""
        with self._lock:
            if key in self._pending or len(self._pending) + len(self._left) < MAX_PENDING:
                _add(self._pending.setdefault(key, [0, 0, 0, 0]), new)
            elif not self._full:
                self._full = True
                _logger.warning("A store is away for too long: uses of keys are not counted.")
            start, self._running = not self._running, True
        try:
            if start:
                threading.Thread(target=self._run, name="byok-usage", daemon=True).start()
        except RuntimeError:
            # The process is ending, and hands over by itself; or it has no room for a thread now.
            self._running = False

    def _run(self) -> None:
        while not self.ended:
            time.sleep(self._interval)
            self.flush_quietly()
        self.flush_quietly()

    def flush(self) -> None:
        """Write everything.

        :raises StoreError: the store does not answer, or not for all, or another batch takes too long.
        """
        if not self._flushing.acquire(timeout=_PATIENCE):
            raise StoreError
        try:
            self._flush()
        finally:
            self._flushing.release()

    def flush_quietly(self) -> None:
        """Write as much as possible now; the rest waits for the next batch."""
        try:
            self.flush()
        except StoreError:
            pass  # the store has logged it
        except Exception as error:
            _logger.warning("Uses of keys wait to be written: %s", type(error).__name__)

    def _flush(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, {}
        for key, new in pending.items():
            if key in self._left:
                _add(self._left[key], new)
        self._left = {**pending, **self._left}
        faults = 0
        for key in list(self._left):
            uses, at, *tokens = waiting = self._left.pop(key)
            try:
                self._write(*key, uses, int(at * 1000), *tokens)
            except BaseException as error:
                self._left[key] = waiting  # at the end
                faults += 1
                if not isinstance(error, StoreError) or faults == _FAULTS:
                    raise
        if faults:
            raise StoreError
        self._full = False


def _add(old: _Sum, new: _Sum) -> None:
    old[0] += new[0]
    old[1] = new[1]
    old[2] += new[2]
    old[3] += new[3]


_tallies: weakref.WeakSet[_Tally] = weakref.WeakSet()


@atexit.register
def _flush_all() -> None:
    for tally in list(_tallies):
        tally.flush_quietly()


def _forget_parents_counts() -> None:
    for tally in list(_tallies):
        tally.forget()


os.register_at_fork(after_in_child=_forget_parents_counts)
