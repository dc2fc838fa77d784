"""Real workers of Celery and RQ: a job uses the keys of the person whom it names, and nobody's otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery
from flask import Response, jsonify, stream_with_context
from redis import Redis
from rq import Queue

from tests.app import Browser
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


def test_an_eager_task_is_as_in_a_worker(imported: Place) -> None:
    """Run within a visitor's request, a task acts for the user whom it names, and finds no key if it names no one."""
    from jobs import app, celery, summarise

    from tests.outside.worker import tried_in_celery

    celery.conf.task_always_eager = True

    def pieces() -> Iterator[str]:
        yield json.dumps(tried_in_celery.delay().get())

    tasks = {"named": lambda: summarise.delay("ada", "hello"), "silent": tried_in_celery.delay}
    app.add_url_rule("/run/<name>", "run", lambda name: jsonify(tasks[name]().get()))
    app.add_url_rule(
        "/stream",
        "stream",
        lambda: Response(stream_with_context(pieces()), mimetype="application/json"),
    )
    visitor = Browser(app, use_cookies=True)
    visitor.save(imported.fake.api_key("openai", owner="visitor"))
    imported.fake.clear_calls()
    assert visitor.get("/run/named").status_code == 200
    assert imported.used() == {imported.adas}
    assert visitor.get("/run/silent").get_json() == UNKNOWN
    with app.app_context():  # as in many a host's tests
        assert visitor.get("/run/silent").get_json() == UNKNOWN
    assert visitor.get("/stream").get_json() == UNKNOWN
    assert visitor.status()["source"] == "session"
    assert imported.used() == {imported.adas}


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
