"""What is set up and what is unsafe: ``flask byok check``."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask_migrate
import flask_sqlalchemy
import pytest
import redis
from cachelib import FileSystemCache
from click.testing import CliRunner, Result
from flask import Flask
from flask.cli import ScriptInfo
from sqlalchemy import create_engine, make_url
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_byok.catalog import PROVIDERS
from flask_byok.cli import byok as group
from flask_byok.cli.check import shown_address, shown_settings
from flask_byok.model.owner import SessionRef
from flask_byok.sealing.keyring import Keyring
from flask_byok.settings import Settings
from flask_byok.testing.api_keys import make_api_key
from flask_byok.web.caller import get_state
from tests.accounts.account_kinds import event_of, make_record
from tests.keeper import close
from tests.services import RedisServer, free_port
from tests.storage.contract import make_record as session_record

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


def test_safe_app(tmp_path: Path, sqlite_url: str) -> None:
    """A safe app passes, and the check says what is in use."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, **SAFE)
    result = run(app, "check")
    assert result.exit_code == 0, result.output
    assert "unsafe" not in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["session", "keys", "the", "database"] in lines
    assert ["accounts", "the", "database", "(sqlite)"] in lines
    assert ["tables", "0001", "(newest", "0001)"] in lines
    offered = [spec for spec in PROVIDERS if spec.base_url]
    assert ["providers", str(len(offered))] in lines


def test_every_setting_is_shown(tmp_path: Path) -> None:
    """Each setting has a line with its value and where that comes from."""
    shown = settings_of(run(make_app(tmp_path, BYOK_SET_RATE="5/hour", **SAFE), "check").output)
    assert set(shown) == {f"BYOK_{each.name.upper()}" for each in fields(Settings)}
    assert shown["BYOK_SET_RATE"] == ["5/hour", "config"]
    assert shown["BYOK_VALIDATE_RATE"] == ["20/minute", "default"]
    order = "session, user, team, system, secret, env"
    assert shown["BYOK_PRECEDENCE"] == [*order.split(), "default"]
    assert shown["BYOK_REDIS"] == ["-", "default"]


@pytest.mark.parametrize("source", ["config", "environment", "file"])
def test_sources_of_the_encryption_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """The source of the encryption key is shown, and the key by its id."""
    (path := tmp_path / "encryption.key").write_text(OLD)
    environ = {
        "environment": {"BYOK_ENCRYPTION_KEY": OLD, "BYOK_ENCRYPTION_KEY_FALLBACKS": NEW},
        "file": {"BYOK_ENCRYPTION_KEY_FILE": str(path)},
    }.get(source, {})
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    given = OLD if source == "config" else None
    output = run(make_app(tmp_path, BYOK_ENCRYPTION_KEY=given, **SAFE), "check").output
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


def test_addresses() -> None:
    """An address is shown without what may be secret; one that cannot be read is not shown."""
    for given, shown in (
        ("redis://ann:hunter22@cache.example:6380/1", "redis://cache.example:6380/1"),
        ("redis://:hunter22@cache.example", "redis://cache.example"),
        ("unix:///run/redis.sock?password=hunter22", "unix:///run/redis.sock"),
        ("redis://:123#hunter22@127.0.0.1:1/0", "set"),
        ("postgresql+psycopg://ann:4711?hunter22@127.0.0.1/name", "set"),
        ("postgresql://a:hunter22@db.example/x?sslkey=hunter22", "postgresql://db.example/x"),
        ("postgresql://ann:hun/ter22@db.example/name", "set"),
        ("postgresql://ann:hun[ter22@db.example/name", "set"),
        ("hunter22", "set"),
    ):
        values = shown_settings(Settings(redis=given, database_url=given), Keyring(OLD))
        assert values["redis"] == values["database_url"] == shown
        if shown.startswith("postgresql"):
            engine = create_engine(given.replace("postgresql:", "postgresql+psycopg:"))
            assert shown_address(engine) == shown.replace("postgresql:", "postgresql+psycopg:")


