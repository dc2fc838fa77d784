"""Session keys outlive a Redis server that is killed: behind Sentinel and on a Cluster, with ``BYOK_REDIS_WAIT=1``."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel

from flask_byok.testing import FakeProviders
from tests.app import HostApp, browser, fingerprint, make_app
from tests.services import free_port, wait_until
from tests.storage.redis_kinds import ReplicaOf, SentinelServer, TunedRedis

WRITERS = 6
#: Seconds for which the people go on saving keys after the server was killed.
AFTER = 8


class Person(threading.Thread):
    """Saves one key after the other in one session, and looks for them whenever saving has failed."""

    def __init__(self, app: HostApp, stop: threading.Event) -> None:
        super().__init__()
        self.browser, self.stop = browser(app), stop
        self.browser.load()
        #: The last key that was acknowledged, and those that were sent since: each may be the one that is stored.
        self.may_be: list[str] = []
        self.acknowledged = 0
        self.lost: list[str] = []

    def run(self) -> None:
        for number in count():
            if self.stop.is_set():
                break
            self.may_be.append(f"sk-{self.name}-{number:06}")
            body = {"provider": "openai", "api_key": self.may_be[-1], "validate": "off"}
            answer = self.browser.call("set", **body)
            if answer.status_code == 200:
                self.may_be, self.acknowledged = self.may_be[-1:], self.acknowledged + 1
            else:
                assert answer.status_code == 503, answer.text
                self.look()
        self.look()

    def look(self) -> None:
        """Wait for an answer that names the key in use, and note if that key was lost."""
        while (answer := self.browser.get("/used/openai")).status_code == 503:
            time.sleep(0.05)
        if answer.get_json().get("fingerprint") not in map(fingerprint, self.may_be):
            self.lost.append(self.may_be[0])


class Sentinels:
    """A primary server with two replicas, watched by three Sentinels."""

    def __init__(self, stack: ExitStack) -> None:
        self.primary = stack.enter_context(TunedRedis())
        replicas = [stack.enter_context(ReplicaOf(self.primary)) for _ in range(2)]
        self.servers = [self.primary, *replicas]
        self.watchers = [SentinelServer(self.primary) for _ in range(3)]
        for watcher in self.watchers:
            watcher.settings |= {
                "sentinel monitor": f"keys 127.0.0.1 {self.primary.port} 2",
                "sentinel down-after-milliseconds": "keys 1000",
                "sentinel failover-timeout": "keys 5000",
            }
            stack.enter_context(watcher)
        asked = [redis.Redis(port=watcher.port) for watcher in self.watchers]
        wait_until(lambda: all(_peers(each) == (2, 2) for each in asked), "the Sentinels")
        sentinel = Sentinel([("127.0.0.1", watcher.port) for watcher in self.watchers])
        self.client: Any = sentinel.master_for("keys")

    def kill(self) -> TunedRedis:
        """Kill the primary server and return it once another one has its place."""
        host, port = self.client.connection_pool.get_master_address()
        killed = next(server for server in self.servers if server.port == port)
        _kill_ahead(killed, [server for server in self.servers if server is not killed])
        pool = self.client.connection_pool
        wait_until(lambda: pool.get_master_address() != (host, port), "another primary", 60)
        return killed

    def rejoin(self, killed: TunedRedis) -> None:
        """Start the killed server as a replica of the one that has its place."""
        _, port = self.client.connection_pool.get_master_address()
        killed.settings["replicaof"] = f"127.0.0.1 {port}"
        TunedRedis.start(killed)  # it may have been a replica of another one
        wait_until(lambda: _is_in_step(killed), "the killed server")


class Cluster:
    """Three primary servers, each with a replica."""

    def __init__(self, stack: ExitStack) -> None:
        self.servers: dict[int, TunedRedis] = {}
        for _ in range(6):
            server = TunedRedis(
                cluster_enabled="yes", cluster_port=free_port(), cluster_node_timeout=1500
            )
            self.servers[server.port] = stack.enter_context(server)
        first, *others = [redis.Redis(port=port) for port in self.servers]
        for server, other in zip(list(self.servers.values())[1:], others, strict=True):
            other.execute_command("PING")
            address = ("127.0.0.1", server.port, server.settings["cluster_port"])
            first.execute_command("CLUSTER MEET", *address)
        nodes = [first, *others]
        wait_until(lambda: all(len(_nodes(each)) == 6 for each in nodes), "six nodes")
        shares = ((0, 5460), (5461, 10922), (10923, 16383))
        for node, share in zip(nodes[:3], shares, strict=True):
            node.execute_command("CLUSTER ADDSLOTSRANGE", *share)
        for replica, node in zip(nodes[3:], nodes[:3], strict=True):
            id = node.execute_command("CLUSTER MYID")
            wait_until(lambda: replica.execute_command("CLUSTER REPLICATE", id), "a replica")  # noqa: B023
        wait_until(lambda: all(map(_is_whole, nodes)), "the Cluster", 30)
        self.client: Any = RedisCluster(
            startup_nodes=[ClusterNode("127.0.0.1", port) for port in self.servers]
        )

    def kill(self) -> TunedRedis:
        """Kill one of the primary servers and return it once its replica has its place."""
        killed = self.servers[random.choice(self.client.get_primaries()).port]
        others = [redis.Redis(port=port) for port in self.servers if port != killed.port]
        primaries = {node.port for node in self.client.get_primaries()}
        _kill_ahead(killed, [self.servers[port] for port in self.servers.keys() - primaries])
        wait_until(lambda: all(_primaries(each) == 3 for each in others), "another primary", 60)
        return killed

    def rejoin(self, killed: TunedRedis) -> None:
        """Start the killed server, which knows from its file that it was in the Cluster."""
        killed.start()
        wait_until(lambda: _is_in_step(killed), "the killed server", 60)


@pytest.fixture(params=[Sentinels, Cluster])
def servers(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Run several Redis servers, one of which can be killed."""
    with ExitStack() as stack:
        yield request.param(stack)


