"""Rate limits, counted in memory, in Redis and in a Cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import redis
from limits.storage import MemoryStorage
from redis.cluster import ClusterNode, RedisCluster

from flask_byok.errors import ConfigurationError, RateLimitedError, StoreError
from flask_byok.model.owner import Caller
from flask_byok.storage.rates import OVERALL, RateLimiter
from flask_byok.storage.redis import RedisDocuments
from flask_byok.storage.sql import SqlDocuments
from tests.services import RedisServer
from tests.storage.redis_kinds import ClusterServer

SETTING = "BYOK_VALIDATE_RATE"


@pytest.fixture
def in_cluster() -> Iterator[Any]:
    """Count in a Cluster."""
    with ClusterServer() as server:
        with RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port)]) as client:
            store = RedisDocuments(client)
        yield store


@pytest.fixture
def in_redis(redis_url: str) -> Any:
    """Count in Redis."""
    return RedisDocuments(redis_url)


@pytest.fixture
def in_memory(sqlite_url: str) -> Any:
    """Count in this process, as beside a database."""
    return SqlDocuments(sqlite_url)


@pytest.fixture(params=["in_memory", "in_redis", "in_cluster"])
def storage(request: pytest.FixtureRequest) -> Any:
    """Count in each place in turn."""
    return request.getfixturevalue(request.param)


def _counted(limiter: RateLimiter) -> list[str]:
    """Return the names of all that takes up memory."""
    parts = vars(limiter._limiter.storage)
    return [*parts["storage"], *parts["events"]]


def test_owner_is_refused_after_the_rate(storage: Any) -> None:
    """An owner may do so many, then waits some seconds; another owner and another setting count apart."""
    limiter = RateLimiter("3/minute", storage, setting=SETTING)
    for _ in range(3):
        limiter.check("user:ann")
    limiter.check("user:ben")
    RateLimiter("3/minute", storage, setting="BYOK_SET_RATE").check("user:ann")
    with pytest.raises(RateLimitedError) as caught:
        limiter.check("user:ann")
    assert 50 <= caught.value.retry_after <= 60


def test_visitors_together_are_limited(storage: Any) -> None:
    """Many visitors together may do fifty times what one may; users neither count with them nor are refused."""
    limiter = RateLimiter("1/minute", storage, setting=SETTING)
    for number in range(OVERALL):
        limiter.check(f"user:{number}")
        limiter.check(f"address:192.0.2.{number}")
        with pytest.raises(RateLimitedError):  # which does not count for the others
            limiter.check("address:192.0.2.0")
    with pytest.raises(RateLimitedError):
        limiter.check("address:198.51.100.1")
    limiter.check("user:ann")


def test_visitors_together_are_no_hot_key(redis_url: str) -> None:
    """Redis counts all visitors together under several keys."""
    limiter = RateLimiter("1/minute", RedisDocuments(redis_url), setting=SETTING)
    for number in range(OVERALL):
        limiter.check(f"address:192.0.2.{number}")
    with redis.Redis.from_url(redis_url) as client:
        assert len([key for key in client.scan_iter() if b"address" not in key]) > 4


def test_refusal_of_all_costs_an_address_nothing(in_memory: Any) -> None:
    """An attempt that is refused because of others is not counted as the visitor's own, nor remembered."""
    limiter = RateLimiter("1/hour", in_memory, setting=SETTING)
    for number in range(OVERALL):
        limiter.check(f"address:192.0.2.{number}")
    counted = set(_counted(limiter))
    for number in range(256):
        with pytest.raises(RateLimitedError):
            limiter.check(f"address:198.51.100.{number}")
    assert set(_counted(limiter)) == counted


def test_counts_leave_the_memory(in_memory: Any) -> None:
    """A count that is over is forgotten: memory does not grow with those who were here once."""
    limiter = RateLimiter("1/second", in_memory, setting=SETTING)
    for number in range(40):
        limiter.check(f"user:{number}")
    time.sleep(1.1)
    limiter.check("user:last")
    time.sleep(0.1)  # the storage tidies up 10 ms after an attempt
    assert len(_counted(limiter)) == 1


def test_memory_counts_one_by_one(in_memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads never meet in the storage in memory, where two that start its timer at once would raise an error."""
    inside, most, count = [0], [0], MemoryStorage.incr

    def watched(*args: Any, **options: Any) -> int:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return count(*args, **options)

    monkeypatch.setattr(MemoryStorage, "incr", watched)
    limiter = RateLimiter("1000/minute", in_memory, setting=SETTING)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: limiter.check(f"user:{number}"), range(16)))
    assert most == [1]


def test_what_counts_as_one_address() -> None:
    """An IPv6 network of 64 bits is one address, as everybody has at least one; an IPv4 address is itself."""
    for first, second, together in (
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "", True),
        ("unix:", "192.0.2.1", False),
    ):
        limiter = RateLimiter("1/minute", setting=SETTING)
        limiter.check(Caller(address=first).counted_as)
        with pytest.raises(RateLimitedError) if together else nullcontext():
            limiter.check(Caller(address=second).counted_as)


def test_workers_share_the_count_in_redis(redis_url: str) -> None:
    """Two workers on one Redis count together."""
    one, other = (
        RateLimiter("1/minute", RedisDocuments(redis_url), setting=SETTING) for _ in range(2)
    )
    one.check("user:ann")
    with pytest.raises(RateLimitedError):
        other.check("user:ann")


def test_killed_redis_is_a_store_error() -> None:
    """A Redis that does not answer refuses by StoreError, through the store's own breaker."""
    with RedisServer() as server:
        store = RedisDocuments(server.url)
        limiter = RateLimiter("9/minute", store, setting=SETTING)
        limiter.check("user:ann")
        server.kill()
        for _ in range(3):
            with pytest.raises(StoreError):
                limiter.check("user:ann")
        assert store.breaker.is_open


def test_unusable_rate() -> None:
    """What is no rate is refused by the name of its setting."""
    unusable: list[Any] = ["", "often", "0/minute", "-1/minute", "5", None, 5]
    for rate in unusable:
        with pytest.raises(ConfigurationError, match=SETTING):
            RateLimiter(rate, setting=SETTING)
