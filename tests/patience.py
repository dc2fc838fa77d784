"""Time for a busy machine: where an app gives a store less than half a second, tests give it 20 seconds.

So no test fails because the machine was slow. Those that are about being late set the limits of apps again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from flask_byok.storage import engine as sql_engine
from flask_byok.storage import redis_client

_MUCH = 20
_PATIENT: Mapping[tuple[Any, str], Any] = {
    (sql_engine, "LIMIT"): _MUCH,
    (sql_engine, "POOL_TIMEOUT"): _MUCH,
    (sql_engine, "_SERVER_LIMITS"): f"-c lock_timeout={_MUCH}s -c statement_timeout={_MUCH}s",
    (redis_client, "CONNECT_TIMEOUT"): _MUCH,
    (redis_client, "READ_TIMEOUT"): _MUCH,
    (redis_client, "POOL_TIMEOUT"): _MUCH,
    (redis_client, "CLUSTER_READ_TIMEOUT"): _MUCH,
}
_EVERYDAY = {(module, name): getattr(module, name) for module, name in _PATIENT}

#: Seconds within which what waits for less than one has ended, on a busy machine too. Without a limit it would
#: wait for ``services.AWAY``.
IN_TIME = 4.0


def give_time() -> None:
    """Give stores that are made from now on, and every call of a database, much time."""
    _set(_PATIENT)


@contextmanager
def everyday_limits(*stores: ModuleType) -> Iterator[None]:
    """Give them what apps give, for the time of a block; by default to both."""
    before = {(module, name): getattr(module, name) for module, name in _PATIENT}
    _set({place: value for place, value in _EVERYDAY.items() if not stores or place[0] in stores})
    try:
        yield
    finally:
        _set(before)


@contextmanager
def soon(seconds: float = IN_TIME) -> Iterator[None]:
    """Fail unless the block ends within so many seconds, which leave room for a busy machine."""
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < seconds


@contextmanager
def in_time() -> Iterator[None]:
    """Set the limits of apps for a block, and fail unless it ends soon."""
    with soon(), everyday_limits():
        yield


def _set(values: Mapping[tuple[Any, str], Any]) -> None:
    for (module, name), value in values.items():
        setattr(module, name, value)
