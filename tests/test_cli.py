"""The commands of ``flask byok``."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask_session import Session
from sqlalchemy import Engine, Table, create_engine, inspect

from flask_byok import BYOK
from flask_byok.cli import byok as group
from flask_byok.errors import ConfigurationError
from flask_byok.keyring import Keyring, generate_encryption_key
from flask_byok.stores.sql_tables import canaries, keys, metadata, sessions
from flask_byok.web.state import get_state

SAFE = {"SESSION_COOKIE_SECURE": True, "SESSION_COOKIE_SAMESITE": "Lax"}


def run(app: Flask, *args: str) -> Result:
    """Run a command as ``flask byok`` would."""
    app.cli.add_command(group)
    return app.test_cli_runner().invoke(args=["byok", *args])


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    """Make a host with keys of the operator's for one provider and nothing unsafe."""
    (tmp_path / "groq_api_key").write_text("gsk_operators-own-key-1234\n")
    return make_app(tmp_path, **SAFE)


def make_app(tmp_path: Path, **config: Any) -> Flask:
    """Make a host as a developer would, on SQLite."""
    from cachelib import SimpleCache

    app = Flask(__name__, instance_path=str(tmp_path))
    app.config |= {
        "SECRET_KEY": "session secret",
        "SESSION_TYPE": "cachelib",
        "SESSION_CACHELIB": SimpleCache(),
        "BYOK_ENCRYPTION_KEY": generate_encryption_key(),
        "BYOK_SECRETS_DIR": str(tmp_path),
    } | config
    Session(app)
    BYOK(app)
    return app


def test_commands_are_found_by_flask() -> None:
    """Flask finds the commands through the entry point."""
    (entry,) = entry_points(group="flask.commands", name="byok")
    assert entry.load() is group


def test_generate_key_needs_no_app() -> None:
    """A new key is printed alone on a line, fits a keyring, and needs no application."""
    result = Flask(__name__).test_cli_runner().invoke(group, ["generate-key"])
    assert result.exit_code == 0
    assert result.output.count("\n") == 1
    assert Keyring(result.output.strip()).key_ids


