"""Hosts for commands, how they are run, and what is in their accounts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cachelib import FileSystemCache
from click.testing import Result
from flask import Flask
from flask_session import Session
from sqlalchemy import select, update

from flask_byok import BYOK
from flask_byok.accounts.store import AuditEvent
from flask_byok.accounts.store.audit import Chain
from flask_byok.cli import byok as group
from flask_byok.sealing.keyring import generate_encryption_key
from flask_byok.storage.tables import credentials
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.accounts.account_kinds import open_key
from tests.app import HostApp
from tests.app import make_app as make_accounts_app
from tests.keeper import accounts_of as accounts_of

SAFE = {"SESSION_COOKIE_SECURE": True, "SESSION_COOKIE_SAMESITE": "Lax"}
OLD, NEW = (
    "f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e",
    "4fc82b26aecb47d2868c4efbe3581732a3e7cbcc6c2efb32062c08170a05eeb8",
)


def make_app(tmp_path: Path, *, before: Callable[[Flask], object] = id, **config: Any) -> Flask:
    """Make a host as a developer would, on SQLite.

    :param before: is called with the app before ``BYOK(app)``.
    """
    app = Flask(__name__, instance_path=str(tmp_path))
    app.config |= {
        "SECRET_KEY": "session secret",
        "SESSION_TYPE": "cachelib",
        "SESSION_CACHELIB": FileSystemCache(str(tmp_path / "sessions"), threshold=0),
        "BYOK_ENCRYPTION_KEY": generate_encryption_key(),
        "BYOK_SECRETS_DIR": str(tmp_path),
    } | config
    Session(app)
    before(app)
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


def make_host(directory: Path, fake: FakeProviders | None, url: str, **config: Any) -> HostApp:
    """Make a host that keeps accounts in this database."""
    return make_accounts_app(directory, fake, BYOK_DATABASE_URL=url, **config)


def close(app: Flask) -> None:
    """See that the log is whole, and let the database go."""
    accounts = accounts_of(app)
    assert accounts.audit.verify() == []
    accounts.engine.dispose()


def forge(app: Flask, owner: str = "system", **columns: Any) -> None:
    """Change an owner's records as nothing in the store does, and let the log take them as they are."""
    mine = credentials.c.owner == owner

    def work(chain: Chain) -> None:
        before = chain.connection.execute(select(credentials).where(mine)).all()
        chain.connection.execute(update(credentials).where(mine).values(columns))
        after = {row.id: row for row in chain.connection.execute(select(credentials).where(mine))}
        for row in before:
            # As deleted and made once more: what was said of its key before does not count.
            chain.change(AuditEvent("cli", "forge"), row, None)
            chain.change(AuditEvent("cli", "forge"), None, after[row.id])

    accounts_of(app).audit.change(owner, work)


def stored(app: Flask, owner: str = "system") -> dict[str, str]:
    """Return an owner's keys in plain, by provider and slot."""
    keyring = get_state(app).service.keyring
    return {
        f"{record.provider}/{record.slot}".rstrip("/"): open_key(record, keyring)
        for record in accounts_of(app).find([owner])
    }


def actions(app: Flask, owner: str = "system") -> list[tuple[str, str]]:
    """Return who did what to an owner's keys, the oldest first."""
    entries = reversed(accounts_of(app).audit.entries(owner))
    return [(entry.actor, entry.action) for entry in entries]
