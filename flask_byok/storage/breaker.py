"""Stop asking a store that does not answer, for a while."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

#: Faults in a row that open a breaker, and the seconds that it is open for.
_FAULTS, _OPEN_FOR = 2, 1.0

# How libraries call errors of connections and of time: redis, pymongo, botocore, SQLAlchemy's pool, Python itself.
_AWAY_NAMES = ("Connect", "Timeout", "Disconnect", "Reconnect", "gaierror")
# What no route to a host is called; Python has no class of its own for it.
_NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
# PostgreSQL's SQLSTATE (its documentation, appendix A): connection exceptions, insufficient resources, operator
# intervention (statement timeout, shutdown), lock not available.
_AWAY_STATES = ("08", "53", "57", "55P03")
# MySQL's numbers: the client's own errors, too many connections, shutdown, lock wait timeout.
_AWAY_NUMBERS = frozenset({*range(2000, 3000), 1040, 1053, 1203, 1205})


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


def is_away(error: BaseException) -> bool:
    """Return True if a store could not be reached or took too long, as libraries of any kind say it.

    What a request brought itself, such as an id that a driver cannot send, is no such error.
    """
    return any(map(_says_away, _chain(error)))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _says_away(error: BaseException) -> bool:
    names = [kind.__name__ for kind in type(error).__mro__]
    if any(part in name for name in names for part in _AWAY_NAMES):
        return True
    if isinstance(error, OSError):
        return error.errno in _NO_ROUTE
    if getattr(error, "connection_invalidated", False):
        return True
    # DB-API (PEP 249): errors of the database's operation; those of its data have other names.
    return not {"OperationalError", "InterfaceError"}.isdisjoint(names) and _answers_away(error)


def _answers_away(error: BaseException) -> bool:
    """Judge by the number that the database gave; without one, it gave no answer."""
    driver: Any = getattr(error, "orig", None) or error
    state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    if state is not None:
        return str(state).startswith(_AWAY_STATES)
    number = next(iter(driver.args), None)
    return not isinstance(number, int) or number in _AWAY_NUMBERS
