"""How often an owner may try a key, since checking keys is an oracle for stolen ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, RedisStorage, Storage
from limits.strategies import MovingWindowRateLimiter

from ..errors import ConfigurationError, RateLimitedError

#: All owners together may do this many times what one may.
OVERALL = 50


@dataclass(frozen=True, slots=True)
class RateStorage:
    """Where attempts are counted, and how to ask there without hanging."""

    storage: Storage
    guarded: Callable[..., Any]

    @classmethod
    def in_memory(cls) -> RateStorage:
        """Count in this process; each worker then counts for itself."""
        return cls(MemoryStorage(), lambda function, *args: function(*args))

    @classmethod
    def beside(cls, store: Any) -> RateStorage:
        """Count where a session store keeps its keys if that is Redis, else in this process."""
        client = getattr(store, "client", None)
        if client is None:
            return cls.in_memory()
        # The storage makes a client for an address; ours has the right time limits, and may be a
        # cluster.
        storage = RedisStorage("redis://", connection_pool=None, key_prefix="byok:r")
        storage.storage = client
        storage.initialize_storage("redis://")
        return cls(storage, store.guarded)


class RateLimiter:
    """Refuses an owner who asks too often, and everybody when all together do.

    :param rate: such as ``"20/minute"``.
    :param setting: the config key that it came from; limiters of different settings count apart.
    :raises ConfigurationError: the rate cannot be read.
    """

    def __init__(self, rate: str, storage: RateStorage, *, setting: str) -> None:
        self._setting = setting
        self._each = _parse(rate, setting)
        self._overall = type(self._each)(self._each.amount * OVERALL, self._each.multiples)
        self._limiter = MovingWindowRateLimiter(storage.storage)
        self._guarded = storage.guarded

    def check(self, owner: str) -> None:
        """Count one attempt.

        :raises RateLimitedError: too many within the time; this one is not counted.
        :raises StoreError: Redis does not answer.
        """
        for rate, who in ((self._each, owner), (self._overall, "*")):
            if not self._guarded(self._limiter.hit, rate, self._setting, who):
                stats = self._guarded(self._limiter.get_window_stats, rate, self._setting, who)
                wait = math.ceil(stats.reset_time - time.time())
                raise RateLimitedError(retry_after=max(1, wait))


def _parse(rate: str, setting: str) -> RateLimitItem:
    try:
        item = parse(rate)
    except (TypeError, ValueError, AttributeError):
        item = None
    if item is None or item.amount < 1:
        raise ConfigurationError(f"{setting} is {rate!r}; use a rate such as '20/minute'.")
    return item
