"""A new encryption key: ``flask byok rotate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_byok.accounts.store.reseal import AccountSeals
from flask_byok.sealing.keyring import Keyring
from tests.accounts.account_kinds import event_of, make_record, open_key

from .host import NEW, OLD, SAFE, accounts_of, make_app, refused, run

OLD_RING, NEW_RING, STRANGE = Keyring(OLD), Keyring(NEW, [OLD]), Keyring("22" * 32)
OLD_ID, NEW_ID = OLD_RING.key_ids[0], NEW_RING.key_ids[0]
ROTATING = {"BYOK_ENCRYPTION_KEY": NEW, "BYOK_ENCRYPTION_KEY_FALLBACKS": [OLD]}


@pytest.fixture
def url(sqlite_url: str, tmp_path: Path) -> str:
    """Name a database with three keys that the old encryption key sealed."""
    before = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, BYOK_ENCRYPTION_KEY=OLD, **SAFE)
    for number in range(3):
        accounts_of(before).create(make_record(f"user:{number}"), event_of())
    return sqlite_url


def rotating_app(tmp_path: Path, url: str, **config: Any) -> Flask:
    """Make the app as it is once the new encryption key is the current one."""
    return make_app(tmp_path, **{"BYOK_DATABASE_URL": url, **ROTATING, **SAFE, **config})


def test_rotation(tmp_path: Path, url: str) -> None:
    """All keys, and the log's secret, are sealed anew, and the old encryption key can then go."""
    app = rotating_app(tmp_path, url)
    result = run(app, "rotate")
    assert result.exit_code == 0, result.output
    assert "Sealing again: 3" in result.output
    assert f"3 keys sealed with {NEW_ID}.\n" in result.output
    assert f"{OLD_ID}  0 sealed in accounts, 0 in sessions; it can go" in result.output
    retired = make_app(tmp_path, BYOK_DATABASE_URL=url, BYOK_ENCRYPTION_KEY=NEW, **SAFE)
    found, _ = accounts_of(retired).page(None)
    assert {open_key(record, Keyring(NEW)) for record in found} == {"sk-1"}
    assert accounts_of(retired).audit.verify() == []
    (entry,) = accounts_of(retired).audit.entries("system")
    assert (entry.event.actor, entry.event.action) == ("cli", "rotate")
    assert "Sealing again: 0" in run(app, "rotate").output


def test_unreadable_keys(tmp_path: Path, url: str) -> None:
    """Keys that do not open are counted and left, the missing encryption key is named, and the command fails."""
    app = rotating_app(tmp_path, url)
    accounts_of(app).create(make_record(provider="groq", keyring=STRANGE), event_of())
    result = run(app, "rotate")
    assert "1 key does not open" in refused(result)
    assert f"3 keys sealed with {NEW_ID}" in result.output
    assert (
        f"{STRANGE.key_ids[0]}  1 sealed in accounts; if it was taken away too early"
        in result.output
    )


def test_interrupted(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is one sentence; what was done stays done, and the next run goes on."""
    renew = AccountSeals.renew

    def renew_one(self: AccountSeals, *args: Any, **options: Any) -> Any:
        if options["after"]:
            raise KeyboardInterrupt
        return renew(self, *args, **{**options, "limit": 1})

    app = rotating_app(tmp_path, url)
    monkeypatch.setattr(AccountSeals, "renew", renew_one)
    result = run(app, "rotate")
    assert result.exit_code == 130
    assert "Interrupted: 1 of 3 are done. Run it again to go on." in result.stderr
    monkeypatch.undo()
    assert accounts_of(app).seals.count_due() == 2
    assert "2 keys sealed with" in run(app, "rotate").output
