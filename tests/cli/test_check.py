"""What is set up and what is unsafe: ``flask byok check``."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine

from flask_byok.cli.values import shown_settings
from flask_byok.keyring import Keyring
from flask_byok.settings import Settings
from tests.services import free_port
from tests.stores.account_kinds import event_of, make_record
from tests.stores.older_tables import made_by_first_version

from .host import NEW, OLD, SAFE, accounts_of, make_app, refused, run

OLD_ID, NEW_ID = Keyring(OLD).key_ids[0], Keyring(NEW).key_ids[0]


def settings_of(output: str) -> dict[str, list[str]]:
    """Return the lines of the settings: name, value and source."""
    lines = (line.split() for line in output.splitlines() if line.startswith("BYOK_"))
    return {name: rest for name, *rest in lines}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing of the machine's environment count."""
    for name in ("KEY", "KEY_FILE", "KEY_FALLBACKS"):
        monkeypatch.delenv(f"BYOK_ENCRYPTION_{name}", raising=False)


def test_safe_app(tmp_path: Path, database_url: str) -> None:
    """A safe app passes, and the check says what is in use."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=database_url, **SAFE)
    result = run(app, "check")
    assert result.exit_code == 0, result.output
    assert "unsafe" not in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["session", "keys", "the", "database"] in lines
    assert ["accounts", "the", "database", f"({database_url.split(':')[0].split('+')[0]})"] in lines
    assert ["tables", "0003", "(newest", "0003)"] in lines
    assert ["providers", "6"] in lines


def test_every_setting_is_shown(tmp_path: Path) -> None:
    """Each setting has a line with its value and where that comes from."""
    shown = settings_of(run(make_app(tmp_path, BYOK_SET_RATE="5/hour", **SAFE), "check").output)
    assert set(shown) == {f"BYOK_{each.name.upper()}" for each in fields(Settings)}
    assert shown["BYOK_SET_RATE"] == ["5/hour", "config"]
    assert shown["BYOK_VALIDATE_RATE"] == ["20/minute", "default"]
    assert shown["BYOK_PRECEDENCE"] == [
        *("session,", "user,", "team,", "system,", "secret,", "env"),
        "default",
    ]
    assert shown["BYOK_REDIS"] == ["-", "default"]


@pytest.mark.parametrize("source", ["config", "environment", "file"])
def test_sources_of_the_encryption_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """It is told where the encryption key comes from, and shown by its id."""
    config: dict[str, Any] = {"BYOK_ENCRYPTION_KEY": None}
    path = tmp_path / "encryption.key"
    if source == "config":
        config = {"BYOK_ENCRYPTION_KEY": OLD}
    elif source == "environment":
        monkeypatch.setenv("BYOK_ENCRYPTION_KEY", OLD)
        monkeypatch.setenv("BYOK_ENCRYPTION_KEY_FALLBACKS", NEW)
    else:
        path.write_text(OLD)
        monkeypatch.setenv("BYOK_ENCRYPTION_KEY_FILE", str(path))
    output = run(make_app(tmp_path, **config, **SAFE), "check").output
    shown = settings_of(output)
    origin = ["file:", str(path)] if source == "file" else [source]
    assert shown["BYOK_ENCRYPTION_KEY"] == ["key", "id", OLD_ID, *origin]
    if source == "environment":
        assert shown["BYOK_ENCRYPTION_KEY_FALLBACKS"] == ["key", "id", NEW_ID, "environment"]
    assert OLD not in output
    assert NEW not in output


def test_nothing_secret_is_shown(tmp_path: Path) -> None:
    """No password is shown, wherever an address has it: with the user, with a slash, or after the path."""
    client = redis.Redis(password="hunter22")
    addresses = {
        "BYOK_DATABASE_URL": f"postgresql+psycopg://ann:hunter22@127.0.0.1:{free_port()}/name",
        "BYOK_BASE_URLS": {"openai": "https://ann:hunter22@gateway.example/v1?key=hunter22"},
    }
    for number, given in enumerate(("redis://ann:hunter22@127.0.0.1:1/0", client)):
        folder = tmp_path / str(number)
        config = {"BYOK_REDIS": given, **addresses, **SAFE}
        result = run(make_app(folder, **config), "check")
        assert "hunter22" not in result.output
    assert "https://gateway.example/v1" in result.output


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("redis://ann:hunter22@cache.example:6380/1", "redis://cache.example:6380/1"),
        ("redis://:hunter22@cache.example", "redis://cache.example"),
        ("unix:///run/redis.sock?password=hunter22", "unix:///run/redis.sock"),
        (
            "postgresql://ann:hunter22@db.example/name?sslkey=hunter22",
            "postgresql://db.example/name",
        ),
        ("postgresql://ann:hun/ter22@db.example/name", "set"),
        ("postgresql://ann:hun[ter22@db.example/name", "set"),
        ("hunter22", "set"),
    ],
)
def test_addresses(given: str, shown: str) -> None:
    """An address is shown without what may be secret; one that cannot be read is not shown."""
    settings = Settings(redis=given, database_url=given)
    values = shown_settings(settings, Keyring(OLD))
    assert values["redis"] == values["database_url"] == shown


def test_engine_is_shown_by_its_address() -> None:
    """An engine that was given is shown by its address."""
    engine = create_engine("postgresql+psycopg://ann:hunter22@db.example/name")
    shown = shown_settings(Settings(database_url=engine), Keyring(OLD))["database_url"]
    assert shown == "postgresql+psycopg://db.example/name"


def test_unsafe_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each unsafe setting is named with what to do, and the command fails."""
    config = {
        "WTF_CSRF_ENABLED": False,
        "SESSION_COOKIE_HTTPONLY": False,
        "BYOK_SESSION_TTL": timedelta(days=30),
        "BYOK_ALLOW_REVEAL": True,
        "BYOK_ALLOW_PRIVATE_ENDPOINTS": True,
    }
    monkeypatch.setenv("FLASK_DEBUG", "1")
    result = run(make_app(tmp_path, **config), "check")
    assert result.exit_code == 1
    for sentence in (
        "Debug mode is on",
        "SESSION_COOKIE_SECURE",
        "SESSION_COOKIE_SAMESITE",
        *config,
    ):
        assert f"unsafe: {sentence}" in result.output
    assert "Set it to True" in result.output


