"""How often a user, a visitor, and all visitors together may try."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter

from ..errors import ConfigurationError, RateLimitedError

#: All visitors together have this many times the rate of one.
OVERALL = 50

# Prefix of a visitor's owner name; the network address follows.
_VISITOR = "address:"


class RateLimiter:
    """Rejects an owner who asks too often, and visitors if all of them together do.

    Users have no common limit: otherwise visitors, who come and go as they like, could lock users out.

    :param rate: such as ``"20/minute"``.
    :param store: the store of session keys. Attempts are counted in its Redis; beside any other store in this
        process's memory, so each worker counts for itself.
    :param setting: the config key that it came from; limiters of different settings count apart.
    :raises ConfigurationError: the rate cannot be read.
    """

    def __init__(self, rate: str, store: Any = None, *, setting: str) -> None:
        self._setting = setting
        self._each = _parse(rate, setting)
        self._overall = type(self._each)(self._each.amount * OVERALL, self._each.multiples)
        # Not a moving window: limits' memory storage keeps an empty list for each who ever asked.
        client = getattr(store, "client", None)
        storage = MemoryStorage() if client is None else _redis_storage(client)
        self._limiter = FixedWindowRateLimiter(storage)
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
            self._require(self._limiter.hit, self._overall, "*")
        self._require(self._limiter.hit, self._each, owner)

    def _alone(self, function: Callable[..., Any], *args: Any) -> Any:
        # Two threads that start the storage's timer at once would raise an error.
        with self._lock:
            return function(*args)

    def _require(self, ask: Callable[..., bool], rate: RateLimitItem, who: str) -> None:
        if not self._guarded(ask, rate, self._setting, who):
            stats = self._guarded(self._limiter.get_window_stats, rate, self._setting, who)
            raise RateLimitedError(retry_after=max(1, math.ceil(stats.reset_time - time.time())))


def _redis_storage(client: Any) -> RedisStorage:
    # By itself the storage makes a client for an address; ours has the right time limits, and may be a cluster.
    storage = RedisStorage("redis://", connection_pool=None, key_prefix="byok:r")
    storage.storage = client
    storage.initialize_storage("redis://")
    return storage


def _parse(rate: str, setting: str) -> RateLimitItem:
    with suppress(TypeError, ValueError, AttributeError):
        item = parse(rate)
        if item.amount >= 1:
            return item
    raise ConfigurationError(f"{setting} is {rate!r}; use a rate such as '20/minute'.")
