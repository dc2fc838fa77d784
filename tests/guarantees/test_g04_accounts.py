"""G4 for accounts: no key is in what a database writes down, nor in what is logged about it, whatever is done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine, text

from flask_byok.accounts import export_file
from flask_byok.testing import FakeProviders
from tests.app import ENCRYPTION_KEY, KEYS, OTHER_ENCRYPTION_KEY, HostApp, make_app
from tests.cli.host import run
from tests.guarantees.leaks import files_below, leaks
from tests.guarantees.test_g04_no_plaintext import add_routes, wrong_bodies
from tests.guarantees.watching import BAD, CANARIES, Listener, everything_logged
from tests.guarantees.wire import Wire, served
from tests.keeper import OWN, SHARED, accounts_of, close
from tests.services import PostgresServer, wait_until

WORDS = "correct horse battery staple"
#: A server that writes down all it can, and an engine that says all it knows.
TALKATIVE = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_error_verbosity": "verbose",
    "log_connections": "on",
    "wal_level": "logical",
    "track_activity_query_size": "65536",
}
_JSON = "application/json"
OWNERS = ["user:ann", "user:ben", "team:red", "team:blue", "system"]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys from passphrases in no time."""
    monkeypatch.setattr(export_file, "WORK_FACTOR", 1)


@pytest.fixture(scope="module")
def talkative() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that logs every statement with every parameter."""
    with PostgresServer(**TALKATIVE) as server:
        yield server


class Database:
    """Where accounts are kept, and what it has written down."""

    def __init__(self, server: PostgresServer | None, directory: Path) -> None:
        self.server = server
        self.url = server.create_database() if server else f"sqlite:///{directory / 'byok.sqlite'}"
        options: dict[str, Any] = {"echo": "debug", "echo_pool": "debug", "hide_parameters": False}
        self._engine = create_engine(self.url, **options) if server else None
        #: What the app is given: on PostgreSQL a host's engine that hides no parameters.
        self.for_the_app = self._engine or self.url

    def execute(self, statement: str) -> None:
        """Do what somebody with access to the database does."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def written(self) -> dict[str, bytes]:
        """Return what the server wrote; a file's content is among the files."""
        return self.server.written(self.url) if self.server else {}

    def close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()


def make_host(database: Database, directory: Path, fake: FakeProviders, **config: Any) -> HostApp:
    """Make a host with an admin, a team for everybody, several keys a provider, and reveals."""
    app = make_app(
        directory,
        fake,
        BYOK_DATABASE_URL=database.for_the_app,
        BYOK_KEYS_PER_PROVIDER=3,
        BYOK_ALLOW_REVEAL=True,
        **config,
    )
    app.byok.admin_loader(lambda: True)
    app.byok.team_loader(lambda: ["red"])
    add_routes(app)
    return app


class Person(Wire):
    """Somebody who talks to the app over a socket, and keeps every answer."""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send JSON, and return the status and the answer's JSON."""
        content = None if body is None else json.dumps(body)
        status, answer = self.send(method, path, content, Content_Type=_JSON, **headers)
        return status, json.loads(answer) if answer else None

    def reveal(self, path: str) -> Any:
        """Ask for a key's value: the one answer that has it, so it is not kept."""
        before = len(self.received)
        status, body = self.ask("GET", f"{path}?include_value=true")
        del self.received[before:]
        assert status == 200
        return body["value"]


def person(port: int, user: str | None) -> Person:
    """Return somebody who has signed in and loaded the settings."""
    wire = Person(port)
    if user is not None:
        wire.send("POST", f"/sign-in/{user}")
    wire.load()
    return wire


