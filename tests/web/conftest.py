"""Hosts whose accounts are in databases of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask_login import current_user

from flask_byok.testing import FakeProviders
from tests.app import HostApp, make_app
from tests.keeper import Keeper, close, keeper

MakeHost = Callable[..., HostApp]


@pytest.fixture
def make_host(
    tmp_path: Path, fake: FakeProviders, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeHost]:
    """Make hosts on the database, in which ``root`` is the admin."""
    made: list[HostApp] = []

    def make(**config: Any) -> HostApp:
        app = make_app(tmp_path, fake, BYOK_DATABASE_URL=database_url, **config)
        app.byok.admin_loader(lambda: current_user.get_id() == "root")
        made.append(app)
        return app

    yield make
    for app in made:
        close(app)


@pytest.fixture
def host(make_host: MakeHost) -> HostApp:
    """Make such a host with default settings."""
    return make_host()


@pytest.fixture
def ann(host: HostApp) -> Keeper:
    """Sign in as ann."""
    return keeper(host, "ann")
