"""Rotation while keys are read and replaced, by a command that is killed again and again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.wing import open_accounts
from flask_byok.sealing.keyring import Keyring

from .rotating import AFTER, NEW, OLD, fill, opened

#: The part of the keys over which the kills are spread, evenly.
SPREAD = 0.7
ROTATE = [sys.executable, "-m", "flask", "--app", "tests.guarantees.rotating", "byok", "rotate"]


@pytest.mark.parametrize("kind", ["sqlite_url", "postgres_url"])
def test_some_kills(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    """No read fails and no write is lost while keys are sealed anew by a process that is killed."""
    url = request.getfixturevalue(kind)
    rotate_under_load(url, tmp_path, count=6_000, kills=3)


def test_ctrl_c(postgres_url: str) -> None:
    """Ctrl-C ends the command with a sentence, whatever it is at."""
    fill(postgres_url, 20_000)  # more than it can seal before the signal comes
    process = rotator(postgres_url)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[-1].endswith("Run it again to go on.")
    assert "Traceback" not in output


@pytest.mark.stress
def test_twenty_kills(postgres_url: str, tmp_path: Path) -> None:
    """The same with 100,000 keys on PostgreSQL and 20 kills."""
    rotate_under_load(postgres_url, tmp_path, count=100_000, kills=20)


def rotate_under_load(url: str, folder: Path, *, count: int, kills: int) -> None:
    """Rotate with readers and writers running, killing the rotator, and look at what is there then."""
    fill(url, count)
    store = open_accounts(url, AFTER)
    with (
        worker("read", url, folder, count) as read,
        worker("write", url, folder, count) as written,
    ):
        # Until here some worker has not been restarted with the new encryption key.
        with worker("write-old", url, folder, count) as written_before:
            for number in range(kills):
                kill_rotator(url, store, count - SPREAD * count * (number + 1) // (kills + 1))
        assert 0 < store.seals.count_due() < count
        finished = rotator(url)
        output, _ = finished.communicate(timeout=300)
        assert finished.returncode == 0, output
    reports = (read, written, written_before)
    assert [each["failed"] for each in reports] == [[], [], []]
    assert all(each["calls"] > 50 for each in reports)
    check(store, count, written["done"] | written_before["done"])
    store.engine.dispose()


def check(store: AccountStore, count: int, written: dict[str, int]) -> None:
    """See that every key opens with the new encryption key alone, as its last writer left it."""
    retired, seen, after = Keyring(NEW), 0, None
    while seen == 0 or after is not None:
        page, after = store.page(None, after=after, limit=1000)
        for record in page:
            assert opened(retired, record) == written.get(record.owner, 0)
        seen += len(page)
    assert seen == count
    counts = store.seals.count_by_key_id()
    assert counts == {retired.key_ids[0]: count + 1}
    assert Keyring(OLD).key_ids[0] not in counts
    owners = ("system", *(f"user:{number}" for number in range(20)))
    assert [finding for owner in owners for finding in store.audit.verify(owner)] == []


def rotator(url: str) -> subprocess.Popen[str]:
    """Begin to rotate, by command."""
    return subprocess.Popen(
        ROTATE,
        env=os.environ | {"ROTATING_URL": url, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_rotator(url: str, store: AccountStore, due: float) -> None:
    """Rotate, and kill the process at some moment after no more than so many keys are due."""
    process = rotator(url)
    assert process.stdout is not None
    with process.stdout:
        begun = process.stdout.readline()
        assert begun.startswith("Sealing again"), begun + process.stdout.read()
        while store.seals.count_due() > due:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.02))
        assert process.poll() is None, "it was too fast to be killed"
        process.kill()
        process.wait()


@contextmanager
def worker(kind: str, url: str, folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Run a reader or writer meanwhile; what it saw is there afterwards."""
    stop, report = folder / f"{kind}.stop", folder / f"{kind}.json"
    arguments = ["tests.guarantees.rotating", kind, url, stop, report, count]
    process = subprocess.Popen([sys.executable, "-m", *map(str, arguments)])
    seen: dict[str, Any] = {}
    try:
        yield seen
    finally:
        stop.touch()
        assert process.wait(60) == 0
    seen |= json.loads(report.read_text())
