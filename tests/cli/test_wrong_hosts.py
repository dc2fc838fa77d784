"""Hosts that are set up wrongly: ``flask byok check`` names each fault, and the line that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask_sqlalchemy
import pytest
from click.testing import CliRunner, Result
from flask import Flask, g
from flask.cli import ScriptInfo
from flask.sessions import SecureCookieSessionInterface
from sqlalchemy import create_engine, make_url
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_byok.cli import byok as group
from flask_byok.providers import installed
from tests.services import (
    PgBouncer,
    RedisServer,
    create_database,
    drop_database,
    pgbouncer_binary,
)
from tests.storage.redis_kinds import ReplicaOf

from .host import NEW, OLD, SAFE, make_app

#: Is in no output, wherever a host has it.
SECRET = "hunter22-hunter22"
WEAK = "00" * 32
RIGHT = {
    "BYOK_ENCRYPTION_KEY": OLD,
    "BYOK_AUDIT_RETENTION": "365d",
    "PREFERRED_URL_SCHEME": "https",
    **SAFE,
}


class World:
    """What a host may use: a folder, servers, and an environment of its own."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder = folder
        self.request, self.get = request, request.getfixturevalue
        self.setenv: Callable[[str, str], None] = self.get("monkeypatch").setenv

    def host(self, after: Callable[[Flask], object] = id, **config: Any) -> Flask:
        """Make a host in which all is right, but for what is given."""
        config = {
            "BYOK_REDIS": self.get("redis_url"),
            "BYOK_DATABASE_URL": self.get("database"),
        } | config
        before = config.pop("before", id)
        app = make_app(self.folder, before=before, **RIGHT | config)
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
        after(app)
        if theirs := app.extensions.get("sqlalchemy"):
            with app.app_context():
                self.request.addfinalizer(theirs.engine.dispose)
        return app


def checked(make: Callable[[], Flask]) -> Result:
    """Run the check of a host, which may not start."""
    shell = Flask("shell")
    shell.cli.add_command(group)
    info = ScriptInfo(create_app=make)
    return CliRunner().invoke(shell.cli, ["byok", "check"], obj=info)


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    """Make a place for hosts in which nothing of the machine's environment counts."""
    for name in ("KEY", "KEY_FILE", "KEY_FALLBACKS"):
        monkeypatch.delenv(f"BYOK_ENCRYPTION_{name}", raising=False)
    return World(tmp_path, request)


@pytest.fixture(scope="module")
def database(postgres_server_url: str) -> Iterator[str]:
    """Make the database of all hosts to which nothing is done there."""
    url = create_database(postgres_server_url)
    yield url
    drop_database(url, postgres_server_url)


@pytest.fixture(scope="module")
def replicated() -> Iterator[str]:
    """Run a Redis with one replica."""
    with RedisServer() as primary, ReplicaOf(primary):
        yield primary.url


@pytest.fixture(scope="module")
def pooled(postgres_server_url: str) -> Iterator[str]:
    """Run a PostgreSQL with PgBouncer in front of it."""
    if pgbouncer_binary() is None:
        pytest.skip("PgBouncer is not installed")
    server: Any = make_url(postgres_server_url)  # has its port
    url = create_database(postgres_server_url)
    with PgBouncer(server, url) as pooler:
        yield pooler.url
    drop_database(url, postgres_server_url)


# Faults: what the host does, and what is said of it.


def a_misspelt_setting(world: World) -> Flask:
    """BYOK_REQURE_LOGIN."""
    return world.host(BYOK_REQURE_LOGIN=True)


def a_value_that_is_none(world: World) -> Flask:
    """A lookup order of tiers that do not exist."""
    return world.host(BYOK_PRECEDENCE=["session", "vault"])


def a_wrong_session_store(world: World) -> Flask:
    """The address of Redis in place of a store's name."""
    return world.host(BYOK_SESSION_STORE=f"redis://:{SECRET}@127.0.0.1/0")


