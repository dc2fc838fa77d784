"""A host for commands, and how they are run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cachelib import SimpleCache
from click.testing import Result
from flask import Flask
from flask_session import Session

from flask_byok import BYOK
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.cli import byok as group
from flask_byok.sealing.keyring import generate_encryption_key
from flask_byok.web.caller import get_state

SAFE = {"SESSION_COOKIE_SECURE": True, "SESSION_COOKIE_SAMESITE": "Lax"}
OLD, NEW = "00" * 32, "11" * 32


def make_app(tmp_path: Path, **config: Any) -> Flask:
    """Make a host as a developer would, on SQLite."""
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


def run(app: Flask, *args: str, input: str | bytes | None = None) -> Result:
    """Run a command as ``flask byok`` would."""
    app.cli.add_command(group)
    return app.test_cli_runner().invoke(args=["byok", *args], input=input)


def refused(result: Result) -> str:
    """Return what a command that could not do its work said: one sentence, and status 1."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert "Traceback" not in result.output
    return last


def accounts_of(app: Flask) -> AccountStore:
    """Return where the app keeps accounts."""
    accounts = get_state(app).service.accounts.store
    assert accounts is not None
    return accounts
