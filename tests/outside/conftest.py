"""The documentation's examples of jobs and sockets, with an operator's key around them, and Ada's account key."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flask_byok.testing import FakeProviders
from tests.app import ENCRYPTION_KEY, HostApp, make_app

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Place:
    """A folder with the examples, the environment of their processes, and an app on the same stores."""

    directory: Path
    environ: dict[str, str]
    app: HostApp
    fake: FakeProviders
    redis_url: str
    #: The account key of the user ``ada``, and the operator's.
    adas: str
    operators: str

    def used(self) -> set[str]:
        """Return the keys that chats were made with."""
        return {call.api_key for call in self.fake.calls if call.api_key}


@pytest.fixture
def place(
    tmp_path: Path, fake: FakeProviders, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """Prepare the examples' folder."""
    for name in ("app.py", "jobs.py", "sockets.py"):
        shutil.copy(ROOT / "docs" / "examples" / name, tmp_path / name)
    operators, database = fake.api_key("openai", owner="operator"), f"sqlite:///{tmp_path / 'keys'}"
    settings = {
        "FLASK_SECRET_KEY": "a host's own secret",
        "FLASK_BYOK_DATABASE_URL": database,
        "FLASK_BYOK_BASE_URLS": json.dumps(fake.base_urls),
        "FLASK_BYOK_ALLOW_CUSTOM_PROVIDERS": "true",
        "BYOK_ENCRYPTION_KEY": ENCRYPTION_KEY,
        "REDIS_URL": redis_url,
        "OPENAI_API_KEY": operators,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
    }
    app = make_app(tmp_path, fake, BYOK_DATABASE_URL=database)
    monkeypatch.setenv("OPENAI_API_KEY", operators)
    adas = fake.api_key("openai", owner="ada")
    with app.app_context(), app.byok.acting_for("ada"):
        assert app.byok.set("openai", adas)["source"] == "user"
    fake.clear_calls()
    return Place(tmp_path, os.environ | settings, app, fake, redis_url, adas, operators)


@pytest.fixture
def imported(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Let tests import the examples from their folder, with its environment."""
    monkeypatch.chdir(place.directory)
    for name, value in place.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(place.directory))
    yield place
    for name in ("app", "jobs", "sockets", "tests.outside.worker"):
        sys.modules.pop(name, None)