def redis_that_is_nowhere(world: World) -> Flask:
    """Redis chosen, and no address of it."""
    return world.host(BYOK_SESSION_STORE="redis", BYOK_REDIS=None)


def the_cookie_session(world: World) -> Flask:
    """Flask's own session, with keys in sessions."""

    def forget_flask_session(app: Flask) -> None:
        app.session_interface = SecureCookieSessionInterface()
        del app.config["SESSION_TYPE"]

    return world.host(before=forget_flask_session)


def no_secret_key(world: World) -> Flask:
    """No SECRET_KEY."""
    return world.host(SECRET_KEY=None)


def no_encryption_key(world: World) -> Flask:
    """No encryption key."""
    return world.host(BYOK_ENCRYPTION_KEY=None)


def a_weak_encryption_key(world: World) -> Flask:
    """An encryption key of zeros."""
    return world.host(BYOK_ENCRYPTION_KEY=WEAK)


def a_route_of_the_same_address(world: World) -> Flask:
    """A route of the host's that was there before."""
    return world.host(before=lambda app: app.add_url_rule("/api/keys", "mine", lambda: ""))


def the_name_taken(world: World) -> Flask:
    """A global of Jinja's named byok."""
    return world.host(before=lambda app: app.jinja_env.globals.update(byok=1))


def a_route_that_came_later(world: World) -> Flask:
    """A route of the host's that was added after BYOK(app)."""
    return world.host(lambda app: app.add_url_rule("/api/keys", "mine", lambda: ""))


def the_name_taken_later(world: World) -> Flask:
    """A global of Jinja's that takes ours away."""
    return world.host(lambda app: app.jinja_env.globals.update(byok=1))


def a_context_processor_of_the_name(world: World) -> Flask:
    """Values for all templates, one of them named byok, behind others that need a real request."""

    def after(app: Flask) -> None:
        app.context_processor(lambda: {"user": g.user})
        app.context_processor(lambda: {"byok": app.extensions["byok"]})

    return world.host(after)


def flask_session_forgotten(world: World) -> Flask:
    """SESSION_TYPE without Session(app)."""

    def forget(app: Flask) -> None:
        app.session_interface = SecureCookieSessionInterface()

    return world.host(before=forget)


def a_weak_fallback(world: World) -> Flask:
    """A retired encryption key of zeros."""
    return world.host(BYOK_ENCRYPTION_KEY_FALLBACKS=[WEAK])


def a_setting_in_the_environment_only(world: World) -> Flask:
    """A setting that only the environment has, under its own name."""
    world.setenv("BYOK_REQUIRE_LOGIN", "true")
    return world.host()


def a_prefixed_setting_that_is_not_read(world: World) -> Flask:
    """A setting with Flask's prefix, and no call that reads it."""
    world.setenv("FLASK_BYOK_BASE_URLS__openai", f"https://a:{SECRET}@gateway.example")
    return world.host()


def a_misspelt_variable(world: World) -> Flask:
    """Retired encryption keys in a variable that is no setting."""
    world.setenv("BYOK_ENCRYPTION_KEY_FALBACKS", NEW)
    return world.host()


def a_placeholder_in_a_variable(world: World) -> Flask:
    """A variable as the template of an .env file has it."""
    world.setenv("OPENAI_API_KEY", "your_api_key_here")
    return world.host()


def a_reference_in_a_variable(world: World) -> Flask:
    """A variable that only another program could look up."""
    world.setenv("OPENAI_API_KEY", f"op://vault/openai/{SECRET}")
    return world.host()


def a_placeholder_in_the_config(world: World) -> Flask:
    """A placeholder in app.config."""
    return world.host(OPENAI_API_KEY="changeme")


def a_placeholder_in_a_file(world: World) -> Flask:
    """A secret file as the template has it."""
    (world.folder / "groq_api_key").write_text("<your key>\n")
    return world.host()


