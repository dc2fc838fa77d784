"""Redis as operators run it: with a replica, behind Sentinel, as a Cluster."""

from __future__ import annotations

import subprocess

import redis

from tests.services import RedisServer, free_port, redis_binary, wait_until


class TunedRedis(RedisServer):
    """A Redis with settings of its own."""

    mode: tuple[str, ...] = ()

    def __init__(self, **settings: str | int) -> None:
        super().__init__()
        self.settings = {"bind": "127.0.0.1", "port": self.port, "save": '""', **settings}

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it from a configuration file, which Sentinel wants to write to."""
        lines = [f"{name.replace('_', '-')} {value}" for name, value in self.settings.items()]
        (self.directory / "conf").write_text("\n".join([f"dir {self.directory}", *lines, ""]))
        with (self.directory / "log").open("ab") as log:
            command = [str(redis_binary()), str(self.directory / "conf"), *self.mode]
            return subprocess.Popen(command, stdout=log, stderr=log)


class SentinelServer(TunedRedis):
    """A Sentinel that watches one master, called ``keys``."""

    mode = ("--sentinel",)

    def __init__(self, master: RedisServer) -> None:
        super().__init__()
        del self.settings["save"]
        self.settings["sentinel monitor"] = f"keys 127.0.0.1 {master.port} 1"


class ClusterServer(TunedRedis):
    """A Cluster of one node that has all slots; more nodes may join."""

    def __init__(self) -> None:
        super().__init__(cluster_enabled="yes", cluster_port=free_port())

    def start(self) -> None:
        """Start the node and give it the slots."""
        super().start()
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: b"cluster_state:ok" in _cluster_info(client), "cluster")


class SecondNode(TunedRedis):
    """A node without slots that joins a Cluster."""

    def __init__(self, first: ClusterServer) -> None:
        super().__init__(cluster_enabled="yes", cluster_port=free_port())
        self.first = first

    def start(self) -> None:
        """Start the node and wait until both know each other."""
        super().start()
        with redis.Redis.from_url(self.url) as client:
            address = ("127.0.0.1", self.first.port, self.first.settings["cluster_port"])
            client.execute_command("CLUSTER MEET", *address)
            wait_until(lambda: b"cluster_state:ok" in _cluster_info(client), "second node")

    def take(self, slot: int) -> None:
        """Move an empty slot to this node."""
        with redis.Redis.from_url(self.url) as here, redis.Redis.from_url(self.first.url) as there:
            node = here.execute_command("CLUSTER MYID")
            for client in (here, there):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", node)


class ReplicaOf(TunedRedis):
    """A replica, in step with its master once started."""

    def __init__(self, master: RedisServer) -> None:
        super().__init__(replicaof=f"127.0.0.1 {master.port}")
        self.master = master

    def start(self) -> None:
        """Start it and wait until the master counts it."""
        super().start()
        with redis.Redis.from_url(self.master.url) as client:
            client.set("in step", 1)
            wait_until(lambda: client.wait(1, 100) == 1, "replica")


def _cluster_info(client: redis.Redis) -> bytes:
    client.response_callbacks.pop("CLUSTER INFO", None)
    return bytes(client.execute_command("CLUSTER INFO"))
