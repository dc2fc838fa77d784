"""Stop asking a store that does not answer, for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Faults in a row that open a breaker, and the seconds that it is open for.
_FAULTS, _OPEN_FOR = 2, 1.0


class Breaker:
    """Counts the faults of one store in this process, and decides if it may be asked.

    After two in a row it is open for a second: no caller asks. Then one caller probes, and its outcome
    decides for all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._faults = 0
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Return True if calls fail at once."""
        return self._faults >= _FAULTS

    def allow(self) -> bool:
        """Return True if this caller may ask the store; it must report the outcome afterwards."""
        # Without the lock: a caller that has just missed the opening only asks once more.
        if not self.is_open:
            return True
        with self._lock:
            now = self._clock()
            if now < self._open_until:
                return False
            # If this caller never reports, another one may probe after the same time.
            self._open_until = now + _OPEN_FOR
            return True

    def success(self) -> None:
        """Note that the store answered."""
        if self._faults:
            with self._lock:
                self._faults, self._open_until = 0, 0.0

    def fault(self) -> None:
        """Note that the store did not answer."""
        with self._lock:
            self._faults += 1
            self._open_until = self._clock() + _OPEN_FOR
