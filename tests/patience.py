"""Time for a busy machine: an app gives a store two seconds at most, tests give it 20.

So no test fails because the machine was slow. Tests about being late set limits that are shorter than those of apps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from flask_byok.storage import engine, redis

_PATIENT: Mapping[tuple[Any, str], Any] = {(engine, "LIMIT"): 20, (redis, "TIMEOUT"): 20}
_SHORT: Mapping[tuple[Any, str], Any] = {(engine, "LIMIT"): 0.4, (redis, "TIMEOUT"): 0.25}

#: Seconds within which a wait of less than one second has ended, on a busy machine too. Without a limit it
#: would last for ``services.AWAY``.
IN_TIME = 4.0


def give_time() -> None:
    """Set long limits, for stores made from now on and for every call of a database."""
    _set(_PATIENT)


@contextmanager
def short_limits(*stores: ModuleType) -> Iterator[None]:
    """Set short limits for the time of a block, by default of both kinds of store."""
    before = {(module, name): getattr(module, name) for module, name in _PATIENT}
    _set({place: value for place, value in _SHORT.items() if not stores or place[0] in stores})
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
    """Use short limits during a block, and fail unless it ends soon."""
    with soon(), short_limits():
        yield


def _set(values: Mapping[tuple[Any, str], Any]) -> None:
    for (module, name), value in values.items():
        setattr(module, name, value)
