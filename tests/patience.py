"""Time limits for a busy machine: an app waits half a second for a store, a test waits 20 seconds.

So no test fails because the machine is slow. Tests about time limits use the limits of apps.
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

#: Seconds within which a call with an everyday limit ends, even on a busy machine. A call without a limit takes
#: ``services.AWAY``.
IN_TIME = 4.0


def give_time() -> None:
    """Set long limits, for stores made from now on and for every call of a database."""
    _set(_PATIENT)


@contextmanager
def everyday_limits(*stores: ModuleType) -> Iterator[None]:
    """Use the limits of apps during a block, for these stores or for all."""
    before = {(module, name): getattr(module, name) for module, name in _PATIENT}
    _set({place: value for place, value in _EVERYDAY.items() if not stores or place[0] in stores})
    try:
        yield
    finally:
        _set(before)


@contextmanager
def soon(seconds: float = IN_TIME) -> Iterator[None]:
    """Fail unless the block ends within this many seconds, which leave room for a busy machine."""
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < seconds


@contextmanager
def in_time() -> Iterator[None]:
    """Use the limits of apps during a block, and fail unless it ends soon."""
    with soon(), everyday_limits():
        yield


def _set(values: Mapping[tuple[Any, str], Any]) -> None:
    for (module, name), value in values.items():
        setattr(module, name, value)
