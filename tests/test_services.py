"""What other tests rely on: servers that say why they do not start and hide nothing, no silent skips, quiet runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests import services

ROOT = Path(__file__).parent.parent


def test_server_that_cannot_start_says_why() -> None:
    """The program's own words are in the error, at once instead of after a time-out."""
    server = services.RedisServer()
    occupied = socket.create_server(("127.0.0.1", server.port))
    with occupied, pytest.raises(ChildProcessError, match="in use"):
        server.start()
    server.stop()
    assert not server.directory.exists()


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
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert bool(done.returncode) is fails
    assert "no browser" in done.stdout
    assert ("nothing may be skipped" in done.stdout) is fails


def test_nothing_is_printed_beside_the_tests() -> None:
    """What we log where pytest catches no log is dropped, and long trials set off no dump of stacks."""
    code = "import logging, tests.conftest; logging.getLogger('flask_byok.stores').warning('It is away.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    told = subprocess.run(["make", "-n", "stress"], cwd=ROOT, capture_output=True, text=True)
    (trials,) = (line for line in told.stdout.splitlines() if "-m stress" in line)
    assert "-o faulthandler_timeout=0" in trials
