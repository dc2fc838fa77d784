"""Three accounts to sign in with. Their passwords are no secret: the sign-in page shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from flask import Blueprint, current_app, redirect, render_template, request, session, url_for
from flask_login import UserMixin, current_user, login_user, logout_user
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response

from .extensions import byok, login_manager

bp = Blueprint("accounts", __name__)


@dataclass(frozen=True)
class User(UserMixin):  # type: ignore[misc]  # Flask-Login ships no types
    """A user with an account."""

    id: str
    name: str
    #: Shown on the sign-in page, since this is a demo.
    password: str = field(repr=False)
    #: What signing in with it shows.
    about: str
    teams: tuple[str, ...] = ()
    admin: bool = False


#: Names of teams, by id.
TEAMS = {"engines": "Team Engines"}

USERS = {
    user.id: user
    for user in (
        User("ada", "Ada", "engine-1843", "Is in the team Engines.", ("engines",)),
        User(
            "grace",
            "Grace",
            "compiler-1952",
            "Is in the same team: they share its key, and neither sees the other's own.",
            ("engines",),
        ),
        User(
            "katherine",
            "Katherine",
            "orbit-1962",
            "Is an admin: sets the keys that the team and everybody share.",
            admin=True,
        ),
    )
}

# flask-byok takes the user's id from Flask-Login by itself; of teams and admins only the host knows.
byok.team_loader(lambda: current_user.teams)
byok.admin_loader(lambda: current_user.admin)

login_manager.login_view = "accounts.sign_in"
login_manager.user_loader(USERS.get)


@bp.get("/sign-in")
def sign_in() -> str:
    """Show the form."""
    return render_template("sign_in.html", users=USERS.values())


@bp.post("/sign-in")
def sign_in_submit() -> Any:
    """Sign in, under a new session id."""
    name = request.form.get("name", "").strip().lower()
    if not check_password_hash(_stored_hash(name), request.form.get("password", "")):
        page = render_template("sign_in.html", users=USERS.values(), name=name, wrong=True)
        return page, 401
    # A session id that an attacker planted before is worthless afterwards.
    current_app.session_interface.regenerate(session)  # type: ignore[attr-defined]
    login_user(USERS[name])
    return redirect(url_for("chat.index"), 303)


@bp.post("/sign-out")
def sign_out() -> Response:
    """Sign out; flask-byok deletes what the session kept."""
    logout_user()
    session.clear()
    return redirect(url_for("chat.index"), 303)


@cache
def _stored_hash(name: str) -> str:
    """Return what a real app would have in its database; made when asked for, as it takes its time."""
    return generate_password_hash(USERS[name].password) if name in USERS else ""
