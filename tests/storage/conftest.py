"""Databases of each kind."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Name an empty database, of each kind in turn."""
    address: str = request.getfixturevalue(request.param)
    return address
