"""The Redis store, on real servers: single, Cluster, Sentinel, with a replica."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel

from flask_byok.errors import ConfigurationError, StoreError
from flask_byok.keys.session_store import SessionStore
from flask_byok.keys.traffic import Traffic
from flask_byok.model.owner import SessionRef
from flask_byok.storage import redis_client
from flask_byok.storage.breaker import Breaker
from flask_byok.storage.redis import RedisSessionStore
from tests.patience import everyday_limits, in_time, soon
from tests.services import RedisServer, free_port, wait_until

from .contract import (
    ANN,
    DAY,
    SOME,
    VISITOR,
    MakeStore,
    SessionStoreContract,
    begin,
    make_record,
    use_of,
)
from .redis_kinds import ClusterServer, ReplicaOf, SecondNode, SentinelServer, TunedRedis


def store_on(client_or_url: Any, **options: Any) -> RedisSessionStore:
    """Make a store with an ordinary lifetime."""
    return RedisSessionStore(client_or_url, **{"ttl": DAY, "max_age": 30 * DAY, **options})


class RedisContract(SessionStoreContract):
    """How the contract reaches into a Redis."""

    def overwrite(self, store: SessionStore, session: SessionRef, raw: str) -> None:
        """Write to the hash past the store."""
        assert isinstance(store, RedisSessionStore)
        store.client.hset(f"byok:h:{{{session.ref}}}", "k:v:openai", raw)


class TestRedisSessionStore(RedisContract):
    """One Redis passes the contract."""

    @pytest.fixture
    def make_store(self, redis_url: str) -> MakeStore:
        """Make stores from the address."""
        return lambda **options: RedisSessionStore(redis_url, **options)


@pytest.fixture(scope="module")
def cluster_server() -> Iterator[ClusterServer]:
    """Run one Cluster for this module."""
    with ClusterServer() as server:
        yield server


@pytest.fixture
def cluster(cluster_server: ClusterServer) -> Iterator[RedisCluster]:
    """Make a client for an empty Cluster, as a host would."""
    with RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", cluster_server.port)]) as client:
        client.flushall()
        yield client


class TestCluster(RedisContract):
    """A Cluster passes the contract."""

    @pytest.fixture
    def make_store(self, cluster: RedisCluster) -> MakeStore:
        """Make stores from the host's client."""
        return lambda **options: RedisSessionStore(cluster, **options)


@pytest.fixture(scope="module")
def sentinel_server() -> Iterator[SentinelServer]:
    """Run a master and its Sentinel for this module."""
    with TunedRedis() as master, SentinelServer(master) as server:
        yield server


@pytest.fixture
def master(sentinel_server: SentinelServer) -> Iterator[redis.Redis]:
    """Make a client for an empty master, as a host would."""
    sentinel = Sentinel([("127.0.0.1", sentinel_server.port)])
    with sentinel.master_for("keys") as client:
        client.flushall()
        yield client
    sentinel.close()


class TestSentinel(RedisContract):
    """A master behind Sentinel passes the contract."""

    @pytest.fixture
    def make_store(self, master: redis.Redis) -> MakeStore:
        """Make stores from the host's client."""
        return lambda **options: RedisSessionStore(master, **options)


@pytest.mark.parametrize("identity", [VISITOR, ANN])
def test_read_is_one_command(redis_url: str, identity: str) -> None:
    """Reading any number of providers is one round trip: one plain command, no script."""
    store = store_on(redis_url)
    session = begin(store)
    store.write(session, identity, make_record())
    store.client.config_resetstat()
    for _ in range(5):
        assert store.read(session, identity, SOME).records
    calls = {name: stats["calls"] for name, stats in store.client.info("commandstats").items()}
    assert calls == {"cmdstat_config|resetstat": 1, "cmdstat_hmget": 5}


def test_host_client_lends_its_address_only(redis_url: str) -> None:
    """A host's patient, decoding client keeps its settings, and ours has our own."""
    host = redis.Redis.from_url(redis_url, socket_timeout=30, decode_responses=True)
    with everyday_limits():
        store = store_on(host)
    session = begin(store)
    store.write(session, VISITOR, record := make_record())
    assert store.read(session, VISITOR, SOME).records == {"openai": record}
    assert host.get(f"byok:m:{{{session.sid}}}") == session.ref
    ours = store.client.connection_pool.connection_kwargs
    assert (ours["socket_connect_timeout"], ours["socket_timeout"]) == (0.1, 0.25)
    assert host.connection_pool.connection_kwargs["socket_timeout"] == 30
    host.close()


def test_canary_outlives_sessions(redis_url: str) -> None:
    """What tells a wrong encryption key stays for as long as Redis does."""
    store = store_on(redis_url)
    store.canary("key", "sealed")
    assert store.client.ttl("byok:canary:key") == -1