@pytest.mark.stress
def test_nothing_acknowledged_is_lost_in_a_failover(
    servers: Any, tmp_path: Path, fake: FakeProviders
) -> None:
    """Keys that were acknowledged before, during and after three failovers are all there, and saving goes on."""
    config = {"BYOK_REDIS": servers.client, "BYOK_REDIS_WAIT": 1, "BYOK_REDIS_TIMEOUT": 0.5}
    app = make_app(tmp_path, fake, **config)
    for _ in range(3):
        stop = threading.Event()
        people = [Person(app, stop) for _ in range(WRITERS)]
        for person in people:
            person.start()
        time.sleep(2)
        killed = servers.kill()
        time.sleep(AFTER / 2)
        servers.rejoin(killed)
        before = [person.acknowledged for person in people]
        time.sleep(AFTER / 2)
        stop.set()
        for person in people:
            person.join()
        assert [person.lost for person in people] == [[]] * WRITERS
        assert all(p.acknowledged > n for p, n in zip(people, before, strict=True))


def _kill_ahead(primary: TunedRedis, replicas: list[TunedRedis]) -> None:
    """Kill a server that has gone on for a moment without its replicas, which then know less than it did."""
    for replica in replicas:
        replica.stop_process()
    with redis.Redis(port=primary.port) as client:
        client.execute_command("CLIENT KILL TYPE replica")  # what it writes now is sent to none
    time.sleep(0.5)
    primary.kill()
    for replica in replicas:
        replica.cont()


def _peers(sentinel: redis.Redis) -> tuple[int, int]:
    found = sentinel.sentinel_master("keys")
    return int(found["num-slaves"]), int(found["num-other-sentinels"])


def _nodes(client: redis.Redis) -> list[bytes]:
    client.response_callbacks.pop("CLUSTER NODES", None)
    return bytes(client.execute_command("CLUSTER NODES")).splitlines()


def _primaries(client: redis.Redis) -> int:
    """Return how many nodes that are up have slots."""
    lines = [line.split() for line in _nodes(client)]
    return sum(b"master" in line[2] and b"fail" not in line[2] and len(line) > 8 for line in lines)


def _is_whole(client: redis.Redis) -> bool:
    """Return True if a node knows three primary servers and three replicas, and is in step with its own."""
    replicas = sum(b"slave" in line.split()[2] for line in _nodes(client))
    info = client.info("replication")
    in_step = info["role"] == "master" or info["master_link_status"] == "up"
    return _primaries(client) == replicas == 3 and in_step


def _is_in_step(server: TunedRedis) -> bool:
    with redis.Redis(port=server.port) as client:
        return bool(client.info("replication").get("master_link_status") == "up")