def two_keys_in_a_variable(world: World) -> Flask:
    """A variable that holds more than a key."""
    world.setenv("OPENAI_API_KEY", f"sk-{SECRET} sk-{SECRET}")
    return world.host()


def a_secret_file_that_is_missing(world: World) -> Flask:
    """A variable that names a file which is not there."""
    world.setenv("OPENAI_API_KEY_FILE", str(world.folder / "nowhere"))
    return world.host()


def a_cookie_over_http(world: World) -> Flask:
    """A session cookie without Secure."""
    return world.host(SESSION_COOKIE_SECURE=False)


def debug_mode(world: World) -> Flask:
    """Debug mode."""
    world.setenv("FLASK_DEBUG", "1")
    return world.host()


def a_user_without_rights(world: World) -> Flask:
    """A database's user who may not make tables."""
    return world.host(BYOK_DATABASE_URL=world.get("limited_url"))


def a_user_without_rights_for_sessions(world: World) -> Flask:
    """The same, where only sessions are in the database."""
    alone = {"BYOK_PRECEDENCE": ["session", "env"], "BYOK_REDIS": None}
    return world.host(BYOK_DATABASE_URL=world.get("limited_url"), **alone)


def a_user_who_may_only_read(world: World) -> Flask:
    """Tables of sessions that the database's user may read and not write."""
    config = {"BYOK_PRECEDENCE": ["session", "env"], "BYOK_REDIS": None}
    world.host(BYOK_DATABASE_URL=world.get("postgres_url"), **config)
    url, engine = world.get("limited_url"), create_engine(world.get("postgres_url"))
    with engine.begin() as connection:
        whom = make_url(url).username
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {whom}")
    engine.dispose()
    return world.host(BYOK_DATABASE_URL=url, **config)


def a_redis_without_replicas(world: World) -> Flask:
    """A change must wait for a replica, and there is none."""
    return world.host(BYOK_REDIS_WAIT=1)


def a_pooler_under_the_hosts_engine(world: World) -> Flask:
    """PgBouncer in front of the engine of Flask-SQLAlchemy, which prepares statements."""
    url = world.get("pooled")
    database = {"BYOK_DATABASE_URL": None, "SQLALCHEMY_DATABASE_URI": url}
    return world.host(before=flask_sqlalchemy.SQLAlchemy().init_app, **database)


