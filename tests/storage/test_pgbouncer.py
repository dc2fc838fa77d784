"""The real PgBouncer in transaction mode: a statement of one client may follow another's on the same connection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, make_url

from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp, browser, fingerprint, make_app
from tests.services import PgBouncer, PostgresServer, pgbouncer_binary
from tests.storage.test_reasons import why

PEOPLE = 20
if pgbouncer_binary() is None:
    pytest.skip("PgBouncer is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Run the PostgreSQL behind the poolers."""
    with PostgresServer() as server:
        yield server


def _work(person: Browser, name: str, rounds: int) -> list[str]:
    """Use every verb so many times; return what was wrong."""
    wrong: list[str] = []

    def expect(what: str, status: int, is_right: bool = True) -> None:
        if status != 200 or not is_right:
            wrong.append(f"{what}: {status}, {is_right}")

    person.post(f"/sign-in/{name}")
    for number in range(rounds):
        own = f"sk-proj-of-{name}-{number:04}"
        answer = person.save(own, persist=True, validate="off")
        expect("persist", answer.status_code)
        used = person.get("/used/openai")
        right = used.get_json().get("fingerprint") == fingerprint(own)
        expect("resolve", used.status_code, right)
        expect("set", person.save(f"{own}-session", "groq", validate="off").status_code)
        expect("list", 200, person.status("groq")["has_key"])
        for provider in ("openai", "groq"):
            answer = person.call("clear", provider=provider)
            expect("clear", answer.status_code, len(answer.get_json()["cleared"]) == 1)
    return wrong


def _trial(app: HostApp, rounds: int) -> list[str]:
    """Let 20 people work at once, each in a browser of their own."""
    with ThreadPoolExecutor(PEOPLE) as pool:
        names = [f"person-{number}" for number in range(PEOPLE)]
        return sum(pool.map(lambda name: _work(browser(app), name, rounds), names), [])


@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.stress)])
def test_people_behind_pgbouncer(
    server: PostgresServer,
    tmp_path: Path,
    fake: FakeProviders,
    rounds: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """20 people over two connections of the server: every answer is a success, and every key its owner's."""
    with PgBouncer(server, server.create_database()) as pooler:
        app = make_app(tmp_path, fake, BYOK_DATABASE_URL=pooler.url)
        caplog.clear()
        assert _trial(app, rounds) == []
        assert "failed" not in caplog.text
        app.byok_engine = None  # type: ignore[attr-defined]
