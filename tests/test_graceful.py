"""gunicorn restarts and stops its workers: streams come to their end, and counts of uses are not lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from flask_byok.testing import FakeProviders
from tests.app import KEYS, make_app
from tests.keeper import OWN, accounts_of, close
from tests.services import free_port, wait_until


@pytest.fixture
def gunicorn(tmp_path: Path, fake: FakeProviders) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a worker with four threads, as the documentation starts it, and yield it with its address."""
    origin = f"http://127.0.0.1:{free_port()}"
    bound = ("--bind", origin.removeprefix("http://"), "--keep-alive", "30")
    served = ("--threads", "4", "--graceful-timeout", "60", "tests.graceful_host:app")
    environ = os.environ | {"FOLDER": str(tmp_path), "BASE_URLS": json.dumps(fake.base_urls)}
    environ["HOME"] = str(tmp_path)  # gunicorn makes a socket there
    with (tmp_path / "gunicorn.log").open("wb") as log:
        command = [sys.executable, "-m", "gunicorn", *bound, *served]
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        wait_until(lambda: httpx2.get(f"{origin}/plain").status_code == 200, "gunicorn")
        yield process, origin
    finally:
        process.kill()
        process.wait()


def uses(client: httpx2.Client) -> int:
    """Return how often the person's keys were used, as far as it was written."""
    found = client.get(f"{OWN}/stats").json()["by_provider"]
    return int(found["openai"]["uses"])


def test_restart_and_stop(
    tmp_path: Path, fake: FakeProviders, gunicorn: tuple[subprocess.Popen[bytes], str]
) -> None:
    """After HUP and TERM an open stream goes on to its end, and every use was counted."""
    process, origin = gunicorn
    fake.slow_seconds = 1.0
    with httpx2.Client(base_url=origin, timeout=60) as client, ThreadPoolExecutor(1) as other:
        client.post("/sign-in/ann")
        token = client.get(KEYS).json()["csrf_token"]
        body = {
            "provider": "openai",
            "api_key": fake.api_key("openai", "slow"),
            "validate": "off",
        }
        headers = {"X-CSRFToken": token}
        assert client.post(OWN, json=body, headers=headers).status_code == 201
        for number, sent in enumerate((signal.SIGHUP, signal.SIGTERM), start=1):
            for _ in range(5):
                assert client.get("/used/openai").status_code == 200
            stream = other.submit(client.get, "/chat/openai")
            wait_until(lambda: len(fake.calls) == number, "the stream's call")  # noqa: B023
            process.send_signal(sent)
            assert "event: done" in stream.result().text
            if sent is signal.SIGHUP:
                wait_until(lambda: uses(client) == 6, "the counts of the worker that left")
        assert process.wait() == 0
    app = make_app(tmp_path, fake)
    assert accounts_of(app).usage.stats(["user:ann"])["by_provider"]["openai"]["uses"] == 12
    close(app)
