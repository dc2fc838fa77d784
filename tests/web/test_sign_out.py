"""Sign-out is noticed in hosts of every kind, also if the user touched nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flask import g, session
from flask_login import current_user, login_user, logout_user

from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp, User, browser, fingerprint, make_app

Do = Callable[[], object]


def _delete_most() -> None:
    for name in [name for name in session if name != "language"]:
        del session[name]


#: How hosts sign people out that keep the user's id in the session.
SIGN_OUTS: dict[str, Do] = {
    "pop": lambda: session.pop("user_id"),
    "clear": lambda: session.clear(),
    "delete_most": _delete_most,
    "none": lambda: session.update(user_id=None),
    "overwrite": lambda: session.update(user_id="eve"),
}


def _reads_session(app: HostApp) -> None:
    app.byok.owner_loader(lambda: session.get("user_id"))


def _reads_g(app: HostApp) -> None:
    @app.before_request
    def load() -> None:
        g.user = session.get("user_id")

    app.byok.owner_loader(lambda: g.user)


@pytest.fixture(params=["ask", "on_login", "never"])
def make_host(
    tmp_path: Path, fake: FakeProviders, request: pytest.FixtureRequest
) -> Callable[[Do, Do], HostApp]:
    """Make a host with the given ways to sign in and out."""

    def make(sign_in: Do, sign_out: Do) -> HostApp:
        app = make_app(tmp_path, fake, csrf_protect=False, BYOK_PROMOTE=request.param)
        app.add_url_rule("/in", "in", lambda: str(sign_in()))
        app.add_url_rule("/out", "out", lambda: str(sign_out()))
        app.add_url_rule("/language", "language", lambda: str(session.update(language="de")))
        return app

    return make


@pytest.mark.parametrize("sign_out", SIGN_OUTS)
@pytest.mark.parametrize("reads", [_reads_session, _reads_g])
@pytest.mark.parametrize("saved_as", ["visitor", "user"])
def test_the_next_on_this_browser_gets_no_key(
    make_host: Callable[[Do, Do], HostApp],
    fake: FakeProviders,
    reads: Callable[[HostApp], None],
    sign_out: str,
    saved_as: str,
) -> None:
    """A key saved before or after sign-in, unused since, serves no one after the sign-out, nor that user again."""
    app = make_host(lambda: session.update(user_id="ada"), SIGN_OUTS[sign_out])
    reads(app)
    visitor = browser(app)
    visitor.get("/language")
    steps = [lambda: visitor.save(fake.api_key("openai")), lambda: visitor.get("/in")]
    for step in steps if saved_as == "visitor" else reversed(steps):
        assert step().status_code == 200
    visitor.get("/out")
    _finds_nothing(visitor)
    visitor.get("/in")
    _finds_nothing(visitor)


@pytest.mark.parametrize("saved_as", ["visitor", "user"])
def test_sign_out_by_flask_login(
    make_host: Callable[[Do, Do], HostApp], fake: FakeProviders, saved_as: str
) -> None:
    """So it is with Flask-Login, also if the host only takes its entry out of the session."""
    app = make_host(lambda: login_user(User("ada")), lambda: session.pop("_user_id"))
    app.add_url_rule("/log-out", "log-out", lambda: str(logout_user()))
    app.byok.owner_loader(lambda: current_user.is_authenticated and current_user.get_id())
    for way in ("/out", "/log-out"):
        visitor = browser(app)
        steps = [lambda: visitor.save(fake.api_key("openai")), lambda: visitor.get("/in")]  # noqa: B023
        for step in steps if saved_as == "visitor" else reversed(steps):
            assert step().status_code == 200
        visitor.get(way)
        _finds_nothing(visitor)


def _finds_nothing(visitor: Browser) -> None:
    assert visitor.get("/used/openai").get_json()["code"] == "key_missing"


def test_a_visitors_key_stays_the_visitors(app: HostApp, fake: FakeProviders) -> None:
    """Pages that change the session of a visitor who stays one take no key away."""
    visitor = browser(app)
    visitor.save(fake.api_key("openai"))
    visitor.get("/visit")
    used = visitor.get("/used/openai").get_json()
    assert used["fingerprint"] == fingerprint(fake.api_key("openai"))
