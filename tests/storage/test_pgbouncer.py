"""The real PgBouncer in transaction mode: a statement of one client may follow another's on the same connection."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from flask_byok.storage.sql import SqlDocuments
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import Browser, HostApp, browser, fingerprint, make_app
from tests.keeper import close
from tests.services import PgBouncer, PostgresServer, pgbouncer_binary

PEOPLE = 20
_REFUSAL = "unsupported startup parameter"

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
        found = pool.map(lambda name: _work(browser(app), name, rounds), names)
        return list(chain.from_iterable(found))


@pytest.mark.parametrize(
    ("rounds", "settings"),
    [
        (1, {}),
        (1, {"ignore_startup_parameters": "options"}),
        pytest.param(9, {}, marks=pytest.mark.stress),
    ],
)
def test_people_behind_pgbouncer(
    server: PostgresServer,
    tmp_path: Path,
    fake: FakeProviders,
    rounds: int,
    settings: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """20 people over two connections of the server: every answer is a success, and every key its owner's."""
    with PgBouncer(server, server.create_database(), **settings) as pooler:
        app = make_app(tmp_path, fake, BYOK_DATABASE_URL=pooler.url)
        assert _trial(app, rounds) == []
        assert "failed" not in caplog.text
        close(app)
        log = pooler.directory / "log"
        before = log.read_text().count(_REFUSAL)
        engine = get_state(app).service.sessions.documents.engine  # type: ignore[attr-defined]
        for _ in range(3):
            engine.dispose()
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        engine.dispose()
        assert log.read_text().count(_REFUSAL) == before, "what was refused once is not sent again"


@pytest.mark.parametrize(
    "query",
    [
        "prepare_threshold=0",
        "prepare_threshold=5",
        "autocommit=1",
        "row_factory=x",
        "pgbouncer=true",
    ],
)
def test_parameters_in_the_address(server: PostgresServer, query: str) -> None:
    """Parameters of psycopg itself, and those for other languages' drivers, may be in the address."""
    with PgBouncer(server, server.create_database()) as pooler:
        documents = SqlDocuments(f"{pooler.url}?{query}&application_name=theirs")
        for number in range(8):
            assert documents.swap(f"ref-{number}", None, "1" * 16, b"body", 60)
            assert documents.load(f"ref-{number}") == ("1" * 16, b"body")
        lent = documents.engine.raw_connection()
        driver: Any = lent.driver_connection
        assert driver.info.get_parameters()["application_name"] == "theirs"
        assert driver.prepare_threshold is None
        lent.close()
        documents.engine.dispose()


def test_a_hosts_engine(server: PostgresServer) -> None:
    """Over an engine of the host's, whose driver prepares statements, ours are not, and its setting stays."""
    with PgBouncer(server, server.create_database()) as pooler:
        engine = create_engine(pooler.url, pool_size=20)
        documents = SqlDocuments(engine)

        def work(person: int) -> None:
            for number in range(8):
                ref = f"ref-{person}-{number}"
                assert documents.swap(ref, None, "1" * 16, b"body", 60)
                assert documents.load(ref) == ("1" * 16, b"body")

        with ThreadPoolExecutor(PEOPLE) as pool:
            list(pool.map(work, range(PEOPLE)))
        lent = engine.raw_connection()
        driver: Any = lent.driver_connection
        assert driver.prepare_threshold == 5
        lent.close()
        engine.dispose()
