"""The Redis store, on real servers: single, Cluster, Sentinel, with a replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel, SentinelConnectionPool

from flask_byok.errors import ConfigurationError, StoreError
from flask_byok.keys.sessions import Sessions
from flask_byok.model.owner import SessionRef
from flask_byok.storage import redis as storage
from flask_byok.storage.redis import RedisDocuments
from tests.patience import in_time, short_limits, soon
from tests.services import RedisServer, free_port, wait_until

from .contract import (
    ANN,
    DAY,
    SOME,
    VISITOR,
    MakeDocuments,
    SessionContract,
    begin,
    inside,
    make_record,
    use_of,
)
from .redis_kinds import ClusterServer, ReplicaOf, SecondNode, SentinelServer, TunedRedis


def store_on(client_or_url: Any, *, wait: int = 0, **lifetime: timedelta) -> Sessions:
    """Make a store with an ordinary lifetime."""
    documents = RedisDocuments(client_or_url, wait=wait)
    return Sessions(documents, **{"ttl": DAY, "max_age": 30 * DAY, **lifetime})


class TestSingle(SessionContract):
    """One Redis passes the contract."""

    @pytest.fixture
    def make_documents(self, redis_url: str) -> MakeDocuments:
        """Open it by its address."""
        return lambda: RedisDocuments(redis_url)


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


class TestCluster(SessionContract):
    """A Cluster passes the contract."""

    @pytest.fixture
    def make_documents(self, cluster: RedisCluster) -> MakeDocuments:
        """Open it by the host's client."""
        return lambda: RedisDocuments(cluster)


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
    close(sentinel)


def close(sentinel: Sentinel) -> None:
    """Close a client of Sentinels; redis-py 5 has no method for that."""
    for each in sentinel.sentinels:
        each.close()


class TestSentinel(SessionContract):
    """A master behind Sentinel passes the contract."""

    @pytest.fixture
    def make_documents(self, master: redis.Redis) -> MakeDocuments:
        """Open it by the host's client."""
        return lambda: RedisDocuments(master)


def test_kept_connections_follow_sentinel() -> None:
    """Once a connection has found the new primary server, those kept to the old one are used no more."""

    class Named(Sentinel):
        """Stands for Sentinels that name another server."""

        def discover_master(self, name: str) -> tuple[str, int]:
            return "127.0.0.1", port

    with TunedRedis() as old, TunedRedis() as new:
        port = old.port
        pool = SentinelConnectionPool("keys", Named([]))
        documents = RedisDocuments(redis.Redis(connection_pool=pool))
        own = documents.client.connection_pool
        first = own.get_connection(*storage._NAME)
        assert documents.swap("r", None, "1" * 16, b"old", 60)
        own.release(first)
        port = new.port
        own.reset()
        own.release(own.get_connection(*storage._NAME))
        assert documents.load("r") is None
        assert documents.swap("r", None, "2" * 16, b"new", 60)
        with redis.Redis(port=new.port) as client:
            assert client.dbsize() == 1


@pytest.mark.parametrize("identity", [VISITOR, ANN])
def test_commands(redis_url: str, identity: str) -> None:
    """Reading any number of providers is one plain command; a write reads the document and swaps it by a script."""
    store = store_on(redis_url)
    session = begin(store)
    client = inside(store).client

    def commands(call: Callable[[], object]) -> dict[str, int]:
        client.config_resetstat()
        call()
        stats = client.info("commandstats")
        counts = {name.removeprefix("cmdstat_"): found["calls"] for name, found in stats.items()}
        return {name: count for name, count in counts.items() if "config" not in name}

    def write() -> None:
        store.write(session, identity, make_record())

    write()
    assert commands(lambda: store.read(session, identity, SOME)) == {"get": 1}
    # The script reads and writes; the session id is touched only once its lifetime slides.
    assert commands(write) == {"get": 1, "eval": 1, "getrange": 1, "set": 1}


def test_host_client_lends_its_address_only(redis_url: str) -> None:
    """A host's patient, decoding client keeps its settings, and ours has our own."""
    host = redis.Redis.from_url(redis_url, socket_timeout=30, decode_responses=True)
    with short_limits():
        store = store_on(host)
    session = begin(store)
    store.write(session, VISITOR, record := make_record())
    assert store.read(session, VISITOR, SOME).records == {"openai": record}
    assert host.get(f"byok:m:{{{session.sid}}}") == session.ref
    ours = inside(store).client.connection_pool.connection_kwargs
    assert (ours["socket_connect_timeout"], ours["socket_timeout"]) == (0.25, 0.25)
    assert host.connection_pool.connection_kwargs["socket_timeout"] == 30
    host.close()


def test_everything_expires(redis_url: str) -> None:
    """Nothing of a session stays in Redis for longer than a lifetime; of an ended one only that it has ended."""
    store = store_on(redis_url, ttl=timedelta(minutes=10), max_age=timedelta(minutes=5))
    for number in range(3):
        session = begin(store, f"sid-{number}")
        store.write(session, VISITOR, make_record())
    store.end(session)
    store.renew(begin(store, "sid-old"), "sid-new")
    client = inside(store).client
    kept = {key.split(b":")[1]: client.ttl(key) for key in client.scan_iter("byok:*")}
    assert len(list(client.scan_iter("byok:d:*"))) == 3
    assert len(list(client.scan_iter("byok:*"))) == 8
    assert 0 < kept[b"d"] <= 300
    assert 0 < kept[b"m"] <= 600
    store.documents.hold("key", "sealed")
    assert client.ttl("byok:canary:key") == -1, "what tells a wrong encryption key stays"


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


