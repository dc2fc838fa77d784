"""What all commands share, and the small ones: ``flask byok db|generate-key|providers``."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.cli import ScriptInfo
from sqlalchemy import create_engine, inspect, select

from flask_byok.catalog import PROVIDERS
from flask_byok.cli import byok
from flask_byok.cli import byok as group
from flask_byok.errors import ConfigurationError
from flask_byok.model.credential import utcnow
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage import engine as limits
from flask_byok.storage.tables import audit_heads
from flask_byok.web.caller import get_state
from tests.accounts.account_kinds import event_of, make_record
from tests.services import free_port
from tests.storage.kinds import made_by_an_older_version

from .host import NEW, OLD, SAFE, accounts_of, make_app, refused, run


def test_commands_have_time(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command waits for a database that keeps a request waiting for too long."""
    monkeypatch.setattr(limits, "LIMIT", 0.4)
    app = make_app(tmp_path, BYOK_DATABASE_URL=postgres_url, **SAFE)
    result = run(app, "set", "openai", "--validate", "off", input="sk-proj-one-of-ours")
    assert result.exit_code == 0, result.output
    engine = create_engine(postgres_url)
    connection = engine.connect()
    query = select(audit_heads).where(audit_heads.c.owner == "system").with_for_update()
    assert connection.execute(query).first()
    letting_go = threading.Timer(1, connection.close)
    letting_go.start()
    result = run(app, "clear", "openai", "--yes")
    letting_go.join()
    engine.dispose()
    assert (result.exit_code, result.output) == (0, "Cleared sk-proj-…ours.\n")
    accounts_of(app).engine.dispose()


def test_only_commands_have_time(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a command the app is as impatient as before."""
    seen: list[float] = []
    accounts = accounts_of(app := make_app(tmp_path, BYOK_DATABASE_URL=postgres_url, **SAFE))

    def note(connection: object) -> None:
        seen.append(limits.seconds())

    monkeypatch.setattr(type(accounts.canary), "secret", lambda self: accounts.database.run(note))
    run(app, "list")
    accounts.canary.secret()
    assert seen == [limits.LONG_LIMIT, limits.LIMIT]
    accounts.engine.dispose()


def test_nowhere_to_show_it() -> None:
    """Output that cannot be written is one sentence, which does not deny that the work was done."""
    command = [sys.executable, "-m", "flask", "byok", "generate-key"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: The output, or a file, cannot be written")
    assert "may have been done" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("args", "code"), [(["audit", "verify"], 0), (["set", "groq"], 1)])
def test_closed_streams(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int
) -> None:
    """With stdin and stdout closed, a command neither prompts nor breaks."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, **SAFE)
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as caught:
        byok.main(args, prog_name="byok", obj=ScriptInfo(create_app=lambda: app))
    assert caught.value.code == code


COMMANDS = [
    *(["list"], ["set", "openai"], ["clear", "openai", "--yes"], ["rotate"], ["purge-expired"]),
    *(["import-env"], ["export", "keys.age"], ["import", "keys.age"]),
    *(["audit", "list"], ["audit", "verify"], ["audit", "heads"]),
    ["audit", "prune", "--before", "2030-01-01T00:00:00Z"],
]


def in_the_way(tmp_path: Path, url: str, **config: Any) -> str:
    """Run every command on accounts, and return the one sentence with which all fail."""
    sentences = set()
    for args in COMMANDS:
        app = make_app(tmp_path, BYOK_DATABASE_URL=url, **SAFE | config)
        result = run(app, *args, input="sk-proj-CANARY-key\n")
        assert result.stderr.count("\n") == 1
        assert "CANARY" not in result.output
        assert "hunter22" not in result.output
        sentences.add(refused(result))
    (sentence,) = sentences
    return sentence


def test_what_is_in_the_way(tmp_path: Path, sqlite_url: str) -> None:
    """No accounts, a database away, a wrong encryption key and old tables are one sentence for each command."""
    config = {"BYOK_PRECEDENCE": ["session", "env"], "BYOK_ENCRYPTION_KEY": OLD}
    off = in_the_way(tmp_path, sqlite_url, **config)
    assert "BYOK_PRECEDENCE names none of user, team and system" in off
    make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, BYOK_ENCRYPTION_KEY=OLD, **SAFE)
    wrong = in_the_way(tmp_path, sqlite_url, BYOK_ENCRYPTION_KEY=NEW, TESTING=True)
    assert "BYOK_ENCRYPTION_KEY is not the one" in wrong
    engine = create_engine(f"sqlite:///{tmp_path / 'old.sqlite'}")
    made_by_an_older_version(engine)
    assert "flask byok db upgrade" in in_the_way(tmp_path, str(engine.url))
    checked = run(make_app(tmp_path, BYOK_DATABASE_URL=str(engine.url), **SAFE), "check")
    assert (checked.exit_code, "flask byok db upgrade" in checked.stderr) == (1, True)
    engine.dispose()
    away = f"postgresql+psycopg://ann:hunter22@127.0.0.1:{free_port()}/name"
    assert "Nothing listens at" in in_the_way(tmp_path, away)
    for command in ("current", "upgrade"):
        app = make_app(tmp_path, BYOK_DATABASE_URL=away, **SAFE)
        assert "Nothing listens at" in refused(run(app, "db", command))


# how far a long command is


_WORK = """
import click
from flask_byok.cli.accounts.common import steps
with steps("Sealing again", 100_000) as reach:
    for done in range(10_000, 100_001, 10_000):
        reach(done)
"""