Host = Callable[[World], Flask]
PREFIXED = "Call app.config.from_prefixed_env(), and name it FLASK_"
RIGHTS = "The database's user may not make tables, or not use"
#: With these a host does not start.
STOPPED: list[tuple[Host, str, str]] = [
    (a_misspelt_setting, "no setting BYOK_REQURE_LOGIN", "did you mean BYOK_REQUIRE_LOGIN?"),
    (a_value_that_is_none, "BYOK_PRECEDENCE is ['session', 'vault']", "use 'user_first'"),
    (a_wrong_session_store, "BYOK_SESSION_STORE names no store", "use 'redis', 'database' or"),
    (redis_that_is_nowhere, "BYOK_SESSION_STORE is 'redis'", "neither BYOK_REDIS nor"),
    (
        the_cookie_session,
        "needs a server-side session",
        "call Session(app); or leave 'session' out",
    ),
    (no_secret_key, "SECRET_KEY is not set", "sessions and CSRF tokens need it"),
    (no_encryption_key, "BYOK_ENCRYPTION_KEY is not set", "'flask byok generate-key'"),
    (a_weak_encryption_key, "BYOK_ENCRYPTION_KEY is no secret", "'flask byok generate-key'"),
    (a_route_of_the_same_address, "a route of its own at /api/keys (GET)", "set BYOK_URL_PREFIX"),
    (the_name_taken, "a global of Jinja's named 'byok'", "rename it"),
]
#: With these it starts.
UNSAFE: list[tuple[Host, str, str]] = [
    (a_route_that_came_later, "a route of its own at /api/keys (GET)", "set BYOK_URL_PREFIX"),
    (the_name_taken_later, "Another 'byok' has taken the place", "rename it"),
    (a_context_processor_of_the_name, "Another 'byok' has taken the place", "rename it"),
    (flask_session_forgotten, "needs a server-side session", "call Session(app)"),
    (a_weak_fallback, "BYOK_ENCRYPTION_KEY_FALLBACKS is no secret", "Run 'flask byok rotate'"),
    (a_setting_in_the_environment_only, "BYOK_REQUIRE_LOGIN in the env", f"{PREFIXED}BYOK_REQ"),
    (a_prefixed_setting_that_is_not_read, "FLASK_BYOK_BASE_URLS__openai in", f"{PREFIXED}BYOK_B"),
    (a_misspelt_variable, "KEY_FALBACKS in the env", f"{PREFIXED}BYOK_ENCRYPTION_KEY_FALLBACKS"),
    (a_placeholder_in_a_variable, "OPENAI_API_KEY holds a placeholder", "Replace it by a key"),
    (a_reference_in_a_variable, "OPENAI_API_KEY holds a placeholder, or a ref", "Replace it by"),
    (a_placeholder_in_the_config, "app.config['OPENAI_API_KEY'] holds a placeholder", "Replace it"),
    (a_placeholder_in_a_file, "groq_api_key holds a placeholder", "Replace it by a key"),
    (two_keys_in_a_variable, "OPENAI_API_KEY holds no possible API key", "copy the key alone"),
    (
        a_secret_file_that_is_missing,
        "secret file of OPENAI_API_KEY cannot be read",
        "mend its path",
    ),
    (a_cookie_over_http, "SESSION_COOKIE_SECURE is False", "Set it to True"),
    (debug_mode, "Debug mode is on", "Turn it off"),
    (a_user_without_rights, RIGHTS, "run what 'flask byok db sql' prints"),
    (a_user_without_rights_for_sessions, RIGHTS, "run what 'flask byok db sql' prints"),
    (a_user_who_may_only_read, RIGHTS, "grant it SELECT, INSERT, UPDATE and DELETE"),
    (a_redis_without_replicas, "Too few replicas acknowledge a write", "run two replicas for each"),
    (
        a_pooler_under_the_hosts_engine,
        "the app's engine prepares statements",
        "SQLALCHEMY_ENGINE_OPTIONS = {'connect_args': {'prepare_threshold': None}}",
    ),
]


def old_sdk(world: World) -> Flask:
    """An SDK that is too old for our clients."""
    world.get("monkeypatch").setattr(installed, "_installed", lambda package: "1.2.3")
    return world.host(BYOK_PROVIDERS=["anthropic"])


def no_sdk(world: World) -> Flask:
    """No SDK."""
    world.get("monkeypatch").setattr(installed, "_installed", lambda package: None)
    return world.host(BYOK_PROVIDERS=["google"])


def a_variable_of_an_unknown_name(world: World) -> Flask:
    """A variable that is named as settings are, and like none of them."""
    world.setenv("BYOK_TEMPERATURE", SECRET)
    return world.host()


def no_proxy_fix(world: World) -> Flask:
    """No ProxyFix."""
    return world.host(lambda app: setattr(app, "wsgi_app", app.wsgi_app.app))


def no_https_outside_of_requests(world: World) -> Flask:
    """Addresses made outside of requests have http."""
    return world.host(PREFERRED_URL_SCHEME="http")


def no_retention(world: World) -> Flask:
    """An audit log that grows."""
    return world.host(BYOK_AUDIT_RETENTION=None)


def one_replica(world: World) -> Flask:
    """As many replicas as a change waits for."""
    return world.host(BYOK_REDIS=world.get("replicated"), BYOK_REDIS_WAIT=1)


def a_pooler(world: World) -> Flask:
    """PgBouncer in front of our own engine."""
    return world.host(BYOK_DATABASE_URL=world.get("pooled"))


