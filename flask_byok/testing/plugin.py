"""The pytest plugin: `byok_fake_providers` for every test suite where flask-byok is installed.

pytest loads this in each run, so it imports the fake providers only when the fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .fake_providers import FakeProviders


@pytest.fixture
def byok_fake_providers() -> Iterator[FakeProviders]:
    """Run fake providers for one test: a server of its own, with nothing recorded.

    Point the app at it with `app.config["BYOK_BASE_URLS"] = byok_fake_providers.base_urls`.
    """
    from .fake_providers import FakeProviders

    with FakeProviders() as fake:
        yield fake
