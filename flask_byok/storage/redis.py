"""Session documents in Redis 6.2 or later: single, behind Sentinel, or a Cluster.

The clients are our own: the host's address and credentials with our limits. By default redis-py waits
5 seconds and tries 10 times, and every request that touches a key would wait with it.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from redis import VERSION, Redis, exceptions
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import BlockingConnectionPool, ConnectionPool
from redis.exceptions import AskError, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from ..errors import ConfigurationError, StoreError
from .breaker import Breaker, Reporter, measured

#: Seconds to connect, to wait for an answer, and to wait for a free connection, where the settings do not say it.
TIMEOUT = 0.5
#: Connections of one process to one server.
MAX_CONNECTIONS = 64
#: Of these, connections that are kept at hand, out of the pool.
_KEPT = 16
#: Milliseconds that replicas have to acknowledge a change, and the part of the timeout that this may be. Redis ends
#: such a wait up to 100 ms late, which must still be within the timeout.
_WAIT_LIMIT, _FOR_WAIT = 400, 0.4
#: Bytes by which a document may grow in a full Redis: as much as marking records as leaving adds, and less than a key.
_SMALL_GROWTH = 256

_FAILURES = (RedisError, exceptions.RedisClusterException, exceptions.ChildDeadlockedError, OSError)
_REVISION = 16
# What pools want to know of a connection's use: before 5.3 a name, and later nothing.
_NAME = ("",) if VERSION < (5, 3) else ()

T = TypeVar("T")

#: Each script touches one key, so it runs on a Cluster too. It returns 1 if it has written something, so that Redis
#: has room, and its result.
#: On a document. ARGV: the revision that was seen or nothing, revision and body, lifetime, small growth. A full Redis
#: must still take the removal of a key: a script that has deleted something may write, from Redis 6.2 on.
_SWAP = """
if redis.call('GETRANGE', KEYS[1], 0, 15) ~= ARGV[1] then return {0, 0} end
local done = redis.pcall('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if not done.err then return {1, 1} end
if not string.find(done.err, 'OOM') or #ARGV[2] > redis.call('STRLEN', KEYS[1]) + tonumber(ARGV[4]) then
    return done
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {0, 1}
"""
#: On a session id. ARGV: the ref to lead to, the one that it may replace or nothing, lifetime.
_POINT = """
local ref = redis.call('GET', KEYS[1])
if ref and ref ~= ARGV[2] then return {0, ref} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return {1, ARGV[1]}
"""
#: On a session id. ARGV: the ref that it must lead to.
_FORGET = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return {0, 0}
"""
#: On a canary. ARGV: text, 1 to replace what is there.
_HOLD = """
local held = redis.call('GET', KEYS[1])
if held and ARGV[2] == '0' then return {0, held} end
redis.call('SET', KEYS[1], ARGV[1])
return {1, ARGV[1]}
"""
_DELETE = "return {0, redis.call('DEL', KEYS[1])}"


class RedisDocuments:
    """Keeps ``byok:d:{<ref>}`` (revision and body), ``byok:m:{<sid>}`` (the ref) and canaries.

    :param client_or_url: see :func:`limited_client`.
    :param wait: replicas that must acknowledge a change. Each change then waits for them (Redis
        ``WAIT``) and fails with ``StoreError`` if too few answer in time.
    :param timeout: seconds to connect, and to wait for an answer; by default ``TIMEOUT``.
    """

    name = "Redis"
    measured_as = "sessions"

    def __init__(self, client_or_url: Any, *, wait: int = 0, timeout: float | None = None) -> None:
        timeout = timeout or TIMEOUT
        #: The client with our own time limits.
        self.client = limited_client(client_or_url, timeout)
        self.breaker, self._reporter = Breaker(), Reporter("Redis")
        self._execute: Callable[..., Any] = self.client.execute_command
        if not isinstance(self.client, RedisCluster):
            self._execute = _Line(self.client.connection_pool)
        self._wait, self._wait_limit = wait, min(_WAIT_LIMIT, int(timeout * 1000 * _FOR_WAIT))

    def apart(self) -> RedisDocuments:
        """Return the same store for counts: behind a breaker of its own, and no replica must know."""
        twin = copy.copy(self)
        twin.breaker, twin.measured_as, twin._wait = Breaker(), "counts", 0
        return twin

    @measured
    def guarded(self, function: Callable[..., T], *args: Any, changes: bool = False) -> T:
        """Call a function that asks Redis.

        :param changes: its success tells that Redis takes changes.
        :raises StoreError: Redis does not answer, or did not just before.
        """
        if not self.breaker.allow():
            raise StoreError(tier="session")
        try:
            result = function(*args)
        except _FAILURES as error:
            answered = isinstance(error, ResponseError)
            (self.breaker.success if answered else self.breaker.fault)()
            self._reporter.failed(error, answered=answered)
            raise StoreError(tier="session") from None
        self.breaker.success()
        self._reporter.success(changed=changes)
        return result

    def find(self, sid: str) -> str | None:
        """Return the ref that a session id leads to, or None."""
        ref: bytes | None = self.guarded(self._execute, "GET", _name_key(sid))
        return None if ref is None else ref.decode()

    def point(self, sid: str, ref: str, ttl: float, *, instead_of: str | None) -> str:
        """Let a session id lead to a ref if it leads nowhere or to ``instead_of``; return what it leads to."""
        args = (ref, instead_of or "", _milliseconds(ttl))
        return str(self._run(_POINT, _name_key(sid), *args), "utf-8")

    def forget(self, sid: str, ref: str) -> None:
        """Let a session id lead nowhere if it leads to this ref."""
        self._run(_FORGET, _name_key(sid), ref)

    def load(self, ref: str) -> tuple[str, bytes] | None:
        """Return a document's revision and body, or None."""
        raw: bytes | None = self.guarded(self._execute, "GET", _document_key(ref))
        return None if raw is None else (raw[:_REVISION].decode("latin-1"), raw[_REVISION:])

    def swap(self, ref: str, seen: str | None, revision: str, body: bytes, ttl: float) -> bool:
        """Replace a document if its revision is still ``seen`` (None: if there is none)."""
        written = revision.encode() + body
        args = (seen or "", written, _milliseconds(ttl), _SMALL_GROWTH)
        return bool(self._change(_SWAP, _document_key(ref), *args))

    def delete(self, ref: str) -> None:
        """Delete a document."""
        self._change(_DELETE, _document_key(ref))

    def hold(self, name: str, text: str, *, replace: bool = False) -> str:
        """Return the text kept under a name; this one if there is none, or to ``replace`` it."""
        return str(self._change(_HOLD, f"byok:canary:{name}", text, int(replace)), "utf-8")

    def occurrences(self, mark: bytes) -> int | None:
        """Return None: Redis would have to look at every key that it has."""
        return None

    def eviction(self) -> str | None:
        """Return the policy by which Redis deletes keys that have not expired when it is full; None if it does not."""
        found: Any = self.guarded(self.client.info, "memory")
        if isinstance(self.client, RedisCluster):
            found = next(iter(found.values()), {})  # by node
        policy = found.get("maxmemory_policy", "noeviction")
        return policy if found.get("maxmemory") and policy != "noeviction" else None

    def fewest_replicas(self) -> int:
        """Return how many replicas the primary server has; of several servers the one with the fewest."""
        found: Any = self.guarded(self.client.info, "replication")
        nodes = found.values() if isinstance(self.client, RedisCluster) else [found]
        return min(int(node["connected_slaves"]) for node in nodes if node["role"] == "master")

    def _change(self, script: str, key: str, *args: Any) -> Any:
        """Run a script, and see that enough replicas know what it has changed."""
        if not self._wait:
            return self._run(script, key, *args)
        (wrote, result), replicas = self.guarded(self._evaluate_and_wait, script, key, *args)
        if replicas < self._wait:
            self._reporter.failed(few := RedisError("TOO_FEW_REPLICAS"), answered=True)
            text = "Too few Redis replicas have acknowledged the change."
            raise StoreError(text, tier="session") from few
        self._reporter.success(changed=bool(wrote))
        return result

    def _run(self, script: str, key: str, *args: Any) -> Any:
        # The scripts are short: their names (EVALSHA) would save little, and the server may not know them.
        wrote, result = self.guarded(self._execute, "EVAL", script, 1, key, *args)
        self._reporter.success(changed=bool(wrote))
        return result

    def _evaluate_and_wait(self, script: str, key: str, *args: Any) -> list[Any]:
        answers = self._pipelined(script, key, *args)
        if isinstance(answers[0], AskError) and isinstance(self.client, RedisCluster):
            self.client.nodes_manager.initialize()  # the slot has moved
            answers = self._pipelined(script, key, *args)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _pipelined(self, script: str, key: str, *args: Any) -> list[Any]:
        node = self.client
        if isinstance(node, RedisCluster):
            owner = node.get_node_from_key(key)  # type: ignore[no-untyped-call]
            node = node.get_redis_connection(owner)
        # WAIT counts for the connection that wrote, so both go through one pipeline.
        pipeline = node.pipeline(transaction=False)
        pipeline.execute_command("EVAL", script, 1, key, *args)  # type: ignore[no-untyped-call]
        pipeline.execute_command("WAIT", self._wait, self._wait_limit)  # type: ignore[no-untyped-call]
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers


class _Line:
    """Sends commands over connections that it keeps out of their pool.

    redis-py's own way, with the pool's lock, a look at the socket and its metrics, takes twice as long
    as the command itself.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._idle: list[Any] = []
        self._process = os.getpid()

    def __call__(self, *command: Any) -> Any:
        if self._process != os.getpid():
            self._idle, self._process = [], os.getpid()  # the parent's connections stay its own
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._ask(self._pool.get_connection(*_NAME), command)
            if not self._pool.owns_connection(connection):
                self._pool.release(connection)  # Sentinel has named another primary server
                continue
            # The server may have closed it meanwhile; asked twice, every command does the same.
            with suppress(exceptions.ConnectionError):
                return self._ask(connection, command)

    def _ask(self, connection: Any, command: tuple[Any, ...]) -> Any:
        try:
            connection.send_command(*command)
            answer = connection.read_response()
        except ResponseError:
            self._keep(connection)
            raise
        except BaseException:
            connection.disconnect()
            self._pool.release(connection)
            raise
        self._keep(connection)
        return answer

    def _keep(self, connection: Any) -> None:
        if len(self._idle) < _KEPT:
            self._idle.append(connection)
        else:
            self._pool.release(connection)


def _milliseconds(seconds: float) -> int:
    return max(int(seconds * 1000), 1)


def _name_key(sid: str) -> str:
    return f"byok:m:{{{sid}}}"


def _document_key(ref: str) -> str:
    return f"byok:d:{{{ref}}}"


#: Settings of the host's connections that we decide ourselves, and those that pools add.
_OURS = re.compile(
    "cache|connection_pool|decode_responses|event_dispatcher|health_check_interval|himport|maint_|"
    "max_connections|orig_|oss_|protocol|redis_connect_func|retry|socket_connect_timeout|"
    "socket_timeout|timeout"
)


def limited_client(client_or_url: Any, timeout: float = TIMEOUT) -> Redis | RedisCluster:
    """Make a client of our own for the same Redis.

    :param client_or_url: a URL, or a redis-py client: ``Redis``, a Sentinel's master,
        ``RedisCluster``.
    :param timeout: seconds to connect, and to wait for an answer.
    :raises ConfigurationError: it is neither.
    :raises StoreError: the Cluster does not answer; unlike the others it is asked for its nodes at once.
    """
    if isinstance(client_or_url, str):
        with suppress(ValueError):
            client_or_url = Redis.from_url(client_or_url)
    if isinstance(client_or_url, RedisCluster):
        return _cluster(client_or_url, timeout)
    if isinstance(client_or_url, Redis):
        return _single(client_or_url, timeout)
    # Without the URL: it may hold a password.
    raise ConfigurationError(
        "BYOK_REDIS is not a Redis: use a redis://, rediss:// or unix:// URL, or a redis-py client (Redis, a "
        "Sentinel's master_for(...), RedisCluster)."
    )


def _single(client: Redis, timeout: float) -> Redis:
    pool = client.connection_pool
    options = _limits(pool.connection_kwargs, timeout) | {"connection_class": pool.connection_class}
    if isinstance(pool, SentinelConnectionPool):
        sentinel = copy.copy(pool.sentinel_manager)
        sentinel.sentinels = [_single(each, timeout) for each in sentinel.sentinels]
        sentinel.connection_kwargs = options | {"max_connections": MAX_CONNECTIONS}
        checks = pool.check_connection
        found: Redis = sentinel.master_for(pool.service_name, check_connection=checks)
        return found
    options |= {"max_connections": MAX_CONNECTIONS, "timeout": timeout}
    bounded = BlockingConnectionPool(**options)  # type: ignore[no-untyped-call]
    return Redis(connection_pool=bounded)


def _cluster(client: RedisCluster, timeout: float) -> RedisCluster:
    options = _limits(client.get_connection_kwargs(), timeout)  # type: ignore[no-untyped-call]
    options = {name: value for name, value in options.items() if name not in ("host", "port", "db")}
    known = client.get_nodes()  # type: ignore[no-untyped-call]
    nodes = [ClusterNode(node.host, node.port) for node in known]  # type: ignore[no-untyped-call]
    try:
        return RedisCluster(
            startup_nodes=nodes,
            require_full_coverage=False,
            max_connections=MAX_CONNECTIONS,
            **options,
        )
    except _FAILURES:
        message = "The Redis Cluster of BYOK_REDIS does not answer."
        raise StoreError(message, tier="session") from None


def _limits(options: dict[str, Any], timeout: float) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if not _OURS.match(name)}
    return kept | {
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        # RESP3 can push messages that raise the time limits.
        "protocol": 2,
    }
