"""For tests of applications that use flask-byok: fake providers, and a proof of no bleed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bleed import assert_no_key_bleed
    from .calls import RecordedCall
    from .fake_providers import FakeProviders

__all__ = ["FakeProviders", "RecordedCall", "assert_no_key_bleed"]

_HOMES = {
    "FakeProviders": ".fake_providers",
    "RecordedCall": ".calls",
    "assert_no_key_bleed": ".bleed",
}


def __getattr__(name: str) -> object:
    """Import on first use: the pytest plugin loads this package in every run."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