def test_missing_encryption_key(tmp_path: Path) -> None:
    """A key that was made up for a test run is called what it is."""
    with pytest.warns(UserWarning, match="throw-away"):
        app = make_app(tmp_path, BYOK_ENCRYPTION_KEY=None, TESTING=True, **SAFE)
    result = run(app, "check")
    assert result.exit_code == 1
    assert "made up for this run" in result.output
    assert "unsafe: BYOK_ENCRYPTION_KEY is not set" in result.output


def test_notes(tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    """What is fine on one machine, or in one worker, is noted; it is not unsafe."""
    small = run(make_app(tmp_path, **SAFE), "check")
    assert small.exit_code == 0
    for words in ("own memory", "SQLite file", "PREFERRED_URL_SCHEME"):
        assert words in small.output
    config = {"BYOK_REDIS": redis_url, "BYOK_DATABASE_URL": postgres_url}
    large = run(make_app(tmp_path, PREFERRED_URL_SCHEME="https", **config, **SAFE), "check")
    assert large.exit_code == 0
    assert "note:" not in large.output


def test_encryption_keys_in_use(tmp_path: Path, database_url: str) -> None:
    """Each encryption key is shown with how much it has sealed."""
    before = make_app(tmp_path, BYOK_DATABASE_URL=database_url, BYOK_ENCRYPTION_KEY=OLD, **SAFE)
    for number in range(3):
        accounts_of(before).create(make_record(f"user:{number}"), event_of())
    keys = {"BYOK_ENCRYPTION_KEY": NEW, "BYOK_ENCRYPTION_KEY_FALLBACKS": [OLD]}
    result = run(make_app(tmp_path, BYOK_DATABASE_URL=database_url, **keys, **SAFE), "check")
    assert result.exit_code == 0
    lines = [line.split() for line in result.output.splitlines()]
    assert ["current", "key", "id", NEW_ID, "0", "sealed"] in lines
    assert ["fallback", "key", "id", OLD_ID, "4", "sealed"] in lines


def test_encryption_key_retired_too_early(tmp_path: Path, database_url: str) -> None:
    """Keys that no configured encryption key opens are unsafe, and the missing one is named."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=database_url, BYOK_ENCRYPTION_KEY=OLD, **SAFE)
    accounts_of(app).create(make_record(keyring=Keyring(NEW)), event_of())
    result = run(app, "check")
    assert result.exit_code == 1
    assert (
        f"unsafe: no configured encryption key has the id {NEW_ID}, with which 1" in result.output
    )


def test_wrong_encryption_key(tmp_path: Path, database_url: str) -> None:
    """A wrong encryption key is unsafe, and it is said what to do."""
    make_app(tmp_path, BYOK_DATABASE_URL=database_url, BYOK_ENCRYPTION_KEY=OLD, **SAFE)
    app = make_app(
        tmp_path, BYOK_DATABASE_URL=database_url, BYOK_ENCRYPTION_KEY=NEW, TESTING=True, **SAFE
    )
    result = run(app, "check")
    assert result.exit_code == 1
    assert "add it to BYOK_ENCRYPTION_KEY_FALLBACKS" in result.output


def test_old_tables(tmp_path: Path) -> None:
    """Tables of an older version are unsafe, and the command that upgrades them is named."""
    engine = create_engine(f"sqlite:///{tmp_path / 'keys.sqlite'}")
    made_by_first_version(engine)
    result = run(make_app(tmp_path, BYOK_DATABASE_URL=str(engine.url), **SAFE), "check")
    assert result.exit_code == 1
    assert "flask byok db upgrade" in result.output
    engine.dispose()


def test_database_away(tmp_path: Path) -> None:
    """Without its database the check still shows the settings, and says what is missing."""
    url = f"postgresql+psycopg://ann:hunter22@127.0.0.1:{free_port()}/name"
    result = run(make_app(tmp_path, BYOK_DATABASE_URL=url, **SAFE), "check")
    assert result.exit_code == 1
    assert "unsafe: The database does not answer" in result.output
    assert "BYOK_PRECEDENCE" in result.output
    assert "hunter22" not in result.output


def test_no_accounts(tmp_path: Path) -> None:
    """An app without accounts passes."""
    result = run(make_app(tmp_path, BYOK_PRECEDENCE=["session", "env"], **SAFE), "check")
    assert result.exit_code == 0
    assert ["accounts", "-"] in [line.split() for line in result.output.splitlines()]


def test_user_without_rights(tmp_path: Path, limited_url: str) -> None:
    """A database user who may not make the tables is told which statements an administrator runs; the app starts."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=limited_url, **SAFE)
    result = run(app, "check")
    assert result.exit_code == 1
    assert "unsafe: The database's user may not make tables" in result.output
    assert "flask byok db sql" in refused(run(app, "list"))
    assert "flask byok db sql" in refused(run(app, "db", "upgrade"))
    assert "CREATE TABLE byok_audit" in run(app, "db", "sql").output
