"""How often a user, a visitor, and all visitors together may try."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from random import sample
from threading import Lock
from typing import Any

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter

from ..errors import ConfigurationError, RateLimitedError, StoreError

#: All visitors together have this many times the rate of one.
OVERALL = 50
#: Redis counts them under this many keys, so that a Cluster's node or a busy Redis has no hot one.
_PARTS = 8

# Prefix of a visitor's owner name; the network address follows.
_VISITOR = "address:"


class RateLimiter:
    """Rejects an owner who asks too often, and visitors if all of them together do.

    Users have no common limit: otherwise visitors, who come and go as they like, could lock users out.

    :param rate: such as ``"20/minute"``.
    :param store: the store of session keys. Attempts are counted in its Redis; beside any other store in this
        process's memory, so each worker counts for itself.
    :param app: tells an app's counts from those of other apps in the same Redis.
    :param setting: the config key that it came from; limiters of different settings count apart.
    :raises ConfigurationError: the rate cannot be read.
    """

    def __init__(self, rate: str, store: Any = None, *, setting: str, app: str = "") -> None:
        self._setting = setting
        self._each = _parse(rate, setting)
        # Not a moving window: limits' memory storage keeps an empty list for each who ever asked.
        client = getattr(store, "client", None)
        storage = MemoryStorage() if client is None else _redis_storage(client, app)
        self._limiter = FixedWindowRateLimiter(storage)
        self._overall = _parts(self._each, 1 if client is None else _PARTS)
        self._lock = Lock()
        self._guarded: Callable[..., Any] = self._alone if client is None else store.guarded

    def check(self, owner: str) -> None:
        """Count one attempt of ``user:<id>`` or, for a visitor, ``address:<network>``, see ``Caller.counted_as``.

        :raises RateLimitedError: too many within the time; this attempt is not counted.
        :raises StoreError: Redis does not answer.
        """
        if owner.startswith(_VISITOR):
            # In this order neither count grows by an attempt that the other rejects.
            self._require(self._limiter.test, self._each, owner)
            self._require_of_all()
        self._require(self._limiter.hit, self._each, owner)

    def check_removal(self, owner: str) -> None:
        """Count an attempt to remove a key, which does not depend on the count.

        :raises RateLimitedError: see ``check``.
        """
        with suppress(StoreError):
            self.check(owner)

    def _require_of_all(self) -> None:
        """Count a visitor under a key by chance, and under another one only if that is full."""
        parts = sample(self._overall, len(self._overall))
        for rate, who in parts[:-1]:
            if self._ask(self._limiter.hit, rate, who):
                return
        self._require(self._limiter.hit, *parts[-1])

    def _alone(self, function: Callable[..., Any], *args: Any, changes: bool = False) -> Any:
        # Two threads that start the storage's timer at once would raise an error.
        with self._lock:
            return function(*args)

    def _ask(self, ask: Callable[..., bool], rate: RateLimitItem, who: str) -> bool:
        return bool(self._guarded(ask, rate, self._setting, who, changes=ask == self._limiter.hit))

    def _require(self, ask: Callable[..., bool], rate: RateLimitItem, who: str) -> None:
        if not self._ask(ask, rate, who):
            stats = self._guarded(self._limiter.get_window_stats, rate, self._setting, who)
            raise RateLimitedError(retry_after=max(1, math.ceil(stats.reset_time - time.time())))


def _parts(each: RateLimitItem, count: int) -> list[tuple[RateLimitItem, str]]:
    """Split the cap on all visitors into parts that make it up, each with the name it is counted under."""
    whole, rest = divmod(each.amount * OVERALL, count)
    amounts = [whole + (number < rest) for number in range(count)]
    return [(type(each)(n, each.multiples), f"*{number}") for number, n in enumerate(amounts)]


def _redis_storage(client: Any, app: str) -> RedisStorage:
    # By itself the storage makes a client for an address; ours has the right time limits, and may be a cluster.
    storage = RedisStorage("redis://", connection_pool=None)
    storage.key_prefix = storage.PREFIX = f"byok:r:{app}"  # the second before limits 5.1
    storage.storage = client
    storage.initialize_storage("redis://")
    return storage


def _parse(rate: str, setting: str) -> RateLimitItem:
    with suppress(TypeError, ValueError, AttributeError):
        item = parse(rate)
        if item.amount >= 1:
            return item
    raise ConfigurationError(f"{setting} is {rate!r}; use a rate such as '20/minute'.")
