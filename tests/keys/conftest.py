"""A service without Flask, on a database in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_byok.testing import FakeProviders
from tests.worlds import World

MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path, fake: FakeProviders) -> Iterator[MakeWorld]:
    """Make worlds with the operator's settings and environment."""
    made: list[World] = []

    def make(environ: dict[str, str] | None = None, **config: Any) -> World:
        made.append(World(tmp_path, fake, config, environ or {}))
        return made[-1]

    yield make
    for world in made:
        world.documents.engine.dispose()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """Make a world with default settings."""
    return make_world()