def test_unsafe_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each unsafe setting is named with what to do, as is a key made up for a test run; the command fails."""
    monkeypatch.setenv("FLASK_DEBUG", "1")
    config = {"BYOK_ENCRYPTION_KEY": None, "TESTING": True, "BYOK_ALLOW_REVEAL": True}
    with pytest.warns(UserWarning, match="throw-away"):
        app = make_app(tmp_path, **config)
    result = run(app, "check")
    assert result.exit_code == 1
    assert "made up for this run" in result.output
    for setting in ("SESSION_COOKIE_SECURE", "BYOK_ALLOW_REVEAL", "BYOK_ENCRYPTION_KEY is not set"):
        assert f"unsafe: {setting}" in result.stderr
    assert "unsafe: Debug mode is on" in result.stderr
    assert "Set it to True" in result.stderr


@pytest.mark.parametrize("on_redis", [True, False])
def test_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str, on_redis: bool
) -> None:
    """In debug without an encryption key accounts are in memory, and no store is said to be away."""
    monkeypatch.setenv("FLASK_DEBUG", "1")
    config = {"BYOK_REDIS": redis_url if on_redis else None, "BYOK_ENCRYPTION_KEY": None, **SAFE}
    with pytest.warns(UserWarning, match="throw-away"):
        result = run(make_app(tmp_path, **config), "check")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["accounts", "memory", "(sqlite)"] in lines
    assert ["tables", "0001", "(newest", "0001)"] in lines
    assert ("byok.sqlite3" in result.stdout) is not on_redis
    assert "SQLite file, for" not in result.stdout
    assert [line[:27] for line in result.stderr.splitlines()] == [
        "unsafe: Debug mode is on: e",
        "unsafe: BYOK_ENCRYPTION_KEY",
    ]


@pytest.mark.parametrize(
    ("same_site", "origins", "advice"),
    [
        ("lax", None, None),
        ("STRICT", None, None),
        ("None", ["https://app.example.org"], None),
        (None, ["https://app.example.org"], "Set it to 'Lax' or 'Strict' or 'None'."),
        ("none", None, "Set it to 'Lax' or 'Strict'."),
    ],
)
def test_same_site(
    tmp_path: Path, same_site: str | None, origins: list[str] | None, advice: str | None
) -> None:
    """The cookie's SameSite counts as Flask sends it; 'None' is right for front ends on other sites alone."""
    cookie = {"SESSION_COOKIE_SECURE": True, "SESSION_COOKIE_SAMESITE": same_site}
    result = run(make_app(tmp_path, BYOK_TRUSTED_ORIGINS=origins or (), **cookie), "check")
    assert result.exit_code == (advice is not None)
    assert result.stderr == "" if advice is None else advice in result.stderr


def test_accounts_in_memory(tmp_path: Path) -> None:
    """A database in memory is unsafe, as each worker has its own, and is looked at as the app uses it."""
    result = run(make_app(tmp_path, BYOK_DATABASE_URL="sqlite://", **SAFE), "check")
    assert result.exit_code == 1
    assert "(newest 0001)" in result.stdout
    (said,) = result.stderr.splitlines()
    assert said.startswith("unsafe: Accounts are in memory")
    assert "Set BYOK_DATABASE_URL to PostgreSQL" in said


def test_notes(tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    """A choice that is right for one machine or one worker is a note, not unsafe."""
    small = run(make_app(tmp_path, **SAFE), "check")
    assert small.exit_code == 0
    for words in ("allows BYOK_SET_RATE", "SQLite file", "PREFERRED_URL_SCHEME", "audit log grows"):
        assert words in small.output
    config = {"BYOK_REDIS": redis_url, "BYOK_DATABASE_URL": postgres_url}
    config["BYOK_AUDIT_RETENTION"] = timedelta(days=365)
    app = make_app(tmp_path, PREFERRED_URL_SCHEME="https", **config, **SAFE)
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    large = run(app, "check")
    assert large.exit_code == 0
    assert "note:" not in large.output


def test_encryption_keys_in_use(tmp_path: Path, sqlite_url: str) -> None:
    """Each encryption key is shown with how much it has sealed; one that is not configured is unsafe."""
    before = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, BYOK_ENCRYPTION_KEY=OLD, **SAFE)
    for number in range(3):
        accounts_of(before).put(make_record(f"user:{number}"), event_of())
    keys = {"BYOK_ENCRYPTION_KEY": NEW, "BYOK_ENCRYPTION_KEY_FALLBACKS": [OLD]}
    app = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, **keys, **SAFE)
    result = run(app, "check")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert f"current key id {NEW_ID} 0 sealed in accounts, 0 in sessions" in lines
    used = "4 sealed in accounts, 0 in sessions; in use: 'flask byok rotate' seals them again"
    assert f"fallback key id {OLD_ID} {used}" in lines
    strange = Keyring("785f3ec7eb32f30b90cd0fcf3657d388b5ff4297f2f9716ff66e9b69c05ddd09")
    accounts_of(app).put(make_record(keyring=strange), event_of())
    result = run(app, "check")
    assert result.exit_code == 1
    gone = f"unsafe: there is no encryption key with the id {strange.key_ids[0]}: 1 sealed in"
    assert gone in result.stderr