def shown_on(columns: int) -> str:
    """Return what a long command shows on a terminal of so many columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {name: text for name, text in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-c", _WORK],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean | {"TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait(30) == 0
    return shown.decode()


def test_bar_fits_the_terminal() -> None:
    """No state of the bar is wider than the terminal, where it would leave lines behind."""
    for columns in (60, 80):
        shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown_on(columns))
        states = re.split(r"[\r\n]+", shown)
        assert any("100%" in state for state in states)
        assert max(map(len, states)) <= columns


_INTERRUPTED = """
import time, click
from flask_byok.cli.common import Commands
group = Commands("byok")
@group.command("work", with_appcontext=False)
def work():
    print("working", flush=True)
    time.sleep(60)
group(["work"])
"""


def test_ctrl_c_is_told_from_findings() -> None:
    """A command that was interrupted ends with 130, as a shell expects, and not with the status of findings."""
    command = [sys.executable, "-c", _INTERRUPTED]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "working\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == "Error: Interrupted.\n"


# flask byok generate-key|providers


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


def test_providers_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider's line names the tier whose operator's key serves, none that has expired, and all its variables."""
    (tmp_path / "groq_api_key").write_text("gsk_operators-own-key-1234\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-operators-own-key-5678")
    for name in ("GROQ_API_KEY", "XAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    app = make_app(tmp_path, **SAFE)
    ended = {"expires_at": utcnow() - timedelta(days=1), "keyring": get_state(app).service.keyring}
    for provider in ("openai", "groq", "xai"):
        accounts_of(app).put(make_record("system", provider, **ended), event_of())
    result = run(app, "providers")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert list(lines) == [spec.id for spec in PROVIDERS if spec.base_url]
    assert " env " in lines["openai"]
    assert " secret " in lines["groq"]
    assert " - " in lines["xai"]
    assert lines["google"].endswith("GEMINI_API_KEY, GOOGLE_API_KEY")
    for variable in ("AZURE_OPENAI_API_KEY", "AZURE_RESOURCE_NAME"):
        assert variable in lines["azure_openai"]
    assert lines["aws"].count("AWS_ACCESS_KEY_ID") == lines["aws"].count("AWS_REGION") == 1
    assert "operators-own" not in result.output


def test_app_without_byok() -> None:
    """Without init_app a command says what was forgotten."""
    said = refused(run(Flask(__name__), "providers"))
    assert "did you forget to call byok.init_app(app)?" in said


# flask byok db


def test_database_commands(tmp_path: Path, redis_url: str) -> None:
    """The tables are shown, made and upgraded by command; printing the statements runs none."""
    url = f"sqlite:///{tmp_path / 'keys.sqlite'}"
    # With session keys elsewhere and no accounts the app itself does not touch the database.
    elsewhere = {"BYOK_REDIS": redis_url, "BYOK_PRECEDENCE": ["session", "env"]}
    app = make_app(tmp_path, BYOK_DATABASE_URL=url, **elsewhere, **SAFE)
    assert run(app, "db", "current").output == "tables  -\nnewest  0001\n"
    printed = run(app, "db", "sql")
    assert "CREATE TABLE byok_credentials" in printed.output
    assert run(app, "db", "current").output.startswith("tables  -")
    assert run(app, "db", "upgrade").output == "The tables are at revision 0001.\n"
    assert run(app, "db", "current").output == "tables  0001\nnewest  0001\n"
    assert run(app, "db", "upgrade").exit_code == 0


def test_database_commands_use_the_apps_database(tmp_path: Path) -> None:
    """Commands work on the database that the app uses, though the host's comes later."""
    app = make_app(tmp_path, **SAFE)
    engine = create_engine(f"sqlite:///{tmp_path / 'host.sqlite'}")
    app.extensions["sqlalchemy"] = SimpleNamespace(engine=engine)
    assert run(app, "db", "upgrade").exit_code == 0
    assert (tmp_path / "byok.sqlite3").exists()
    assert not inspect(engine).has_table("byok_credentials")
    engine.dispose()


def test_start_tells_of_a_new_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new SQLite file is logged once, as its path may be mistyped; our own file is not."""
    file = tmp_path / "mistyped" / "keys.sqlite"
    config = {"BYOK_ENCRYPTION_KEY": OLD, **SAFE}
    for _ in range(2):
        make_app(tmp_path, BYOK_DATABASE_URL=f"sqlite:///{file}", **config)
    make_app(tmp_path, **config)
    said = [
        record.message for record in caplog.records if "an empty one was made" in record.message
    ]
    assert said == [f"There was no SQLite file {file}: an empty one was made."]


def test_start_leaves_older_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tables of an older version are upgraded by the command alone, which the app names at its start and ever after."""
    engine = create_engine(f"sqlite:///{tmp_path / 'keys.sqlite'}")
    made_by_an_older_version(engine)
    app = make_app(tmp_path, BYOK_DATABASE_URL=str(engine.url), **SAFE)
    assert "flask byok db upgrade" in caplog.text
    with pytest.raises(ConfigurationError, match="flask byok db upgrade"):
        get_state(app).service.sessions.find("sid-1")
    assert not inspect(engine).has_table("byok_session_names")
    assert run(app, "db", "current").output == "tables  -\nnewest  0001\n"
    engine.dispose()


def test_tables_of_a_later_version(tmp_path: Path) -> None:
    """Tables that a later version has made are left alone, and every look at them says so."""
    app = make_app(tmp_path, **SAFE)
    engine = create_engine(f"sqlite:///{tmp_path / 'byok.sqlite3'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE byok_alembic_version SET version_num = '0099'")
    engine.dispose()
    for command in ("current", "upgrade"):
        assert "at revision 0099, which a later version" in refused(run(app, "db", command))
    result = run(app, "check")
    assert result.exit_code == 1
    assert "unsafe: The tables are at revision 0099" in result.stderr
