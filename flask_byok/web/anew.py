"""Let an app start whose encryption key its stores were not used with, for what begins anew with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_beginning_anew = ContextVar("beginning_anew", default=False)


@contextmanager
def beginning_anew() -> Iterator[None]:
    """Let a wrong encryption key only be logged by apps that are set up meanwhile."""
    token = _beginning_anew.set(True)
    try:
        yield
    finally:
        _beginning_anew.reset(token)


def is_beginning_anew() -> bool:
    """Say whether an app is being set up for that."""
    return _beginning_anew.get()
