"""A plain HTTP client at the fake providers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    """Provide a plain client without the environment's proxies."""
    with httpx2.Client(trust_env=False, timeout=10) as client:
        yield client
