"""Real workers of Celery and RQ: a job uses the keys of the person whom it names, and nobody's otherwise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery
from redis import Redis
from rq import Queue

from tests.keeper import accounts_of, logged
from tests.outside.calls import CALLS
from tests.outside.conftest import Place

UNKNOWN = dict.fromkeys(CALLS, "owner_required")


@contextmanager
def _celery_worker(place: Place) -> Iterator[Celery]:
    """Run a worker on the example's tasks."""
    program = [sys.executable, "-m", "celery", "-A", "tests.outside.worker:celery", "worker"]
    command = [*program, "--pool", "prefork", "--concurrency", "1", "--without-gossip"]
    with (
        (place.directory / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=place.directory, env=place.environ, stdout=log, stderr=log
        ) as worker,
    ):
        try:
            yield Celery("tests", broker=place.redis_url, backend=place.redis_url)
        finally:
            worker.terminate()


def test_celery(place: Place) -> None:
    """A task with `acting_for` uses that person's key, counted and logged as theirs; without, no key serves."""
    with _celery_worker(place) as celery:
        sent = celery.send_task("jobs.summarise", ["ada", "hello"])
        silent = celery.send_task("tried")
        assert sent.get(timeout=120)
        assert place.used() == {place.adas}
        assert silent.get(timeout=120) == UNKNOWN
    assert place.used() == {place.adas}
    _is_adas(place)


def test_rq(place: Place) -> None:
    """A job with `acting_for` uses that person's key, counted and logged as theirs; without, no key serves."""
    with Redis.from_url(place.redis_url) as connection:
        queue = Queue(connection=connection)
        sent = queue.enqueue("jobs.summarise_in_rq", "ada", "hello")
        silent = queue.enqueue("tests.outside.worker.tried_in_rq")
        command = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", place.redis_url]
        done = subprocess.run(
            command, cwd=place.directory, env=place.environ, capture_output=True, text=True
        )
        assert sent.return_value(), done.stderr
        assert silent.return_value() == UNKNOWN
    assert place.used() == {place.adas}
    _is_adas(place)


def _is_adas(place: Place) -> None:
    accounts = accounts_of(place.app)
    counted = accounts.usage.stats(["user:ada"])["by_provider"]["openai"]
    assert counted["uses"] == 1
    assert accounts.usage.stats(["system"])["by_provider"] == {}
    assert logged(place.app, "user:ada") == [("user:ada", "set", "done")]