def assert_fails_fast(store: Sessions, session: SessionRef) -> None:
    """Fail unless two faults open the breaker, after which no call waits."""
    with soon():
        for _ in range(2):
            assert not inside(store).breaker.is_open
            with pytest.raises(StoreError):
                store.read(session, VISITOR, SOME)
    assert inside(store).breaker.is_open
    with soon():
        for _ in range(200):
            with pytest.raises(StoreError):
                store.write(session, VISITOR, make_record())


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
            short_limits(),
        ):
            store = store_on(client)
        session = begin(store)
        server.stop_process()
        assert_fails_fast(store, session)
        with in_time(), pytest.raises(StoreError):
            store_on(client)
        server.cont()
        wait_until(lambda: store.find(session.sid), "store")


def test_stopped_sentinel() -> None:
    """A master and a Sentinel that do not answer fail fast and come back."""
    with TunedRedis() as master, SentinelServer(master) as server:
        sentinel = Sentinel([("127.0.0.1", server.port)])
        with sentinel.master_for("keys") as client, short_limits():
            store = store_on(client)
        close(sentinel)
        session = begin(store)
        for process in (master, server):
            process.stop_process()
        assert_fails_fast(store, session)
        for process in (master, server):
            process.cont()
        wait_until(lambda: store.find(session.sid), "store")


def test_replica_acknowledges() -> None:
    """With BYOK_REDIS_WAIT a change counts only once a replica has it; reading goes on without."""
    with TunedRedis(repl_diskless_sync_delay=0) as primary, ReplicaOf(primary) as replica:
        store = store_on(primary.url, wait=1)
        session = begin(store)
        store.write(session, VISITOR, record := make_record())
        with redis.Redis.from_url(replica.url) as copy:
            assert b"sealed" in copy.get(f"byok:d:{{{session.ref}}}")
        replica.stop_process()
        with pytest.raises(StoreError):
            store.clear(session, VISITOR, ["openai"])
        for change in (
            lambda: store.write(session, VISITOR, record),
            lambda: store.renew(session, "sid-new"),
            lambda: store.end(session),
            lambda: store.documents.hold("key", "sealed"),
        ):
            with pytest.raises(StoreError, match="replicas"):
                change()
        assert not inside(store).breaker.is_open
        assert not store.read(session, VISITOR, SOME).alive
        replica.cont()


def test_cluster_without_replicas(cluster: RedisCluster) -> None:
    """On a Cluster too, a change that too few replicas have fails."""
    session, store = begin(store_on(cluster)), store_on(cluster, wait=1)
    for _ in range(2):
        with pytest.raises(StoreError, match="replicas"):
            store.write(session, VISITOR, make_record())
    assert not inside(store).breaker.is_open


@pytest.mark.parametrize("wait", [0, 1])
def test_slot_that_moves(wait: int) -> None:
    """A session whose slot has moved to another node is found there, with and without waiting."""
    with ClusterServer() as server, SecondNode(server) as second:
        with RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port)]) as client:
            documents = RedisDocuments(client, wait=wait)
            second.take(client.keyslot("ref"))
        written = ("ref", None, "0" * 16, b"body", 60)
        if wait:  # there is no replica, but it was written
            with pytest.raises(StoreError, match="replicas"):
                documents.swap(*written)
        else:
            assert documents.swap(*written)
        assert documents.load("ref") == ("0" * 16, b"body")
        with redis.Redis.from_url(second.url) as there:
            assert there.exists("byok:d:{ref}")


def test_wrong_kind_of_value(redis_url: str) -> None:
    """One damaged session is a StoreError of its own and does not open the breaker."""
    store = store_on(redis_url)
    session = begin(store)
    inside(store).client.delete(key := f"byok:d:{{{session.ref}}}")
    inside(store).client.hset(key, "not", "a document")
    for _ in range(5):
        with pytest.raises(StoreError):
            store.read(session, VISITOR, SOME)
    assert not inside(store).breaker.is_open


def test_counts_that_fail_keep_no_request_from_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """While counts for a node of a Cluster that is frozen fail, the sessions of the others are read as ever."""
    with ClusterServer() as server, SecondNode(server) as second:
        with RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port)]) as client:
            store = store_on(client)
            there, here = begin(store, "sid-there"), begin(store, "sid-here")
            revision, body = store.documents.load(there.ref) or ("", b"")
            store.documents.delete(there.ref)  # only an empty slot moves
            second.take(client.keyslot(there.ref))
            assert store.documents.swap(there.ref, None, revision, body, 3600)
        store.write(there, VISITOR, record := make_record())
        store.write(here, VISITOR, other := make_record())
        with redis.Redis.from_url(server.url) as first:
            first.config_set("cluster-node-timeout", 60_000)  # until then it serves what it has
        second.stop_process()
        monkeypatch.setattr(storage, "TIMEOUT", 1)
        hasty = store_on(inside(store).client)
        for _ in range(3):
            for _ in range(2):
                with pytest.raises(StoreError):
                    hasty.count(use_of(there, record))
            assert hasty.read(here, VISITOR, SOME).records == {"openai": other}
        assert not inside(hasty).breaker.is_open
        assert hasty._counts.breaker.is_open, "so that counts do not wait for it again and again"
        second.cont()
