"""What other tests rely on: real servers that can be killed and frozen, and no silent skips."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from tests import services


@pytest.fixture
def own_redis() -> Iterator[services.RedisServer]:
    with services.RedisServer() as server:
        yield server


def _ask(server: services.RedisServer, *command: str) -> object:
    with redis.Redis.from_url(server.url, socket_timeout=0.3) as client:
        return client.execute_command(*command)


def test_dump_shows_stored_text(own_redis: services.RedisServer) -> None:
    """A long, repetitive value of any type is found in the dump as it was written."""
    text = "plain-text " * 40
    _ask(own_redis, "HSET", "hash", "field", text)
    _ask(own_redis, "RPUSH", "list", text[::-1])
    data = own_redis.dump()
    assert text.encode() in data
    assert text[::-1].encode() in data


def test_restarted_redis_is_empty_and_where_it_was(own_redis: services.RedisServer) -> None:
    """A Redis that crashed comes back on its port, without its data."""
    _ask(own_redis, "SET", "name", "value")
    own_redis.dump()
    port = own_redis.port
    own_redis.restart()
    assert own_redis.port == port
    assert _ask(own_redis, "DBSIZE") == 0


def test_frozen_redis_answers_again_once_thawed(own_redis: services.RedisServer) -> None:
    """A stopped process keeps its port and its data, and answers only after it goes on."""
    _ask(own_redis, "SET", "name", "value")
    own_redis.stop_process()
    with pytest.raises(redis.TimeoutError):
        _ask(own_redis, "GET", "name")
    own_redis.cont()
    assert _ask(own_redis, "GET", "name") == b"value"


def test_stopped_server_leaves_nothing() -> None:
    """After `stop` neither the process nor its folder is there."""
    with services.RedisServer() as server:
        assert server.process is not None
        pid = server.process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not server.directory.exists()


def test_server_that_cannot_start_says_why() -> None:
    """The program's own words are in the error, at once instead of after a time-out."""
    server = services.RedisServer()
    occupied = socket.create_server(("127.0.0.1", server.port))
    with occupied, pytest.raises(ChildProcessError, match="in use"):
        server.start()
    server.stop()


def test_write_ahead_log_is_searched_across_pages() -> None:
    """A value that a page of the write-ahead log cuts in two is found in it."""
    values = [f"{number:04}-" + "value" * 100 for number in range(200)]
    with services.PostgresServer() as server:
        url = server.create_database()
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute("CREATE TABLE kept (value text)")
            for value in values:
                connection.execute("INSERT INTO kept VALUES (%s)", (value,))
        log = server.written(url)["WAL"]
    assert [value[:4] for value in values if value.encode() not in log] == []


def test_postgres_url_is_an_empty_database(postgres_url: str) -> None:
    """Each test gets an empty database of its own."""
    conninfo = postgres_url.replace("+psycopg", "")
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()
    assert row == (0,)


@pytest.mark.parametrize(("ci", "fails"), [("true", True), ("", False)])
@pytest.mark.parametrize(
    "text",
    [
        "import pytest\ndef test_it():\n    pytest.skip('no browser')",
        "import pytest\npytest.skip('no browser', allow_module_level=True)",
    ],
    ids=["test", "module"],
)
def test_skip_is_a_failure_in_ci(ci: str, fails: bool, text: str, tmp_path: Path) -> None:
    """With CI=true a skipped test has failed, and the message keeps the reason."""
    (tmp_path / "test_skips.py").write_text(text)
    (tmp_path / "test_passes.py").write_text("def test_it():\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-rs", tmp_path],
        env=os.environ | {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert bool(done.returncode) is fails
    assert "no browser" in done.stdout
    assert ("nothing may be skipped" in done.stdout) is fails