def test_providers_are_listed(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each provider has a line that says which tier has the operator's key, without the key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-operators-own-key-5678")
    for name in ("GROQ_API_KEY", "XAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    result = run(app, "providers")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert list(lines) == ["openai", "anthropic", "google", "groq", "xai", "openrouter"]
    assert " env " in lines["openai"]
    assert " secret " in lines["groq"]
    assert " - " in lines["xai"]
    assert lines["google"].endswith("GEMINI_API_KEY, GOOGLE_API_KEY")
    assert "operators-own" not in result.output


def test_check_of_a_safe_app(app: Flask) -> None:
    """A safe app passes, and the check says what is in use."""
    result = run(app, "check")
    assert result.exit_code == 0
    assert "the database" in result.output
    assert "session, user, team, system, secret, env" in result.output
    assert "unsafe" not in result.output


def test_check_of_an_unsafe_app(tmp_path: Path) -> None:
    """Each unsafe setting is named with what to do, and the command fails."""
    result = run(make_app(tmp_path, WTF_CSRF_ENABLED=False, SESSION_COOKIE_HTTPONLY=False), "check")
    assert result.exit_code == 1
    for name in (
        "SESSION_COOKIE_SECURE",
        "SESSION_COOKIE_HTTPONLY",
        "SESSION_COOKIE_SAMESITE",
        "WTF_CSRF_ENABLED",
    ):
        assert f"unsafe: {name}" in result.output
    assert "Set it to True" in result.output


def test_database_commands(tmp_path: Path, redis_url: str) -> None:
    """The tables are shown, made and upgraded by command; printing the statements runs none."""
    url = f"sqlite:///{tmp_path / 'keys.sqlite'}"
    # With session keys elsewhere and no accounts the app itself does not touch the database.
    elsewhere = {"BYOK_REDIS": redis_url, "BYOK_PRECEDENCE": ["session", "env"]}
    app = make_app(tmp_path, BYOK_DATABASE_URL=url, **elsewhere, **SAFE)
    assert run(app, "db", "current").output == "tables  -\nnewest  0002\n"
    printed = run(app, "db", "sql")
    assert "CREATE TABLE byok_credentials" in printed.output
    assert run(app, "db", "current").output.startswith("tables  -")
    assert run(app, "db", "upgrade").output == "The tables are at revision 0002.\n"
    assert run(app, "db", "current").output == "tables  0002\nnewest  0002\n"
    assert run(app, "db", "upgrade").exit_code == 0


def test_database_commands_use_the_hosts_engine(tmp_path: Path) -> None:
    """Without an address the host's engine is used, else the file in the instance folder."""
    app = make_app(tmp_path, **SAFE)
    assert run(app, "db", "upgrade").exit_code == 0
    assert (tmp_path / "byok.sqlite3").exists()
    engine = create_engine(f"sqlite:///{tmp_path / 'host.sqlite'}")
    app.extensions["sqlalchemy"] = SimpleNamespace(engine=engine)
    assert run(app, "db", "upgrade").exit_code == 0
    assert inspect(engine).has_table("byok_credentials")
    engine.dispose()


def tables_of(path: Path, *tables: Table) -> Engine:
    """Make a database as another version did, without Alembic."""
    engine = create_engine(f"sqlite:///{path}")
    metadata.create_all(engine, tables=tables)
    return engine


def test_start_makes_the_tables(tmp_path: Path) -> None:
    """An app that keeps session keys in an empty database makes all tables at its start."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=f"sqlite:///{tmp_path / 'keys.sqlite'}", **SAFE)
    assert run(app, "db", "current").output == "tables  0002\nnewest  0002\n"


def test_start_upgrades_the_embedded_file(tmp_path: Path) -> None:
    """The file in the instance folder is upgraded at the start."""
    engine = tables_of(tmp_path / "byok.sqlite3", sessions, keys, canaries)
    assert "0002" in run(make_app(tmp_path, **SAFE), "db", "current").output.splitlines()[0]
    assert inspect(engine).has_table("byok_credentials")
    engine.dispose()


def test_start_leaves_other_databases(tmp_path: Path) -> None:
    """The tables of version 0.1.0 serve in any other database until the command upgrades them."""
    engine = tables_of(tmp_path / "keys.sqlite", sessions, keys, canaries)
    app = make_app(tmp_path, BYOK_DATABASE_URL=str(engine.url), **SAFE)
    assert get_state(app).service.sessions.establish("sid-1")
    assert not inspect(engine).has_table("byok_credentials")
    assert run(app, "db", "current").output == "tables  -\nnewest  0002\n"
    assert run(app, "db", "upgrade").output == "The tables are at revision 0002.\n"
    assert get_state(app).service.sessions.find("sid-1")
    engine.dispose()


def test_upgrade_of_what_is_too_old(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the tables are too old for the app it says so at its start, and the command still runs."""
    engine = tables_of(tmp_path / "keys.sqlite", sessions, keys)
    app = make_app(tmp_path, BYOK_DATABASE_URL=str(engine.url), **SAFE)
    assert "flask byok db upgrade" in caplog.text
    with pytest.raises(ConfigurationError, match="flask byok db upgrade"):
        get_state(app).service.sessions.find("sid-1")
    assert run(app, "db", "upgrade").exit_code == 0
    assert get_state(app).service.sessions.find("sid-1") is None
    engine.dispose()


def test_app_without_byok() -> None:
    """Without init_app a command says what was forgotten."""
    result = run(Flask(__name__), "providers")
    assert result.exit_code == 1
    assert "did you forget to call byok.init_app(app)?" in f"{result.output}{result.exception}"
