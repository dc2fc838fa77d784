"""What all commands share."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flask.cli import ScriptInfo
from sqlalchemy import Engine, create_engine, select

from flask_byok.cli import byok
from flask_byok.storage import engine as limits
from flask_byok.storage.tables import audit_heads
from tests.services import free_port
from tests.storage.kinds import made_by_an_older_version

from .host import NEW, OLD, SAFE, accounts_of, make_app, refused, run


def hold_head(engine: Engine, owner: str, seconds: float, held: threading.Event) -> None:
    """Keep everybody else from changing an owner's keys for a while."""
    with engine.begin() as connection:
        query = select(audit_heads).where(audit_heads.c.owner == owner).with_for_update()
        assert connection.execute(query).first()
        held.set()
        time.sleep(seconds)


def test_commands_have_time(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command waits for a database that keeps a request waiting for too long."""
    monkeypatch.setattr(limits, "LIMIT", 0.4)
    app = make_app(tmp_path, BYOK_DATABASE_URL=postgres_url, **SAFE)
    result = run(app, "set", "openai", "--validate", "off", input="sk-proj-one-of-ours")
    assert result.exit_code == 0, result.output
    engine, held = create_engine(postgres_url), threading.Event()
    holder = threading.Thread(target=hold_head, args=(engine, "system", 1, held))
    holder.start()
    assert held.wait(20)
    result = run(app, "clear", "openai", "--yes")
    holder.join()
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

    monkeypatch.setattr(type(accounts.canary), "secret", lambda self: accounts._database.run(note))
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