def test_encryption_keys_that_can_go(tmp_path: Path, sqlite_url: str, redis_url: str) -> None:
    """It is said of a fallback whether it can go, with and without accounts, and where sessions are not counted."""
    config = {"BYOK_DATABASE_URL": sqlite_url, "BYOK_PRECEDENCE": ["session", "env"], **SAFE}
    config |= {"BYOK_ENCRYPTION_KEY": NEW, "BYOK_ENCRYPTION_KEY_FALLBACKS": [OLD]}
    app = make_app(tmp_path, **config)
    gone = "0 sealed in accounts, 0 in sessions; it can go if it was replaced"
    output = run(app, "check").output
    assert gone in output
    assert ["accounts", "-"] in [line.split() for line in output.splitlines()]
    sessions = get_state(app).service.sessions
    session = SessionRef("sid", sessions.establish("sid"))
    sessions.write(session, "", session_record(ciphertext=f"byok1.{OLD_ID}.f.x"))
    in_use = "1 in sessions; in use until these sessions use their keys, or end"
    assert in_use in run(app, "check").output
    sessions.end(session)
    assert gone in run(app, "check").output
    on_redis = run(make_app(tmp_path, BYOK_REDIS=redis_url, **config), "check").output
    assert "sessions from before that have ended (30 days at most)" in on_redis


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_redis_that_evicts(tmp_path: Path, policy: str) -> None:
    """A Redis that deletes keys when it is full is unsafe; without a limit of memory it deletes none."""
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory-policy", policy)
        config = {"BYOK_REDIS": server.url, "BYOK_PRECEDENCE": ["session", "env"], **SAFE}
        app = make_app(tmp_path, **config)
        assert run(app, "check").exit_code == 0
        client.config_set("maxmemory", "100mb")
        result = run(app, "check")
    assert result.exit_code == 1
    assert (
        f"unsafe: Redis deletes session keys when it is full (maxmemory-policy {policy})"
        in result.stderr
    )
    assert "Set maxmemory-policy to noeviction" in result.stderr


def test_session_store_with_a_limit(tmp_path: Path) -> None:
    """A session store that forgets sessions from 500 on is unsafe, as cachelib makes it by default."""
    store = FileSystemCache(str(tmp_path / "few"))
    result = run(make_app(tmp_path, SESSION_CACHELIB=store, **SAFE), "check")
    assert result.exit_code == 1
    assert "unsafe: The session store FileSystemCache keeps 500 sessions" in result.stderr
    assert "threshold=0" in result.stderr


@pytest.mark.parametrize(
    ("url", "sentence", "shown"),
    [
        ("postgresql+psycopg://ann:hunter22@{}/name", "Nothing listens at", "BYOK_PRECEDENCE"),
        ("redis://:hunter22@{}/0", "Redis does not answer", "current key id"),
    ],
)
def test_store_that_is_away(tmp_path: Path, url: str, sentence: str, shown: str) -> None:
    """Without its database or Redis the check still shows the settings, and says what is missing."""
    setting = "BYOK_REDIS" if url.startswith("redis") else "BYOK_DATABASE_URL"
    config = {setting: url.format(f"127.0.0.1:{free_port()}")}
    result = run(make_app(tmp_path, **config, **SAFE), "check")
    assert result.exit_code == 1
    assert f"unsafe: {sentence}" in result.stderr
    assert shown in result.output
    assert "hunter22" not in result.output


def test_redis_of_another_encryption_key(tmp_path: Path, redis_url: str) -> None:
    """A Redis that was used with another encryption key is unsafe, and the settings are shown all the same."""
    config = {"BYOK_REDIS": redis_url, "BYOK_PRECEDENCE": ["session", "env"], **SAFE}
    make_app(tmp_path, BYOK_ENCRYPTION_KEY=OLD, **config)
    app = make_app(tmp_path, BYOK_ENCRYPTION_KEY=NEW, TESTING=True, **config)
    result = run(app, "check")
    assert result.exit_code == 1
    sentence = "BYOK_ENCRYPTION_KEY is not the one that this store was used with"
    assert f"unsafe: {sentence}" in result.stderr


