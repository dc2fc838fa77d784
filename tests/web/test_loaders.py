"""The host's loaders, which say who is calling."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from werkzeug.local import LocalProxy

from flask_byok.errors import ConfigurationError
from flask_byok.model.owner import Caller
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import current_caller, get_state
from tests.app import User, browser, make_app

#: Their text may be anyone's: that of Flask-Login's ``current_user`` in a thread is "None".
NO_IDS: list[Any] = [
    True,
    b"7",
    "None",
    "  ",
    7.0,
    object(),
    [7],
    {"id": 7},
    User(7),
    LocalProxy(lambda: None),
]


@pytest.mark.parametrize(
    ("returned", "user"),
    [
        *((visitor, None) for visitor in (None, False, "")),
        (0, "0"),
        (7, "7"),
        ("a", "a"),
        (UUID(int=1), str(UUID(int=1))),
    ],
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
        *((user, (), "owner_loader returned a") for user in NO_IDS),
        *(("ann", teams, "Give a list") for teams in ("red", b"red")),
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


@pytest.mark.parametrize("user", NO_IDS)
def test_acting_for_takes_ids_only(tmp_path: Path, user: Any) -> None:
    """A user object, or what stands for none, is no person: the error says so, and no key serves."""
    app = make_app(tmp_path)
    for said, given, teams in (
        ("acting_for got", user, ()),
        ("acting_for got teams", "ann", "red"),
    ):
        with (
            app.app_context(),
            pytest.raises(ConfigurationError, match=said),
            app.byok.acting_for(given, teams=teams),
        ):
            raise AssertionError


@pytest.mark.parametrize("team", ["x" * 251, "a\0b", "\ud800", User(7)])
def test_a_team_that_no_database_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, team: Any
) -> None:
    """A team whose id cannot be stored has no keys: it is left out, the other teams count, and the log says so."""
    app = make_app(tmp_path)
    app.byok.owner_loader(lambda: "ann")
    app.byok.team_loader(lambda: [team, "b" * 250])
    with app.test_request_context():
        assert current_caller(get_state()).teams == ("b" * 250,)
    assert browser(app).get("/api/providers/keys").status_code == 200
    assert "left out" in caplog.text
    assert str(team) not in caplog.text


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
