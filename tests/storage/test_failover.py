"""A primary server that is killed under load: no change that was acknowledged is lost with BYOK_REDIS_WAIT."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel

from flask_byok.errors import StoreError
from flask_byok.storage.redis import RedisDocuments
from tests.services import RedisServer, free_port, wait_until

from .redis_kinds import ReplicaOf, SentinelServer, TunedRedis

#: Writers at once, and the changes that are acknowledged before and after the failover.
WRITERS, BEFORE, AFTER = 8, 500, 500
#: Seconds that a failover may take on a busy machine.
PATIENCE = 60
pytestmark = pytest.mark.stress


@contextmanager
def _writing(store: RedisDocuments) -> Iterator[list[str]]:
    """Store one document after another on several threads; yield the refs of those that were acknowledged."""
    acknowledged: list[str] = []
    numbers, ends = itertools.count(), threading.Event()

    def write() -> None:
        while not ends.is_set():
            ref = f"ref-{next(numbers)}"
            try:
                store.swap(ref, None, "1" * 16, ref.encode(), 3600)
            except StoreError:
                time.sleep(0.01)
            else:
                acknowledged.append(ref)

    writers = [threading.Thread(target=write) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        yield acknowledged
    finally:
        ends.set()
        for writer in writers:
            writer.join()


def _assert_none_lost(
    store: RedisDocuments, kill: Callable[[], object], come_back: Callable[[], object]
) -> None:
    with _writing(store) as acknowledged:
        wait_until(lambda: len(acknowledged) >= BEFORE, "writers", PATIENCE)
        kill()
        come_back()
        seen = len(acknowledged)
        wait_until(lambda: len(acknowledged) >= seen + AFTER, "writers after it", PATIENCE)
    lost = [ref for ref in acknowledged if store.load(ref) != ("1" * 16, ref.encode())]
    assert lost == [], f"{len(lost)} of {len(acknowledged)}"


def test_sentinel_failover() -> None:
    """With two replicas writing goes on by itself after Sentinel has named another primary server."""
    with ExitStack() as servers:
        primary = servers.enter_context(TunedRedis(repl_diskless_sync_delay=0))
        for _ in range(2):
            servers.enter_context(ReplicaOf(primary))
        sentinels = [SentinelServer(primary) for _ in range(3)]
        for sentinel in sentinels:
            sentinel.settings["sentinel monitor"] = f"keys 127.0.0.1 {primary.port} 2"
            sentinel.settings["sentinel down-after-milliseconds"] = "keys 1000"
            sentinel.settings["sentinel failover-timeout"] = "keys 5000"
            servers.enter_context(sentinel)
        host = Sentinel([("127.0.0.1", sentinel.port) for sentinel in sentinels])

        def all_known() -> bool:
            found = host.sentinels[0].sentinel_master("keys")
            return bool((found["num-slaves"], found["num-other-sentinels"]) == (2, 2))

        wait_until(all_known, "sentinels", PATIENCE)
        with host.master_for("keys") as client:
            store = RedisDocuments(client, wait=1)
        _assert_none_lost(
            store,
            primary.kill,
            lambda: wait_until(
                lambda: host.discover_master("keys")[1] != primary.port, "failover", PATIENCE
            ),
        )
        for each in host.sentinels:
            each.close()


def _ask(server: RedisServer, *command: str | int) -> str:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.response_callbacks.clear()
        return str(client.execute_command(*command))


def _make_cluster(nodes: list[TunedRedis]) -> None:
    """Join six nodes to a Cluster of three primary servers with one replica each."""
    for number, node in enumerate(nodes[:3]):
        first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
        _ask(node, "CLUSTER ADDSLOTSRANGE", first, last)
    for node in nodes[1:]:
        bus = str(node.settings["cluster_port"])
        _ask(nodes[0], "CLUSTER MEET", "127.0.0.1", node.port, bus)
    for node in nodes:
        wait_until(lambda node=node: "cluster_known_nodes:6" in _ask(node, "CLUSTER INFO"), "nodes")  # type: ignore[misc]
    for primary, replica in zip(nodes[:3], nodes[3:], strict=True):
        _ask(replica, "CLUSTER REPLICATE", _ask(primary, "CLUSTER MYID"))
    for primary in nodes[:3]:
        wait_until(
            lambda node=primary: (  # type: ignore[misc]
                "state=online" in _ask(node, "INFO replication")
                or "'online'" in _ask(node, "INFO replication")
            ),
            "replica",
            PATIENCE,
        )
        wait_until(lambda node=primary: "state:ok" in _ask(node, "CLUSTER INFO"), "cluster")  # type: ignore[misc]


def test_cluster_failover() -> None:
    """With one replica a shard writing goes on there once the killed server is back as a replica."""
    with ExitStack() as servers:
        nodes = [
            TunedRedis(
                cluster_enabled="yes",
                cluster_port=free_port(),
                cluster_node_timeout=2000,
                repl_diskless_sync_delay=0,
            )
            for _ in range(6)
        ]
        for node in nodes:
            servers.enter_context(node)
        _make_cluster(nodes)
        start = [ClusterNode("127.0.0.1", node.port) for node in nodes]
        with RedisCluster(startup_nodes=start) as client:
            store = RedisDocuments(client, wait=1)
        _assert_none_lost(
            store,
            nodes[0].kill,
            lambda: (
                wait_until(
                    lambda: "role:master" in _ask(nodes[3], "INFO replication"),
                    "failover",
                    PATIENCE,
                ),
                nodes[0].start(),
            ),
        )