def keep_and_use(port: int, canary: str) -> Person:
    """Keep a key in an account in every way there is, use it, change it, look at it, delete it."""
    visitor = person(port, None)
    body = {"provider": "openai", "api_key": canary}
    assert visitor.json(f"{KEYS}/set", body)[0] == 200
    visitor.send("POST", "/sign-in/ann")
    visitor.load()
    assert visitor.json(f"{KEYS}/promote", {"on_conflict": "replace"})[0] == 200
    assert visitor.json(f"{KEYS}/set", {**body, "persist": True, "label": "mine"})[0] == 200
    for path in ("/used/openai", "/chat/openai", KEYS, OWN, f"{OWN}/stats", f"{OWN}/services"):
        assert visitor.send("GET", path)[0] == 200
    for path in ("/boom", "/boom-as-text", "/boom-chained"):
        assert visitor.send("GET", path)[0] == 500
    assert visitor.json(f"{KEYS}/validate", {"provider": "openai"})[0] == 200
    _walk_records(visitor, OWN, canary, {})
    for owner in ("system", "team:red"):
        _walk_records(visitor, SHARED, canary, {"owner": owner})
    assert visitor.form("/api/providers/settings/save", provider="openai", api_key=canary)[0] == 303
    assert visitor.json(f"{KEYS}/clear", {"provider": "openai", "tier": "user"})[0] == 200
    assert visitor.json(f"{KEYS}/set", {**body, "persist": True})[0] == 200
    return visitor


def _walk_records(wire: Person, path: str, canary: str, more: dict[str, str]) -> None:
    body = {"provider": "openai", "api_key": canary, "validate": "require", **more}
    status, made = wire.ask("POST", path, body)
    assert status == 201, made
    one = f"{path}/{made['id']}"
    assert wire.ask("PATCH", one, {"api_key": canary, "label": "again"}, If_Match='"1"')[0] == 200
    assert wire.ask("POST", f"{one}/validate", {})[0] == 200
    assert wire.ask("GET", one)[0] == 200
    if path == OWN:
        assert wire.reveal(one) == canary
    assert wire.ask("PATCH", one, {"active": False})[0] == 200
    assert wire.ask("DELETE", one)[0] in (200, 204)
    assert wire.ask("POST", path, {**body, "slot": "kept"})[0] == 201


def go_wrong(port: int, database: Database, canary: str, bad: str) -> Person:
    """Bring keys that are refused, in places where they do not belong, while the database refuses too."""
    wire = person(port, "ben")
    for wrong in wrong_bodies(canary):
        text_of = wrong if isinstance(wrong, str) else json.dumps(wrong)
        for path in (OWN, SHARED):
            wire.send("POST", path, text_of, Content_Type=_JSON)
            wire.send("PATCH", f"{path}/{'0' * 32}", text_of, Content_Type=_JSON)
    save = {"provider": "openai", "api_key": bad, "persist": True}
    for mode in ("warn", "require"):
        wire.json(f"{KEYS}/set", {**save, "validate": mode})
        wire.ask("POST", OWN, {"provider": "openai", "api_key": bad, "validate": mode})
    assert wire.json(f"{KEYS}/set", {**save, "validate": "off"})[0] == 200
    wire.send("GET", "/chat/openai")
    quoted = quote(canary, safe="")
    for path in (OWN, SHARED):
        wire.send("GET", f"{path}?cursor={quoted}&provider={quoted}&owner={quoted}&q={quoted}")
        wire.send("GET", f"{path}/{quoted}?include_value={quoted}")
        wire.ask("PATCH", f"{path}/{'0' * 32}", {"label": "x"}, If_Match=f'"{quoted}"')
    # A statement that fails has its parameters in the error's text, and in the server's log.
    database.execute("ALTER TABLE byok_credentials RENAME COLUMN hint TO other")
    whole = {"provider": "openai", "api_key": canary}
    wire.json(f"{KEYS}/set", {**whole, "persist": True, "validate": "off"})
    wire.json(OWN, whole)
    database.execute("ALTER TABLE byok_credentials RENAME COLUMN other TO hint")
    return wire