def test_app_that_does_not_start(tmp_path: Path, sqlite_url: str) -> None:
    """With a wrong encryption key, with which the app does not start, the settings are shown, and what is wrong."""
    config = {"BYOK_DATABASE_URL": sqlite_url, **SAFE}
    make_app(tmp_path, BYOK_ENCRYPTION_KEY=OLD, **config)
    wrong = Flask("wrong")
    wrong.cli.add_command(group)
    info = ScriptInfo(create_app=lambda: make_app(tmp_path, BYOK_ENCRYPTION_KEY=NEW, **config))
    result = CliRunner().invoke(wrong.cli, ["byok", "check"], obj=info)
    assert result.exit_code == 1
    assert settings_of(result.output)["BYOK_ENCRYPTION_KEY"] == ["key", "id", NEW_ID, "config"]
    assert "unsafe: BYOK_ENCRYPTION_KEY is not the one that this database" in result.output
    result = CliRunner().invoke(wrong.cli, ["byok", "list"], obj=info)
    assert "BYOK_ENCRYPTION_KEY is not the one" in refused(result)


def test_user_without_rights(tmp_path: Path, limited_url: str) -> None:
    """If the database's user may not create the tables, the message names the statements for an administrator."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=limited_url, **SAFE)
    result = run(app, "check")
    assert result.exit_code == 1
    assert "unsafe: The database's user may not make tables" in result.output
    assert "flask byok db sql" in refused(run(app, "list"))
    assert "flask byok db sql" in refused(run(app, "db", "upgrade"))
    assert "CREATE TABLE byok_audit" in run(app, "db", "sql").output


def test_user_without_some_rights(tmp_path: Path, postgres_url: str, limited_url: str) -> None:
    """Every right that the app needs is tried; with all of them nothing is unsafe."""
    config = {"BYOK_ENCRYPTION_KEY": OLD, **SAFE}
    make_app(tmp_path, BYOK_DATABASE_URL=postgres_url, **config)
    user, engine = make_url(limited_url).username, create_engine(postgres_url)

    def say(statement: str) -> Result:
        with engine.begin() as connection:
            whose = "FROM" if statement.startswith("REVOKE") else "TO"
            connection.exec_driver_sql(f"{statement} ON ALL TABLES IN SCHEMA public {whose} {user}")
        return run(make_app(tmp_path, BYOK_DATABASE_URL=limited_url, **config), "check")

    rights = ("INSERT", "UPDATE", "DELETE")
    for missing in rights:
        say(f"GRANT SELECT, {', '.join(rights)}")
        result = say(f"REVOKE {missing}")
        assert result.exit_code == 1
        assert "unsafe: The database's user may not make tables, or not use" in result.stderr
    result = say("GRANT SELECT, INSERT, UPDATE, DELETE")
    assert (result.exit_code, result.stderr) == (0, "")
    engine.dispose()


def test_read_only_database(tmp_path: Path, postgres_url: str) -> None:
    """A database that takes no writes is unsafe though it answers."""
    config = {"BYOK_ENCRYPTION_KEY": OLD, "BYOK_DATABASE_URL": postgres_url, **SAFE}
    assert run(make_app(tmp_path, **config), "check").exit_code == 0
    engine = create_engine(postgres_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = make_url(postgres_url).database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    engine.dispose()
    result = run(make_app(tmp_path, **config), "check")
    assert result.exit_code == 1
    assert "unsafe: The database is read-only" in result.stderr
    args = ["set", "openai", "--validate", "off"]
    said = refused(run(make_app(tmp_path, **config), *args, input="sk-proj-one-of-ours"))
    assert "The database is read-only" in said


def database_of(output: str) -> str:
    """Return what is said of the database."""
    (line,) = (line for line in output.splitlines() if line.startswith("database"))
    return " ".join(line.split()[1:])


def test_which_database(tmp_path: Path, sqlite_url: str) -> None:
    """It is said which database is in use and what names it, without user and password."""
    given = run(make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, **SAFE), "check").output
    assert database_of(given) == f"{shown_address(sqlite_url)} BYOK_DATABASE_URL"
    default = run(make_app(tmp_path, **SAFE), "check").output
    file = tmp_path / "byok.sqlite3"
    assert database_of(default) == f"sqlite:///{file} a file in the instance folder"


def host_with_database(directory: Path, url: str | None, *, late: bool, **config: Any) -> Flask:
    """Make a host with Flask-SQLAlchemy and Flask-Migrate, which it sets up before BYOK or too late."""
    db = flask_sqlalchemy.SQLAlchemy()

    def set_up(app: Flask) -> None:
        db.init_app(app)
        flask_migrate.Migrate(app, db, directory=str(directory / "migrations"))

    config |= {"SQLALCHEMY_DATABASE_URI": url, "BYOK_ENCRYPTION_KEY": OLD, **SAFE}
    app = make_app(directory, before=id if late else set_up, **config)
    if late:
        set_up(app)
    return app


def test_the_hosts_database(tmp_path: Path, sqlite_url: str) -> None:
    """Keys in the host's database are reported, and that its migrations would drop our tables; else nothing is said."""
    named_alone = {"SQLALCHEMY_BINDS": {"other": sqlite_url}}
    elsewhere = run(host_with_database(tmp_path / "x", None, late=False, **named_alone), "check")
    assert "a file in the instance folder" in database_of(elsewhere.output)
    assert "Flask-SQLAlchemy" not in elsewhere.stderr
    app = host_with_database(tmp_path, sqlite_url, late=False)
    result = run(app, "check")
    assert result.exit_code == 0, result.stderr
    expected = f"{shown_address(sqlite_url)} the app's Flask-SQLAlchemy"
    assert database_of(result.output) == expected
    assert "note: Flask-Migrate is set up on this database" in result.output
    close(app)


