"""Databases of each kind, and a host on them whose commands are run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_byok.catalog import PROVIDERS
from flask_byok.testing import FakeProviders
from tests.app import HostApp
from tests.cli.host import close, make_host


@pytest.fixture(autouse=True)
def _no_keys_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the operator's variables of this machine away."""
    for spec in PROVIDERS:
        for variable in spec.env:
            monkeypatch.delenv(variable, raising=False)
            monkeypatch.delenv(f"{variable}_FILE", raising=False)


@pytest.fixture
def host(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> Iterator[HostApp]:
    """Make a host that keeps accounts in the database."""
    app = make_host(tmp_path, fake, sqlite_url)
    yield app
    close(app)
