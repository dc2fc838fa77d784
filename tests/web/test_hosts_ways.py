"""What hosts have their own way: Flask's cookie session, names, addresses, folders."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Blueprint, Flask, render_template_string, request
from flask.sessions import SecureCookieSessionInterface

from flask_byok import BYOK, ConfigurationError
from flask_byok.storage.engine import open_engine
from flask_byok.testing import FakeProviders
from tests.app import ENCRYPTION_KEY, KEYS, HostApp, bare, browser, make_app, problem_of

ACCOUNTS = ["user", "team", "system", "secret", "env"]


def cookie_host(directory: Path, fake: FakeProviders) -> HostApp:
    """Return a host without Flask-Session."""
    return make_app(directory, fake, SESSION_TYPE=None, BYOK_PRECEDENCE=ACCOUNTS)


def test_accounts_need_no_session_store(tmp_path: Path, fake: FakeProviders) -> None:
    """With accounts alone calls, page and CSRF work on Flask's cookie session, which gets no key and no ref."""
    app, api_key = cookie_host(tmp_path, fake), fake.api_key("openai")
    assert type(app.session_interface) is SecureCookieSessionInterface
    ann = browser(app)
    ann.post("/sign-in/ann")
    ann.load()
    assert (
        ann.post(f"{KEYS}/set", json={"provider": "openai", "api_key": api_key}).status_code == 400
    )
    assert ann.save(api_key).status_code == 200
    assert ann.status()["source"] == "user"
    assert ann.call("validate", provider="openai").get_json()["valid"] is True
    assert ann.get("/used/openai").get_json()["source"] == "user"
    assert 'id="byok-openai' in ann.get("/api/providers/settings").text
    reader = SecureCookieSessionInterface().get_signing_serializer(app)
    assert reader is not None
    cookie = reader.loads(ann.session_id)
    assert [name for name in cookie if "byok" in name] == []
    assert api_key not in str(cookie)
    assert ann.call("clear", provider="openai").get_json()["cleared"] == ["user"]
    assert ann.post("/sign-out").text == "signed out"
    assert ann.status()["source"] is None


def test_visitors_without_a_session_store(tmp_path: Path, fake: FakeProviders) -> None:
    """Where keys are in accounts only, a visitor who saves one is asked to sign in."""
    visitor = browser(cookie_host(tmp_path, fake))
    assert problem_of(visitor.save(fake.api_key("openai"))) == (401, "owner_required")


def test_session_keys_need_a_session_store(tmp_path: Path, fake: FakeProviders) -> None:
    """With sessions among the tiers the cookie session is refused, and the message has both ways out."""
    with pytest.raises(ConfigurationError, match=r"Flask-Session .* leave 'session' out"):
        make_app(tmp_path, fake, SESSION_TYPE=None)


# what people paste


@pytest.mark.parametrize(
    "pasted", ["your_openai_api_key_here", "${OPENAI_API_KEY}", "sk-xxxxxxxxxxxxxx"]
)
def test_pasted_placeholders(tmp_path: Path, fake: FakeProviders, pasted: str) -> None:
    """A placeholder that is pasted is refused with a sentence that says what it is, and asked of no provider."""
    answer = browser(make_app(tmp_path, fake)).save(pasted)
    assert problem_of(answer) == (422, "malformed_api_key")
    assert "placeholder" in answer.get_json()["detail"]
    assert fake.calls == []


# names and addresses


def test_taken_names(tmp_path: Path) -> None:
    """Another extension, blueprint or global of Jinja named byok is refused at start, by name."""
    for number, (take, named) in enumerate(
        [
            (lambda app: app.extensions.update(byok=object()), "an extension"),
            (lambda app: app.register_blueprint(Blueprint("byok", "x")), "a blueprint"),
            (lambda app: app.jinja_env.globals.update(byok=1), "a global of Jinja's"),
        ]
    ):
        app = bare(tmp_path / str(number))
        take(app)
        with pytest.raises(ConfigurationError, match=f"{named} .*'byok'"):
            BYOK(app)


def taken_route(app: Flask) -> None:
    """Give the host a route of its own at one of our addresses."""
    app.add_url_rule(
        "/api/keys/<number>", "hosts", lambda number: number, methods=["GET", "PUT", "BREW"]
    )


def test_routes_at_our_addresses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A route of the host's at one of our addresses is refused at start, or logged at the first request."""
    app = bare(tmp_path / "1")
    taken_route(app)
    with pytest.raises(
        ConfigurationError, match=r"/api/keys/<number> \(GET, PUT\), endpoint 'hosts'"
    ):
        BYOK(app)
    app = bare(tmp_path / "2", BYOK_URL_PREFIX="/byok")
    taken_route(app)
    assert BYOK(app)
    app = bare(tmp_path / "3", BYOK_PRECEDENCE=ACCOUNTS)
    assert BYOK(app)
    taken_route(app)
    app.jinja_env.globals["byok"] = "another"
    for _ in range(2):
        app.test_client().get("/")
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 2
    assert "endpoint 'hosts'" in said[0]
    assert "Another 'byok'" in said[1]


@pytest.mark.parametrize("hide", ["a processor", "a blueprint's processor", "a view"])
def test_another_byok_in_templates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hide: str
) -> None:
    """A template that is given another `byok` is named in the log, once; one that is given ours is not."""
    app = bare(tmp_path, BYOK_PRECEDENCE=ACCOUNTS)
    byok = BYOK(app)
    pages = Blueprint("pages", __name__)
    app.context_processor(lambda: {"byok": app.jinja_env.globals["byok"]})
    given = {"byok": byok} if hide == "a view" else {}
    pages.add_url_rule("/", "page", lambda: render_template_string("", **given))
    app.add_url_rule("/ours", "ours", lambda: render_template_string(""))
    if hide == "a blueprint's processor":
        pages.context_processor(lambda: {"byok": byok})
    elif hide == "a processor":
        app.context_processor(lambda: {"byok": byok} if request.path == "/" else {})
    app.register_blueprint(pages)
    client = app.test_client()
    for path, times in (("/ours", 0), ("/", 1), ("/", 1)):
        assert client.get(path).status_code == 200
        assert caplog.text.count("Another 'byok' has taken the place") == times


# folders and files


@pytest.fixture
def others_folder() -> Iterator[Path]:
    """Return a folder that this user may read and not write; root becomes another user meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(
            stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH
        )
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("path", ["byok.sqlite", "below/byok.sqlite"])
def test_a_folder_that_cannot_be_written(others_folder: Path, path: str) -> None:
    """A SQLite file that cannot be made is a ConfigurationError with its path and what to do."""
    with pytest.raises(
        ConfigurationError, match=r"byok\.sqlite cannot be written .*BYOK_DATABASE_URL"
    ):
        open_engine(f"sqlite:///{others_folder / path}")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder, or a path below a file, in the place of the SQLite file is refused at start."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "byok.sqlite"):
        app = bare(tmp_path, BYOK_DATABASE_URL=f"sqlite:///{path}")
        with pytest.raises(ConfigurationError, match=r"cannot be written \(.*BYOK_DATABASE_URL"):
            BYOK(app)


def test_heroku_address(postgres_url: str, tmp_path: Path) -> None:
    """An address that begins with postgres:// is PostgreSQL's."""
    address = postgres_url.replace("postgresql+psycopg", "postgres")
    assert address.startswith("postgres://")
    app = bare(tmp_path, BYOK_DATABASE_URL=address, BYOK_ENCRYPTION_KEY=ENCRYPTION_KEY)
    assert BYOK(app)
