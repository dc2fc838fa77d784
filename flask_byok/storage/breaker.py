"""Stop asking a store that does not answer, for a while, and say why it failed.

A driver's own text may contain an address, a user's name or what was sent, so none of it is repeated.
"""

from __future__ import annotations

import errno
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar, cast

from .. import metrics
from ..errors import ByokError, OutdatedTablesError, StoreError

#: Faults in a row that open a breaker, and the seconds that it is open for.
_FAULTS, _OPEN_FOR = 2, 1.0

_logger = logging.getLogger("flask_byok.stores")
_F = TypeVar("_F", bound=Callable[..., Any])
# How libraries call errors of connections and of time: redis, pymongo, botocore, SQLAlchemy's pool, Python itself.
_AWAY_NAMES = ("Connect", "Timeout", "Disconnect", "Reconnect", "gaierror")
# What no route to a host is called; Python has no class of its own for it.
_UNROUTED = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
# PostgreSQL's SQLSTATE (its documentation, appendix A): connection exceptions, insufficient resources, operator
# intervention (statement timeout, shutdown), lock not available.
_AWAY_STATES = ("08", "53", "57", "55P03")
# MySQL's numbers: the client's own errors, too many connections, shutdown, lock wait timeout.
_AWAY_NUMBERS = frozenset({*range(2000, 3000), 1040, 1053, 1203, 1205})

_READ_ONLY = "The database is read-only: give the primary server's address, or let the app write file and folder."
_FULL = "The database's disk is full: make room there."
_NO_DATABASE = "The database server has no database of this name: make one, or mend the address."
_NO_ENTRY = "The database server does not let this user in: mend user and password, or the server's pg_hba.conf."
_NO_HOST = "The database's host is not known: mend its name in the address."
_NO_CONNECTION = (
    "The database server has no connection left: raise max_connections, or lower BYOK_DATABASE_CONNECTIONS, which "
    "counts for each worker."
)
_STARTING = "The database server is starting or stopping: wait for it."
_SLOW = "The database did not answer within BYOK_DATABASE_TIMEOUT, or the connection was lost: is it overloaded?"
_NO_ROUTE = "The database's address cannot be reached: mend it, or the network's rules."
_TLS = "The database server's TLS does not fit: mend sslmode and certificates in the address."
_LOCKED = (
    "Another connection holds what is to be changed for too long: look for a long transaction."
)
_PARAMETER = "The database's address has a parameter that libpq does not know: take it out."
_REFUSED = "Nothing listens at the database's address: is the server up, and is the port right?"

#: By PostgreSQL's SQLSTATE (its documentation, appendix A), or the beginning of one.
_BY_STATE = {
    "3D000": _NO_DATABASE,
    "28": _NO_ENTRY,
    "25006": _READ_ONLY,
    "53100": _FULL,
    "53300": _NO_CONNECTION,
    "55P03": _LOCKED,
    "57014": _SLOW,
    "57P": _STARTING,
}
#: While connecting libpq has a text only, the server's own in the server's language. The first pattern that is found
#: counts. Some are PgBouncer's.
_BY_TEXT = (
    (_NO_CONNECTION, "too many (connections|clients)|connection slots are reserved"),
    (_NO_CONNECTION, "no more connections allowed"),
    (_STARTING, "the database system is"),
    (_PARAMETER, "invalid (connection option|URI query parameter)"),
    (_SLOW, "query_wait_timeout"),
    (_NO_ENTRY, "no password supplied|no pg_hba.conf entry|is not permitted to log in"),
    (_NO_ENTRY, 'authentication failed|role "|no such user'),
    (_NO_DATABASE, 'no such database|" does not exist'),
    (_NO_HOST, "Name or service not known|could not translate host name"),
    (_REFUSED, "Connection refused"),
    (_NO_ROUTE, "No route to host|is unreachable"),
    (_TLS, "SSL|certificate"),
    (_SLOW, "timeout expired|timed out|connection is lost|closed the connection"),
)
#: By SQLite's primary result code (sqlite.org/rescode.html).
_BY_SQLITE_CODE = {
    5: _LOCKED,
    6: _LOCKED,
    8: _READ_ONLY,
    11: "The SQLite file is damaged: restore it from a backup.",
    13: _FULL,
    14: "The SQLite file cannot be opened: mend its path, or the rights on the file and its folder.",
    26: "The file is not a SQLite database: mend its path.",
}
_REDIS_FULL = "Redis is full: raise its maxmemory."
_REDIS_READ_ONLY = "This Redis is a read-only replica: give the address of the primary server."
_REDIS_FORBIDS = "Redis does not let this user do what is needed: mend its ACL."
#: By redis-py's name of the error.
_BY_REDIS_ERROR = {
    "AuthenticationError": "Redis refuses this user or password: mend the address.",
    "NoPermissionError": _REDIS_FORBIDS,
    "ReadOnlyError": _REDIS_READ_ONLY,
    "OutOfMemoryError": _REDIS_FULL,
    "TimeoutError": "Redis did not answer in time (for keys: BYOK_REDIS_TIMEOUT): is it overloaded, or too far away?",
    "BusyLoadingError": "Redis is still loading its data: wait for it.",
    "MasterNotFoundError": "Sentinel names no primary server: are name and addresses right, and is one up?",
    "ClusterDownError": "The Redis Cluster does not serve all slots: is a node without a replica down?",
}
TOO_FEW_REPLICAS = (
    "Too few replicas acknowledge a write, so changes of keys fail. After a failover this lasts until a replica is "
    "back: for BYOK_REDIS_WAIT=1 run two replicas for each primary server."
)
#: By the code within Redis's text; Redis 6.2 puts that of a command before its script's.
_BY_REDIS_CODE = {
    "OOM ": _REDIS_FULL,
    "READONLY ": _REDIS_READ_ONLY,
    "NOPERM ": _REDIS_FORBIDS,
    "NOREPLICAS": "Redis takes no writes without its replicas (min-replicas-to-write): start them again.",
    "MISCONF": "Redis takes no writes, as it cannot save to its disk: make room there.",
    "TOO_FEW_REPLICAS": TOO_FEW_REPLICAS,  # our own
}
_REDIS = "Redis does not answer, or refuses: is it up, and is its address right?"
#: What keeps a store from changes, and not from reading.
ONLY_CHANGES = (_READ_ONLY, _FULL, _LOCKED)


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


def reason_of(error: BaseException | None) -> str | None:
    """Return why a store failed, and what to do; None where nothing more is known."""
    return next(filter(None, map(_reason, chain(error))), None)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it was raised for or has wrapped."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str | None:
    if type(error).__module__.startswith("redis."):
        if reason := _BY_REDIS_ERROR.get(type(error).__name__):
            return reason
        text = str(error)
        return next((reason for code, reason in _BY_REDIS_CODE.items() if code in text), _REDIS)
    if isinstance(error, TimeoutError):
        return _SLOW
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return _BY_SQLITE_CODE.get(code & 0xFF)
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return next((_BY_STATE[state[:n]] for n in (5, 3, 2) if state[:n] in _BY_STATE), None)
    if type(error).__module__.startswith("psycopg"):
        text = str(error)
        return next((reason for reason, words in _BY_TEXT if re.search(words, text)), None)
    return None


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
        return error.errno in _UNROUTED
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