def by_command(
    database: Database, directory: Path, fake: FakeProviders, app: HostApp, canary: str
) -> str:
    """Do what operators do, and return all that is printed."""
    printed = []

    def command(host: HostApp, *args: str, input: str = "") -> None:
        result = run(host, *args, input=input)
        printed.append(result.output + repr(result.exception))
        assert result.exit_code == 0, result.output

    command(app, "set", "openai", "--owner", "team:blue", input=canary)
    command(app, "list")
    command(app, "list", "--json")
    file = str(directory / "keys.byok")
    command(app, "export", file, input=f"{WORDS}\n")
    command(app, "import", file, "--on-conflict", "replace", input=f"{WORDS}\n")
    replaced = {
        "BYOK_ENCRYPTION_KEY": OTHER_ENCRYPTION_KEY,
        "BYOK_ENCRYPTION_KEY_FALLBACKS": [ENCRYPTION_KEY],
    }
    successor = make_host(database, directory, fake, **replaced)
    command(successor, "rotate")
    command(successor, "audit", "list")
    command(successor, "audit", "verify")
    command(successor, "purge-expired")
    refused = run(app, "set", "openai", canary)  # as an argument, which is never right
    assert refused.exit_code != 0
    return "\n".join([*printed, refused.output])


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.parametrize("kind", ["SQLite", "PostgreSQL"])
def test_an_accounts_key_is_nowhere(
    tmp_path: Path,
    fake: FakeProviders,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    kind: str,
    name: str,
) -> None:
    """Whatever people and operators do, a key is in no table, index, WAL, statement log, dump, answer or log."""
    canary, bad = CANARIES[name], BAD[name]
    fake.add_key("openai", canary)
    server = request.getfixturevalue("talkative") if kind == "PostgreSQL" else None
    database = Database(server, tmp_path)
    app = make_host(database, tmp_path, fake)
    listener = Listener(app)
    with everything_logged() as log, served(app) as port:
        people = [keep_and_use(port, canary), go_wrong(port, database, canary, bad)]
        early = files_below(tmp_path)
        commands = by_command(database, tmp_path, fake, app, canary)
        kept = accounts_of(app).find(OWNERS)
        written = database.written()
    printed = capfd.readouterr()
    # A count written later would open a connection that nothing closes: the engine is the host's.
    wait_until(lambda: close(app) is None, "the last counts")
    database.close()
    places = {
        **listener.places(log, printed, *(wire.received for wire in people)),
        "what commands print": commands.encode(),
        **written,
        **{f"{place}, early": content for place, content in early.items()},
        **files_below(tmp_path),
    }
    assert leaks([canary, bad], places) == []
    # All of it did happen, and each place has the sealed keys that it should have.
    statuses = [status for wire in people for status in wire.statuses]
    assert {200, 201, 303, 400, 404, 422, 500, 503} <= set(statuses)
    assert {canary, bad} <= {call.api_key for call in fake.calls}
    assert {record.owner for record in kept} == set(OWNERS)
    ciphertext = kept[0].ciphertext.encode()
    if server is not None:
        assert b"sqlalchemy.engine" in places["the log"]
        for place in ("heap", "WAL", "statement log", "dump"):
            assert ciphertext in written[place], place
    else:
        assert any(ciphertext in content for content in files_below(tmp_path).values())


def test_the_detector_finds_what_a_naive_app_leaves(talkative: PostgresServer) -> None:
    """In a plain column, and as the parameter of a crypto function, the same search finds a key in every place."""
    url = talkative.create_database()
    plain = "sk-naive-CANARYabcdefghijklmnopqrstuvwxyz0123456789"
    parameter = "sk-crypt-CANARYabcdefghijklmnopqrstuvwxyz0123456789"
    engine = create_engine(url, echo="debug")
    with everything_logged() as log, engine.begin() as connection:
        connection.execute(text("CREATE TABLE keys (owner text, api_key text, sealed bytea)"))
        connection.execute(text("CREATE INDEX ON keys (api_key)"))
        connection.execute(text("INSERT INTO keys (api_key) VALUES (:key)"), {"key": plain})
        # What pgcrypto's functions are called with; any function of the server is the same.
        crypt = text("INSERT INTO keys (sealed) VALUES (sha256(convert_to(:key, 'UTF8')))")
        connection.execute(crypt, {"key": parameter})
    engine.dispose()
    places = talkative.written(url) | {"log": log.getvalue().encode()}
    found = {entry.rpartition(" in ")[2] for entry in leaks([plain], places)}
    assert found == {"heap", "WAL", "statement log", "dump", "log"}
    found = {entry.rpartition(" in ")[2] for entry in leaks([parameter], places)}
    assert found == {"statement log", "log"}