def test_everything_expires(redis_url: str) -> None:
    """No key stays in Redis for longer than a lifetime, living or ended."""
    store = store_on(redis_url, ttl=timedelta(minutes=10), max_age=timedelta(minutes=5))
    for number in range(3):
        session = begin(store, f"sid-{number}")
        store.write(session, VISITOR, make_record())
    store.end(session)
    store.renew(begin(store, "sid-old"), "sid-new")
    found = [store.client.ttl(key) for key in store.client.scan_iter("byok:*")]
    assert len(found) == 7
    assert all(0 < seconds <= 600 for seconds in found)
    living = [store.client.ttl(f"byok:h:{{{store.find(f'sid-{n}')}}}") for n in range(2)]
    assert all(seconds <= 300 for seconds in living)


def test_ended_session_keeps_no_ciphertext(redis_url: str) -> None:
    """What an ended session leaves is the mark alone."""
    store = store_on(redis_url)
    session = begin(store)
    store.write(session, VISITOR, make_record())
    store.end(session)
    assert list(store.client.scan_iter("*")) == [f"byok:h:{{{session.ref}}}".encode()]
    assert store.client.hgetall(f"byok:h:{{{session.ref}}}") == {b"_": b"-"}


@pytest.mark.parametrize("value", ["http://u:hunter22@host", "hunter22", 22, object()])
def test_unusable_setting(value: Any) -> None:
    """What is no Redis is refused by the name of its setting, without its value."""
    with pytest.raises(ConfigurationError, match="BYOK_REDIS") as caught:
        store_on(value)
    assert "hunter22" not in str(caught.value)


