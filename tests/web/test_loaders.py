"""The host's loaders, which say who is calling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flask_byok.model.owner import Caller
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import current_caller, get_state
from tests.app import browser, make_app


@pytest.mark.parametrize(
    ("returned", "user"),
    [*((nobody, None) for nobody in (None, False, "")), (0, "0"), (7, "7"), ("a", "a")],
)
def test_the_loader_may_return_any_id(tmp_path: Path, returned: Any, user: str | None) -> None:
    """An id of any type becomes text, 0 too; None, False and an empty string mean a visitor."""
    app = make_app(tmp_path)
    app.byok.owner_loader(lambda: returned)
    app.byok.team_loader(lambda: [1, "b"])  # type: ignore[list-item]  # hosts do
    app.byok.admin_loader(lambda: True)
    seen: list[Caller] = []
    app.add_url_rule("/who", view_func=lambda: str(seen.append(current_caller(get_state()))))
    browser(app).get("/who")
    expected = (user, ("1", "b"), True) if user else (None, (), False)
    assert [(who.user, who.teams, who.admin) for who in seen] == [expected]


@pytest.mark.parametrize(
    ("user", "teams", "said"),
    [
        *((user, (), "owner_loader") for user in ("x" * 251, "a\0b", "\ud800")),
        # Otherwise all users would be one, and each letter a team.
        *((user, (), "owner_loader returned a") for user in (True, b"7")),
        *(("ann", teams, "Return a list") for teams in ("red", b"red")),
    ],
)
def test_loaders_that_return_no_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, user: Any, teams: Any, said: str
) -> None:
    """What cannot be an id or a list of ids is the host's mistake: the log says which loader made it."""
    app = make_app(tmp_path)
    app.byok.owner_loader(lambda: user)
    app.byok.team_loader(lambda: teams)
    answer = browser(app).get("/api/providers/keys")
    assert (answer.status_code, answer.get_json()["code"]) == (500, "configuration")
    assert said in caplog.text


@pytest.mark.parametrize("team", ["x" * 251, "a\0b", "\ud800"])
def test_a_team_that_no_database_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, team: str
) -> None:
    """A team whose id cannot be stored has no keys: it is left out, the other teams count, and the log says so."""
    app = make_app(tmp_path)
    app.byok.owner_loader(lambda: "ann")
    app.byok.team_loader(lambda: [team, "b" * 250])
    with app.test_request_context():
        assert current_caller(get_state()).teams == ("b" * 250,)
    assert browser(app).get("/api/providers/keys").status_code == 200
    assert "left out" in caplog.text
    assert team not in caplog.text


def test_loaders_of_the_signed_in_are_not_asked_for_visitors(
    tmp_path: Path, fake: FakeProviders
) -> None:
    """The team and admin loaders run only for a signed-in user."""
    app = make_app(tmp_path, fake)
    asked: list[str] = []
    app.byok.team_loader(lambda: asked.append("teams") or ())
    app.byok.admin_loader(lambda: bool(asked.append("admin")))
    visitor = browser(app)
    visitor.load()
    assert asked == []
    visitor.post("/sign-in/ada")
    visitor.load()
    assert {"teams", "admin"} == set(asked)
