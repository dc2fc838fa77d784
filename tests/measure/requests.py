"""Hops: the modules of the package in which a function runs while a request is answered."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from werkzeug.test import TestResponse

from flask_byok.testing import FakeProviders
from tests.app import browser, make_app
from tests.services import RedisServer

from .code import APART, PACKAGE
from .figures import Figure

_ROOT = f"{PACKAGE}/"


def measure_requests() -> Iterator[tuple[str, list[Figure]]]:
    """Yield the figures of each kind of request, for each store of sessions."""
    with RedisServer() as server:
        for store, url in (("SQLite", None), ("Redis", server.url)):
            yield f"Modules that a request passes, sessions in {store}", list(_measure(url))


def _measure(redis_url: str | None) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as directory, FakeProviders() as fake:
        app = make_app(Path(directory), fake, byok_redis_url=redis_url)
        first, second = (fake.api_key("openai", owner=owner) for owner in "ab")
        visitor, other = browser(app), browser(app)

        visitor.save(first)
        body: dict[str, Any] = {"provider": "openai", "api_key": second}
        # In Redis one more than in SQLite, which has the accounts' database.
        more = 0 if redis_url is None else 1
        yield _passed("POST keys/set", 25 + more, lambda: visitor.call("set", **body))
        yield _passed("A chat", 22, lambda: visitor.get("/chat/openai"))
        yield _passed("A route that uses no keys", 5, lambda: visitor.get("/plain"))

        other.save(second)
        fake.revoke("openai", second)
        yield _passed("A chat with a key refused", 26, lambda: other.get("/chat/openai"))
        assert other.status()["state"] == "rejected"

        visitor.post("/sign-in/ann")
        visitor.load()
        body = {"providers": ["openai"]}
        yield _passed("Promotion of one key", 26, lambda: visitor.call("promote", **body))
        body = {"provider": "groq", "api_key": fake.api_key("groq"), "persist": True}
        visitor.call("set", **body)
        yield _passed("POST keys/set with persist", 30 + more, lambda: visitor.call("set", **body))


def _passed(name: str, aim: int, request: Callable[[], TestResponse]) -> Figure:
    """Make a request, read its answer to the end, and count the modules that ran."""
    rooms: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        # What runs when a module is loaded is no part of the request.
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(_ROOT):
            rooms.add(code.co_filename.removeprefix(_ROOT))

    sys.setprofile(note)
    try:
        response = request()
        text = response.get_data(as_text=True)
    finally:
        sys.setprofile(None)
    assert response.status_code == 200, text
    passed = sorted(room for room in rooms if not room.startswith(APART))
    return Figure(name, len(passed), aim, tuple(passed))