@pytest.mark.parametrize("kept_out_by", ["include_name", "env.py", "another database"])
def test_tables_kept_out_of_migrations(tmp_path: Path, sqlite_url: str, kept_out_by: str) -> None:
    """There is no such note where something keeps our tables out, or they are elsewhere."""
    app = host_with_database(tmp_path, sqlite_url, late=kept_out_by == "another database")
    if kept_out_by == "include_name":
        app.extensions["migrate"].configure_args["include_name"] = lambda *args: True
    elif kept_out_by == "env.py":
        (tmp_path / "migrations").mkdir()
        (tmp_path / "migrations" / "env.py").write_text("from flask_byok.storage.tables import ...")
    assert "Flask-Migrate" not in run(app, "check").output


def test_host_that_sets_its_database_up_too_late(
    tmp_path: Path, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If db.init_app comes after BYOK, keys are in the file; the check says so, and the log says so once."""
    app = host_with_database(tmp_path, sqlite_url, late=True)
    result = run(app, "check")
    assert result.exit_code == 1
    assert "a file in the instance folder" in database_of(result.output)
    assert "unsafe: This app has Flask-SQLAlchemy, but keys are in a SQLite file" in result.stderr
    for _ in range(2):
        app.test_client().get("/")
    said = [record.message for record in caplog.records if "Flask-SQLAlchemy" in record.message]
    assert len(said) == 1
    assert "Call db.init_app(app) before byok.init_app(app)" in said[0]
    assert run(app, "db", "current").output.startswith("tables  0")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"BYOK_BASE_URLS": {"openai": "https://ann:hunter22@x.example/v1/chat/completions"}},
            "It must end with /v1.",
        ),
        ({"BYOK_FAILOVER": True}, "BYOK_FAILOVER does nothing without BYOK_FALLBACK_ON"),
        ({"BYOK_PROXY": "http://ann:hunter22@127.0.0.1:{}"}, "cannot be reached"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    """An address with the path of a call, a failover for no reason and a proxy that is away are unsafe."""
    if proxy := config.get("BYOK_PROXY"):
        config = {"BYOK_PROXY": proxy.format(free_port())}
    result = run(make_app(tmp_path, **config, **SAFE), "check")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"unsafe: {next(iter(config))}")
    assert said in line
    assert "hunter22" not in result.output


def test_key_that_nothing_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider's key under a name that is nobody's is a note, as the app may read it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_KEY", key := make_api_key("openai"))
    result = run(make_app(tmp_path, **SAFE), "check")
    assert result.exit_code == 0
    assert "note: OPENAI_KEY in the environment looks like a key for OpenAI" in result.output
    assert key not in result.output
