"""Keep the trouble of one from others: a breaker for stores, rates for callers, and reasons for operators."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Any

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, RedisStorage, Storage
from limits.strategies import FixedWindowRateLimiter

from ..errors import ConfigurationError, RateLimitedError

#: All visitors together have this many times the rate of one.
OVERALL = 50

# Prefix of a visitor's owner name; the network address follows.
_VISITOR = "address:"


class Breaker:
    """Counts the faults of one store in this process, and decides if it may be asked.

    After ``faults`` in a row it is open for ``open_for`` seconds: no caller asks. Then one caller
    probes, and its outcome decides for all.
    """

    def __init__(
        self,
        faults: int = 2,
        open_for: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = faults
        self._open_for = open_for
        self._clock = clock
        self._lock = threading.Lock()
        self._faults = 0
        self._open_until: float | None = None

    @property
    def is_open(self) -> bool:
        """Return True if calls fail at once."""
        return self._open_until is not None

    def allow(self) -> bool:
        """Return True if this caller may ask the store; it must report the outcome afterwards."""
        # Without the lock: a caller that has just missed the opening only asks once more.
        return self._open_until is None or self._may_probe()

    def success(self) -> None:
        """Note that the store answered."""
        if self._faults:
            with self._lock:
                self._faults = 0
                self._open_until = None

    def fault(self) -> None:
        """Note that the store did not answer."""
        with self._lock:
            self._faults += 1
            if self._faults >= self._limit:
                self._open_until = self._clock() + self._open_for

    def _may_probe(self) -> bool:
        with self._lock:
            if self._open_until is None:
                return True
            now = self._clock()
            if now < self._open_until:
                return False
            # If this caller never reports, another one may probe after the same time.
            self._open_until = now + self._open_for
            return True


@dataclass(frozen=True, slots=True)
class RateStorage:
    """A storage for attempts, and a function that guards its calls against hanging."""

    storage: Storage
    guarded: Callable[..., Any]

    @classmethod
    def in_memory(cls) -> RateStorage:
        """Count in this process; each worker then counts for itself."""
        return cls(MemoryStorage(), lambda function, *args: function(*args))

    @classmethod
    def beside(cls, store: Any) -> RateStorage:
        """Count in a session store's Redis, or in this process if the store is another one."""
        client = getattr(store, "client", None)
        if client is None:
            return cls.in_memory()
        # By itself the storage makes a client for an address; ours has the right time limits, and may be a cluster.
        storage = RedisStorage("redis://", connection_pool=None, key_prefix="byok:r")
        storage.storage = client
        storage.initialize_storage("redis://")
        return cls(storage, store.guarded)


class RateLimiter:
    """Rejects an owner who asks too often, and visitors if all of them together do.

    Users have no common limit: otherwise visitors, who come and go as they like, could lock users out.

    :param rate: such as ``"20/minute"``.
    :param setting: the config key that it came from; limiters of different settings count apart.
    :raises ConfigurationError: the rate cannot be read.
    """

    def __init__(self, rate: str, storage: RateStorage, *, setting: str) -> None:
        self._setting = setting
        self._each = _parse(rate, setting)
        self._overall = type(self._each)(self._each.amount * OVERALL, self._each.multiples)
        # Not a moving window: limits' memory storage keeps an empty list for each who ever asked.
        self._limiter = FixedWindowRateLimiter(storage.storage)
        self._guarded = storage.guarded

    def check(self, owner: str) -> None:
        """Count one attempt of ``user:<id>`` or, for a visitor, ``address:<network address>``.

        :raises RateLimitedError: too many within the time; this attempt is not counted.
        :raises StoreError: Redis does not answer.
        """
        if owner.startswith(_VISITOR):
            owner = _VISITOR + _network(owner.removeprefix(_VISITOR))
            # In this order neither count grows by an attempt that the other rejects.
            self._require(self._limiter.test, self._each, owner)
            self._require(self._limiter.hit, self._overall, "*")
        self._require(self._limiter.hit, self._each, owner)

    def _require(self, ask: Callable[..., bool], rate: RateLimitItem, who: str) -> None:
        if not self._guarded(ask, rate, self._setting, who):
            stats = self._guarded(self._limiter.get_window_stats, rate, self._setting, who)
            raise RateLimitedError(retry_after=max(1, math.ceil(stats.reset_time - time.time())))


