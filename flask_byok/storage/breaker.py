"""Stop asking a store that does not answer, for a while, and say in the log why it failed."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from .. import metrics
from ..errors import ByokError, OutdatedTablesError, StoreError
from .reasons import ONLY_CHANGES, chain, reason_of

#: Faults in a row that open a breaker, and the seconds that it is open for.
_FAULTS, _OPEN_FOR = 2, 1.0

_logger = logging.getLogger("flask_byok.stores")
_F = TypeVar("_F", bound=Callable[..., Any])
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

    def unasked(self) -> None:
        """Note that the store was not asked after all: the next caller may ask."""
        with self._lock:
            self._open_until = 0.0

    def fault(self) -> None:
        """Note that the store did not answer."""
        with self._lock:
            self._faults += 1
            self._open_until = self._clock() + _OPEN_FOR


class Reporter:
    """Logs once why a store fails, and once that it is over.

    :param name: the store's, at the beginning of a sentence.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        #: Reasons that keep changes away, and an empty one if the store does not answer at all.
        self._said: set[str] = set()

    def failed(self, error: BaseException, *, answered: bool = False) -> None:
        """Note a fault.

        :param answered: the store answers, and may do other things.
        """
        reason = reason_of(error) or type(error).__name__
        key = reason if answered or reason in ONLY_CHANGES else ""
        with self._lock:
            if key in self._said:
                return
            self._said.add(key)
        _logger.warning("%s failed: %s", self._name, reason)

    def success(self, *, changed: bool) -> None:
        """Note that the store answered, or did a change too."""
        if not self._said:  # without the lock, as this is in every call
            return
        with self._lock:
            before, self._said = self._said, set() if changed else self._said - {""}
            if self._said or not before:
                return
        _logger.warning("%s works again.", self._name)


def measured(ask: _F) -> _F:
    """Measure a store's method that asks it behind its ``breaker``; ``measured_as`` is the store's name."""

    @wraps(ask)
    def timed(self: Any, *args: Any, **options: Any) -> Any:
        if not metrics.sinks:
            return ask(self, *args, **options)
        started, was_open, outcome = time.perf_counter(), self.breaker.is_open, "ok"
        try:
            return ask(self, *args, **options)
        except (StoreError, OutdatedTablesError) as error:
            # Only a driver's error was met while the store was asked.
            met = error.__context__ is not None and not isinstance(error.__context__, ByokError)
            outcome = "fault" if met or isinstance(error, OutdatedTablesError) else "skipped"
            raise
        finally:
            seconds = time.perf_counter() - started
            metrics.record("store_call_seconds", seconds, self.measured_as, outcome)
            if self.breaker.is_open is not was_open:
                metrics.record("breaker_open", float(not was_open), self.measured_as)

    return cast(_F, timed)


def is_away(error: BaseException) -> bool:
    """Return True if a store could not be reached or took too long, as libraries of any kind say it.

    What a request brought itself, such as an id that a driver cannot send, is no such error.
    """
    return any(map(_says_away, chain(error)))


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