def test_failure_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that cannot be reached is a StoreError of the session tier, without the URL."""
    store = store_on(f"redis://ann:hunter22@127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreError) as caught:
        store.find("sid-1")
    assert caught.value.tier == "session"
    assert caught.value.__suppress_context__
    assert "hunter22" not in f"{caught.value!r} {caught.value.__context__!r} {caplog.text}"


def assert_fails_fast(store: RedisSessionStore, session: SessionRef) -> None:
    """Fail unless two faults open the breaker, after which nobody waits."""
    with soon():
        for _ in range(2):
            assert not store.breaker.is_open
            with pytest.raises(StoreError):
                store.read(session, VISITOR, SOME)
    assert store.breaker.is_open
    with soon():
        for _ in range(200):
            with pytest.raises(StoreError):
                store.write(session, VISITOR, make_record())


def test_killed_redis() -> None:
    """A killed Redis fails fast and is used again soon after it is back."""
    with RedisServer() as server:
        store = store_on(server.url)
        session = begin(store)
        server.kill()
        assert_fails_fast(store, session)
        server.start()
        wait_until(lambda: store.establish("sid-2"), "store", timeout=5)
        assert not store.breaker.is_open


def test_stopped_redis() -> None:
    """A Redis that accepts and does not answer fails fast, and has lost nothing once it goes on."""
    with RedisServer() as server:
        with everyday_limits():
            store = store_on(server.url)
        session = begin(store)
        store.write(session, VISITOR, record := make_record())
        server.stop_process()
        assert_fails_fast(store, session)
        server.cont()
        wait_until(lambda: store.find(session.sid), "store", timeout=5)
        assert store.read(session, VISITOR, SOME).records == {"openai": record}


def test_restarted_redis_costs_no_call(redis_url: str) -> None:
    """Connections that a restart has closed are replaced unseen, and scripts are sent again."""
    with RedisServer() as server:
        store = store_on(server.url)
        begin(store)
        server.restart()
        session = begin(store)
        store.write(session, VISITOR, record := make_record())
        assert store.read(session, VISITOR, SOME).records == {"openai": record}


def test_stopped_cluster() -> None:
    """A Cluster that does not answer fails fast and comes back."""
    with ClusterServer() as server:
        with (
            RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port)]) as client,
            everyday_limits(),
        ):
            store = store_on(client)
        session = begin(store)
        server.stop_process()
        assert_fails_fast(store, session)
        with in_time(), pytest.raises(StoreError):
            store_on(client)
        server.cont()
        wait_until(lambda: store.find(session.sid), "store", timeout=5)


def test_stopped_sentinel() -> None:
    """A master and a Sentinel that do not answer fail fast and come back."""
    with TunedRedis() as master, SentinelServer(master) as server:
        sentinel = Sentinel([("127.0.0.1", server.port)])
        with sentinel.master_for("keys") as client, everyday_limits():
            store = store_on(client)
        sentinel.close()
        session = begin(store)
        for process in (master, server):
            process.stop_process()
        assert_fails_fast(store, session)
        for process in (master, server):
            process.cont()
        wait_until(lambda: store.find(session.sid), "store", timeout=5)


def test_replica_acknowledges() -> None:
    """With BYOK_REDIS_WAIT a change counts only once a replica has it; reading goes on without."""
    with TunedRedis(repl_diskless_sync_delay=0) as primary, ReplicaOf(primary) as replica:
        store = store_on(primary.url, wait=1)
        session = begin(store)
        store.write(session, VISITOR, record := make_record())
        with redis.Redis.from_url(replica.url) as copy:
            assert copy.hexists(f"byok:h:{{{session.ref}}}", "k:v:openai")
        replica.stop_process()
        with pytest.raises(StoreError):
            store.clear(session, VISITOR, ["openai"])
        for change in (
            lambda: store.write(session, VISITOR, record),
            lambda: store.renew(session, "sid-new"),
            lambda: store.end(session),
            lambda: store.canary("key", "sealed"),
        ):
            with pytest.raises(StoreError, match="replicas"):
                change()
        assert not store.breaker.is_open
        assert not store.read(session, VISITOR, SOME).alive
        replica.cont()


def test_cluster_without_replicas(cluster: RedisCluster) -> None:
    """On a Cluster too, a change that too few replicas have fails."""
    store = store_on(cluster, wait=1)
    session = begin(store)
    for _ in range(2):
        with pytest.raises(StoreError, match="replicas"):
            store.write(session, VISITOR, make_record())
    assert not store.breaker.is_open


@pytest.mark.parametrize("wait", [0, 1])
def test_slot_that_moves(wait: int) -> None:
    """A session whose slot has moved to another node is found there, with and without waiting."""
    with ClusterServer() as server, SecondNode(server) as second:
        with RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port)]) as client:
            store = store_on(client, wait=wait)
            session = begin(store)
            second.take(client.keyslot(session.ref))
        if wait:  # there is no replica, but it was written
            with pytest.raises(StoreError, match="replicas"):
                store.write(session, VISITOR, make_record())
        else:
            store.write(session, VISITOR, make_record())
        assert store.read(session, VISITOR, SOME).records
        with redis.Redis.from_url(second.url) as there:
            assert there.exists(f"byok:h:{{{session.ref}}}")


def test_wrong_kind_of_value(redis_url: str) -> None:
    """One damaged session is a StoreError of its own and opens the breaker for nobody."""
    store = store_on(redis_url)
    session = begin(store)
    store.client.set(f"byok:h:{{{session.ref}}}", "not a hash")
    for _ in range(5):
        with pytest.raises(StoreError):
            store.read(session, VISITOR, SOME)
    assert not store.breaker.is_open


def test_counts_that_fail_keep_no_request_from_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """While counts for a node of a Cluster that is frozen fail, the sessions of the others are read as ever."""
    with ClusterServer() as server, SecondNode(server) as second:
        with RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port)]) as client:
            store = store_on(client)
            there, here = begin(store, "sid-there"), begin(store, "sid-here")
            second.take(client.keyslot(there.ref))
        store.write(there, VISITOR, record := make_record())
        store.write(here, VISITOR, other := make_record())
        with redis.Redis.from_url(server.url) as first:
            first.config_set("cluster-node-timeout", 60_000)  # until then it serves what it has
        second.stop_process()
        monkeypatch.setattr(redis_client, "CLUSTER_READ_TIMEOUT", 1)
        hasty = store_on(store.client)
        for _ in range(3):
            for _ in range(2):
                with pytest.raises(StoreError):
                    hasty.count(use_of(there, record))
            assert hasty.read(here, VISITOR, SOME).records == {"openai": other}
        assert not hasty.breaker.is_open
        assert hasty._aside.is_open, "so that counts do not wait for it again and again"
        second.cont()


def test_a_frozen_redis_loses_no_use() -> None:
    """Uses that reach a frozen Redis, which does not answer, are counted once it goes on; some of them twice."""
    with RedisServer() as server:
        store = store_on(server.url)
        session, record = begin(store), make_record()
        store.write(session, VISITOR, record)
        with everyday_limits(redis_client):
            hasty = store_on(server.url)
        recorder = Traffic(None, 3600, count=hasty.count)
        note = partial(recorder.note_in_session, session.ref, "openai", record.version, "used")
        note()
        wait_until(lambda: answers(recorder), "a connection")
        note()
        server.stop_process()
        for _ in range(4):
            with pytest.raises(StoreError):
                recorder.flush()
            hasty._aside = Breaker()  # which would ask no more
            note()
        server.cont()
        wait_until(lambda: answers(recorder), "Redis")
        assert store.read(session, VISITOR, ["openai"]).records["openai"].usage_count >= 6


def answers(recorder: Traffic) -> bool:
    """Hand uses over, and say whether the store took them."""
    try:
        recorder.flush()
    except StoreError:
        return False
    return True