def _network(address: str) -> str:
    """Return the unit that is counted: for IPv6 the first 64 bits, as each network has 2**64 addresses to use up."""
    try:
        ipv6 = IPv6Address(address)
    except AddressValueError:
        return address
    if ipv6.ipv4_mapped is not None:
        return str(ipv6.ipv4_mapped)
    return f"{IPv6Address(int(ipv6) >> 64 << 64)}/64"


def _parse(rate: str, setting: str) -> RateLimitItem:
    try:
        item = parse(rate)
    except (TypeError, ValueError, AttributeError):
        item = None
    if item is None or item.amount < 1:
        raise ConfigurationError(f"{setting} is {rate!r}; use a rate such as '20/minute'.")
    return item


# Why a store failed. What a driver says may hold an address, a user's name or what was sent, so none of it
# is repeated.
_READ_ONLY = "The database is read-only: give the primary server's address, or let the app write file and folder."
_FULL = "The database's disk is full: make room there."
_NO_DATABASE = "The database server has no database of this name: make one, or mend the address."
_NO_ENTRY = "The database server does not let this user in: mend user and password, or the server's pg_hba.conf."
_NO_HOST = "The database's host is not known: mend its name in the address."
_REFUSED = (
    "Nothing listens at the database's address: is the server up, and are host and port right?"
)

#: By PostgreSQL's SQLSTATE (its documentation, appendix A), or the beginning of one.
_BY_STATE = {
    "3D000": _NO_DATABASE,
    "28": _NO_ENTRY,
    "25006": _READ_ONLY,
    "53100": _FULL,
    "53300": "The database server has no connection left: raise max_connections, or use fewer workers.",
}
#: While connecting libpq has a text only, the server's own in the server's language.
_BY_TEXT = {
    "password authentication failed": _NO_ENTRY,
    "no password supplied": _NO_ENTRY,
    "no pg_hba.conf entry": _NO_ENTRY,
    'role "': _NO_ENTRY,
    '" does not exist': _NO_DATABASE,
    "failed to resolve host": _NO_HOST,
    "could not translate host name": _NO_HOST,
    "Connection refused": _REFUSED,
}
#: By SQLite's primary result code (sqlite.org/rescode.html).
_BY_SQLITE_CODE = {
    8: _READ_ONLY,
    11: "The SQLite file is damaged: restore it from a backup.",
    13: _FULL,
    14: "The SQLite file cannot be opened: mend its path, or the rights on the file and its folder.",
    26: "The file is not a SQLite database: mend its path.",
}
#: By redis-py's name of the error.
_BY_REDIS_ERROR = {
    "AuthenticationError": "Redis refuses this user or password: mend the address.",
    "NoPermissionError": "Redis does not let this user do what is needed: mend its ACL.",
    "ReadOnlyError": "This Redis is a read-only replica: give the address of the primary server.",
    "OutOfMemoryError": "Redis is full: raise its maxmemory.",
}
_REDIS = "Redis does not answer, or refuses: is it up, and is its address right?"


def reason_of(error: BaseException) -> str | None:
    """Return why a store failed, and what to do; None where nothing more is known."""
    return next(filter(None, map(_reason, _causes(error))), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what SQLAlchemy has wrapped, and what our own was raised for."""
    while error is not None:
        yield error
        driver = getattr(error, "orig", None)
        if isinstance(driver, BaseException):
            yield driver
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str | None:
    if type(error).__module__.startswith("redis."):
        return _BY_REDIS_ERROR.get(type(error).__name__, _REDIS)
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return _BY_SQLITE_CODE.get(code & 0xFF)
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return _BY_STATE.get(state) or _BY_STATE.get(state[:2])
    if type(error).__module__.startswith("psycopg"):
        text = str(error)
        return next((reason for words, reason in _BY_TEXT.items() if words in text), None)
    return None
