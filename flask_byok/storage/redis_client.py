"""Our own Redis clients: the host's address and credentials, our own patience.

redis-py waits 5 seconds and tries 10 times by default, and every request that touches a key would
wait with it.
"""

from __future__ import annotations

import copy
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import BlockingConnectionPool
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from ..errors import ConfigurationError, StoreError

#: Seconds to connect, to wait for an answer, and to wait for a free connection. Their sum stays
#: under 0.5.
CONNECT_TIMEOUT, READ_TIMEOUT, POOL_TIMEOUT = 0.1, 0.25, 0.1
#: A cluster client that got no answer asks for the nodes before it gives up: twice as many waits.
CLUSTER_READ_TIMEOUT = 0.2
#: Connections of one process to one server.
MAX_CONNECTIONS = 64

# Settings of the host's connections that are ours to decide, and what pools add for themselves.
_OURS = (
    "cache",
    "connection_pool",
    "decode_responses",
    "event_dispatcher",
    "health_check_interval",
    "himport",
    "maint_",
    "max_connections",
    "orig_",
    "oss_",
    "protocol",
    "redis_connect_func",
    "retry",
    "socket_connect_timeout",
    "socket_timeout",
    "timeout",
)


def limited_client(client_or_url: Any) -> Redis | RedisCluster:
    """Make a client of our own for the same Redis.

    :param client_or_url: a URL, or a redis-py client: ``Redis``, a Sentinel's master,
        ``RedisCluster``.
    :raises ConfigurationError: it is neither.
    :raises StoreError: the cluster does not answer; unlike the others it is asked for its nodes at
        once.
    """
    if isinstance(client_or_url, str):
        return _from_url(client_or_url)
    if isinstance(client_or_url, RedisCluster):
        return _cluster(client_or_url)
    if isinstance(client_or_url, Redis):
        return _single(client_or_url)
    raise ConfigurationError(
        f"BYOK_REDIS is a {type(client_or_url).__name__}; use a redis:// URL or a redis-py client "
        "(Redis, a Sentinel's master_for(...), RedisCluster)."
    )


def _from_url(url: str) -> Redis:
    try:
        client = Redis.from_url(url)
    except ValueError:
        # Without the URL: it may hold a password.
        raise ConfigurationError(
            "BYOK_REDIS is not a Redis URL; use redis://, rediss:// or unix://, "
            "and a client object for Sentinel and Cluster."
        ) from None
    return _single(client)


def _single(client: Redis) -> Redis:
    pool = client.connection_pool
    options = _limits(pool.connection_kwargs) | {"connection_class": pool.connection_class}
    if isinstance(pool, SentinelConnectionPool):
        return Redis(connection_pool=_sentinel_pool(pool, options))
    options |= {"max_connections": MAX_CONNECTIONS, "timeout": POOL_TIMEOUT}
    bounded = BlockingConnectionPool(**options)  # type: ignore[no-untyped-call]
    return Redis(connection_pool=bounded)


def _sentinel_pool(pool: SentinelConnectionPool, options: dict[str, Any]) -> SentinelConnectionPool:
    manager = copy.copy(pool.sentinel_manager)
    manager.sentinels = [_single(sentinel) for sentinel in manager.sentinels]
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        pool.service_name,
        manager,
        is_master=True,
        check_connection=pool.check_connection,
        max_connections=MAX_CONNECTIONS,
        **options,
    )


def _cluster(client: RedisCluster) -> RedisCluster:
    options = _limits(client.get_connection_kwargs())  # type: ignore[no-untyped-call]
    options = {name: value for name, value in options.items() if name not in ("host", "port", "db")}
    options["socket_timeout"] = CLUSTER_READ_TIMEOUT
    known = client.get_nodes()  # type: ignore[no-untyped-call]
    nodes = [ClusterNode(node.host, node.port) for node in known]  # type: ignore[no-untyped-call]
    try:
        return RedisCluster(
            startup_nodes=nodes,
            require_full_coverage=False,
            max_connections=MAX_CONNECTIONS,
            **options,
        )
    except (RedisError, RedisClusterException, OSError):
        message = "The Redis Cluster of BYOK_REDIS does not answer."
        raise StoreError(message, tier="session") from None


def _limits(options: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if not name.startswith(_OURS)}
    return kept | {
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": READ_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        # RESP3 can push messages that raise the time limits.
        "protocol": 2,
    }
