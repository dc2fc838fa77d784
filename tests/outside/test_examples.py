"""The other examples of the page on jobs work as written; those for Celery, RQ and sockets run in their own files."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, session

from tests.app import Browser
from tests.outside.conftest import Place

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def jobs(imported: Place) -> Any:
    """Import the example, in a host whose session names the user."""
    import jobs

    app: Flask = jobs.app
    jobs.byok.owner_loader(lambda: session.get("user_id"))
    app.config["WTF_CSRF_ENABLED"] = False
    app.add_url_rule("/in", "in", lambda: str(session.update(user_id="ada")))
    yield jobs
    jobs.pool.shutdown()


@pytest.fixture
def ada(jobs: Any) -> Browser:
    """Return the browser of the user who has an account key."""
    client = Browser(jobs.app, use_cookies=True)
    client.get("/in")
    return client


def test_a_thread_takes_the_request_along(imported: Place, ada: Browser) -> None:
    """The copied request's person is the one whose key serves, session keys included."""
    own = imported.fake.api_key("openai", owner="session")
    ada.save(own)
    imported.fake.clear_calls()
    assert ada.post("/in-a-thread").text
    assert imported.used() == {own}


def test_an_executor_acts_for_whom_it_is_given(imported: Place, jobs: Any, ada: Browser) -> None:
    """The work that outlives the request uses the account's key."""
    assert ada.post("/in-the-background").get_json() == {"started": True}
    jobs.pool.shutdown(wait=True)
    assert imported.used() == {imported.adas}


def test_a_command_on_the_operators_key(imported: Place, jobs: Any) -> None:
    """The command uses the operator's key, as it says."""
    done = jobs.app.test_cli_runner().invoke(args=["nightly"])
    assert (done.exit_code, bool(done.output)) == (0, True)
    assert imported.used() == {imported.operators}


def test_a_generator_on_an_object_of_the_view(imported: Place, ada: Browser) -> None:
    """The stream in the host's own format uses the person's key, and the header says so."""
    answer = ada.post("/own-format", json=HELLO)
    assert "hello" in answer.text
    assert answer.headers["X-BYOK-Source"] == "user"
    assert imported.used() == {imported.adas}
