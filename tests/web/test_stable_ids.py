"""With Flask-Login keys belong to an id that stays: never to a token that changes with a password."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_login import LoginManager, current_user, login_user
from flask_security import Security, SQLAlchemyUserDatastore
from flask_security.changeable import change_user_password
from flask_security.models import fsqla_v3 as fsqla
from flask_security.utils import hash_password
from flask_security.utils import login_user as sign_in
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy

from flask_byok import BYOK
from flask_byok.testing import FakeProviders
from tests.app import Browser, bare, browser


def _with_security(directory: Path, fake: FakeProviders) -> Flask:
    """Return a host with Flask-Security, in which user 1 can sign in and change the password."""
    app = bare(
        directory,
        SECURITY_PASSWORD_SALT="made up",
        SECURITY_PASSWORD_HASH="pbkdf2_sha512",
        SECURITY_SEND_PASSWORD_CHANGE_EMAIL=False,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{directory / 'host.sqlite'}",
        BYOK_BASE_URLS=fake.base_urls,
        BYOK_ALLOW_CUSTOM_PROVIDERS=True,
    )
    db = SQLAlchemy(app)
    fsqla.FsModels.set_db_info(db)
    role = type("Role", (db.Model, fsqla.FsRoleMixin), {})
    users = SQLAlchemyUserDatastore(db, type("User", (db.Model, fsqla.FsUserMixin), {}), role)
    Session(app)
    Security(app, users)
    BYOK(app)
    with app.app_context():
        db.create_all()
        users.create_user(email="ada@example.com", password=hash_password("before it"))
        db.session.commit()

    @app.get("/in")
    def come_in() -> str:
        user = users.find_user(email="ada@example.com")
        sign_in(user)
        db.session.commit()
        return str(user.fs_uniquifier)

    @app.get("/change")
    def change() -> str:
        change_user_password(current_user._get_current_object(), "after it", notify=False)
        db.session.commit()
        return str(current_user.fs_uniquifier)

    return app


def test_a_new_password_keeps_the_keys(tmp_path: Path, fake: FakeProviders) -> None:
    """With Flask-Security the account's keys are there after a change of the password, which changes its token."""
    app = _with_security(tmp_path, fake)
    client = browser(app)
    before = client.get("/in").text
    assert client.save(fake.api_key("openai"), persist=True).status_code == 200
    after = client.get("/change").text
    assert after != before
    assert client.status()["source"] == "user"
    another = browser(app)
    another.get("/in")
    assert another.status()["source"] == "user"


class _User:
    is_authenticated = is_active = True
    is_anonymous = False

    def __init__(self, given: str, **own: Any) -> None:
        self._given = given
        vars(self).update(own)

    def get_id(self) -> str:
        return self._given


def _visitor(directory: Path, user: _User) -> tuple[Browser, BYOK]:
    app = bare(directory)
    Session(app)
    byok = BYOK(app)
    LoginManager(app).user_loader(lambda _: user)
    app.add_url_rule("/in", "in", lambda: str(login_user(user)))
    visitor = browser(app)
    visitor.get("/in")
    return visitor, byok


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ("token-6f1b", {"id": 5}),
        ("admin-5", {"id": 5}),
        ("user-5", {"id": 5}),
        ("ada@example.com", {"id": uuid.UUID(int=5)}),
        ("token-6f1b", {"_id": 5}),
        ("token-6f1b", {"user_id": 5, "username": "ada"}),
        ("token-6f1b", {"member_no": 5, "session_token": "token-6f1b"}),
        ("token-6f1b", {"email": "ada@example.com", "alternative_id": "token-6f1b"}),
        ("token-6f1b", {"row": {"number": 5, "token": "token-6f1b"}}),
        ("token-6f1b", {"fs_uniquifier": "token-6f1b", "number": 5}),
    ],
)
def test_a_get_id_that_may_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: str, own: dict[str, Any]
) -> None:
    """An id other than the user's own is refused, and the log shows the line to write; with it, it is as written."""
    visitor, byok = _visitor(tmp_path, _User(given, **own))
    answer = visitor.get("/api/providers/keys")
    assert (answer.status_code, answer.get_json()["code"]) == (500, "configuration")
    assert (
        "byok.owner_loader(lambda: current_user.is_authenticated and current_user.id)"
        in caplog.text
    )
    byok.owner_loader(lambda: current_user.is_authenticated and current_user.get_id())
    assert visitor.load()["authenticated"] is True


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ("5", {"id": 5}),
        ("ada", {}),
        (str(uuid.UUID(int=5)), {"id": uuid.UUID(int=5)}),
        ("5", {"_id": 5, "token": "token-6f1b"}),
        ("ada", {"username": "ada", "email": "ada@example.com", "active": True}),
        ("5", {"user_id": 5, "session_token": "token-6f1b"}),
    ],
)
def test_a_get_id_that_stays(tmp_path: Path, given: str, own: dict[str, Any]) -> None:
    """The user's own id, or the only one that there is, is taken."""
    visitor, _ = _visitor(tmp_path, _User(given, **own))
    assert visitor.load()["authenticated"] is True
