"""The Redis store, on real servers: single, Cluster, Sentinel, with a replica."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from flask_byok.stores.redis import RedisSessionStore

from .contract import MakeStore, SessionStoreContract


class TestRedisSessionStore(SessionStoreContract):
    """One Redis passes the contract."""

    @pytest.fixture
    def make_store(self, redis_url: str) -> MakeStore:
        """Make stores from the address."""
        return lambda **options: RedisSessionStore(redis_url, **options)
