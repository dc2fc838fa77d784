"""Rate limits, counted in memory, in Redis and in a Cluster."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from redis.cluster import ClusterNode, RedisCluster

from flask_byok.errors import ConfigurationError, RateLimitedError, StoreError
from flask_byok.stores.rates import OVERALL, RateLimiter, RateStorage
from flask_byok.stores.redis import RedisSessionStore
from flask_byok.stores.sql import SqlSessionStore
from tests.services import RedisServer

from .redis_kinds import ClusterServer

SETTING = "BYOK_VALIDATE_RATE"
LIFETIME = {"ttl": timedelta(days=1), "max_age": timedelta(days=30)}


@pytest.fixture
def in_cluster() -> Iterator[RateStorage]:
    """Count in a Cluster."""
    with ClusterServer() as server:
        with RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port)]) as client:
            store = RedisSessionStore(client, **LIFETIME)
        yield RateStorage.beside(store)


@pytest.fixture
def in_redis(redis_url: str) -> RateStorage:
    """Count in Redis."""
    return RateStorage.beside(RedisSessionStore(redis_url, **LIFETIME))


@pytest.fixture
def in_memory(sqlite_url: str) -> RateStorage:
    """Count in this process, as beside a database."""
    return RateStorage.beside(SqlSessionStore(sqlite_url, **LIFETIME))


@pytest.fixture(params=["in_memory", "in_redis", "in_cluster"])
def storage(request: pytest.FixtureRequest) -> RateStorage:
    """Count in each place in turn."""
    place: RateStorage = request.getfixturevalue(request.param)
    return place


def test_owner_is_refused_after_the_rate(storage: RateStorage) -> None:
    """An owner may do so many, and is then told how many seconds to wait."""
    limiter = RateLimiter("3/minute", storage, setting=SETTING)
    for _ in range(3):
        limiter.check("user:ann")
    with pytest.raises(RateLimitedError) as caught:
        limiter.check("user:ann")
    assert 50 <= caught.value.retry_after <= 60


def test_owners_and_settings_count_apart(storage: RateStorage) -> None:
    """Another owner, and another setting, has its own count."""
    limiter = RateLimiter("1/minute", storage, setting=SETTING)
    limiter.check("user:ann")
    limiter.check("user:ben")
    RateLimiter("1/minute", storage, setting="BYOK_SET_RATE").check("user:ann")
    with pytest.raises(RateLimitedError):
        limiter.check("user:ann")


def test_all_together_are_limited(storage: RateStorage) -> None:
    """Many owners together may do fifty times what one may."""
    limiter = RateLimiter("1/minute", storage, setting=SETTING)
    for number in range(OVERALL):
        limiter.check(f"session:{number}")
    with pytest.raises(RateLimitedError):
        limiter.check("session:new")


def test_workers_share_the_count_in_redis(redis_url: str) -> None:
    """Two workers on one Redis count together."""
    limiters = [
        RateLimiter(
            "1/minute",
            RateStorage.beside(RedisSessionStore(redis_url, **LIFETIME)),
            setting=SETTING,
        )
        for _ in range(2)
    ]
    limiters[0].check("user:ann")
    with pytest.raises(RateLimitedError):
        limiters[1].check("user:ann")


def test_count_expires(in_redis: RateStorage) -> None:
    """The wait is over when it was said to be."""
    limiter = RateLimiter("1/second", in_redis, setting=SETTING)
    limiter.check("user:ann")
    with pytest.raises(RateLimitedError) as caught:
        limiter.check("user:ann")
    assert caught.value.retry_after == 1


def test_killed_redis_is_a_store_error() -> None:
    """A Redis that does not answer refuses by StoreError, through the store's own breaker."""
    with RedisServer() as server:
        store = RedisSessionStore(server.url, **LIFETIME)
        limiter = RateLimiter("9/minute", RateStorage.beside(store), setting=SETTING)
        limiter.check("user:ann")
        server.kill()
        for _ in range(3):
            with pytest.raises(StoreError):
                limiter.check("user:ann")
        assert store.breaker.is_open


@pytest.mark.parametrize("rate", ["", "often", "0/minute", "-1/minute", "5", None, 5])
def test_unusable_rate(rate: Any) -> None:
    """What is no rate is refused by the name of its setting."""
    with pytest.raises(ConfigurationError, match=SETTING):
        RateLimiter(rate, RateStorage.in_memory(), setting=SETTING)
