"""What all commands share."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from flask.cli import ScriptInfo
from sqlalchemy import Engine, create_engine, select

from flask_byok.cli import byok
from flask_byok.storage import engine as limits
from flask_byok.storage.tables import audit_heads

from .host import SAFE, accounts_of, make_app, run


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

    def note() -> None:
        seen.append(limits.seconds())

    monkeypatch.setattr(type(accounts.canary), "secret", lambda self: accounts._database.call(note))
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
    assert "may have done" in result.stderr
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