def a_pooler_told(world: World) -> Flask:
    """PgBouncer in front of the host's engine, which prepares no statements."""
    options = {"connect_args": {"prepare_threshold": None}}
    database = {"BYOK_DATABASE_URL": None, "SQLALCHEMY_DATABASE_URI": world.get("pooled")}
    before = flask_sqlalchemy.SQLAlchemy(engine_options=options).init_app
    return world.host(before=before, **database)


POOLED = ("a pooler (PgBouncer, or one like it) is in front", "prepare_threshold")
NOTES: list[tuple[Host, str, str]] = [
    (old_sdk, "anthropic 1.2.3 is installed, and", "pip install 'flask-byok[anthropic]'"),
    (no_sdk, "google-genai is not installed", "pip install 'flask-byok[google]'"),
    (a_variable_of_an_unknown_name, "BYOK_TEMPERATURE in the env", "give it another name"),
    (no_proxy_fix, "there is no ProxyFix", "set app.wsgi_app = ProxyFix("),
    (no_https_outside_of_requests, "PREFERRED_URL_SCHEME is not 'https'", "Set it to 'https'"),
    (no_retention, "BYOK_AUDIT_RETENTION is not set", "for example to '365d'"),
    (one_replica, "no more replicas than BYOK_REDIS_WAIT (1)", "Run 2 for each"),
    (a_pooler, *POOLED),
    (a_pooler_told, *POOLED),
]


def cases(table: list[tuple[Host, str, str]], beginning: str, status: int) -> list[Any]:
    """Return a table's hosts as parameters."""
    return [
        pytest.param(host, beginning, status, fault, remedy, id=host.__name__)
        for host, fault, remedy in table
    ]


@pytest.mark.parametrize(
    ("host", "beginning", "status", "fault", "remedy"),
    [
        *cases(STOPPED, "Error: ", 1),
        *cases(UNSAFE, "unsafe: ", 1),
        *cases(NOTES, "note: ", 0),
    ],
)
def test_wrong_hosts(
    world: World, host: Host, beginning: str, status: int, fault: str, remedy: str
) -> None:
    """One sentence names the fault and the line that mends it, and nothing secret is shown."""
    result = checked(lambda: host(world))
    (said,) = (line for line in result.output.splitlines() if line.startswith(beginning))
    assert fault in said
    assert remedy in said
    assert result.exit_code == status
    for secret in (SECRET, WEAK, OLD, NEW):
        assert secret not in result.output


@pytest.mark.parametrize(
    ("host", "fault"),
    [
        (a_placeholder_in_a_variable, "OPENAI_API_KEY holds a placeholder"),
        (a_reference_in_a_variable, "OPENAI_API_KEY holds a placeholder"),
        (two_keys_in_a_variable, "OPENAI_API_KEY holds no possible API key"),
        (a_misspelt_variable, "BYOK_ENCRYPTION_KEY_FALBACKS in the environment is not read"),
        (a_variable_of_an_unknown_name, "BYOK_TEMPERATURE in the environment is not read"),
    ],
)
def test_faults_in_the_log_at_start(
    world: World, caplog: pytest.LogCaptureFixture, host: Host, fault: str
) -> None:
    """The log of a start names what the environment holds in vain, once and without its value."""
    client = host(world).test_client()
    client.get("/api/providers/keys")
    assert [record.message for record in caplog.records if fault in record.message] != []
    assert caplog.text.count(fault) == 1
    for secret in (SECRET, NEW):
        assert secret not in caplog.text


def test_a_right_host(world: World) -> None:
    """Of a host in which all is right nothing is said."""
    world.setenv("OPENAI_API_KEY", f"sk-{SECRET}")
    world.setenv("BYOK_EMPTY", "")
    world.setenv("BYOK_REDIS_URL", "which the host reads by itself")
    result = checked(lambda: world.host(BYOK_AUDIT_RETENTION=timedelta(days=365)))
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "note:" not in result.output
    assert SECRET not in result.output
