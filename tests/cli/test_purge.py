"""Keys that expire: ``flask byok purge-expired``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from flask_byok.model.credential import Use, utcnow
from flask_byok.signals import key_expiring
from flask_byok.storage.tables import promotions, usage
from tests.accounts.account_kinds import event_of, make_record

from .host import SAFE, accounts_of, make_app, run

NOW = utcnow()


@pytest.fixture
def app(tmp_path: Path, sqlite_url: str) -> Flask:
    """Make an app with keys that expired or expire in some days, and one that never does."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, **SAFE)
    for days in (-40, -2, -1, 1, 6, 8):
        end = NOW + timedelta(days=days)
        accounts_of(app).create(make_record(f"user:{days}", expires_at=end), event_of())
    accounts_of(app).create(make_record(), event_of())
    return app


def owners(app: Flask) -> set[str]:
    """Return who has a key still."""
    return {record.owner for record in accounts_of(app).page(None)[0]}


def test_purge(app: Flask) -> None:
    """What has expired is deleted, as the log says, and nothing else is."""
    result = run(app, "purge-expired")
    assert result.exit_code == 0, result.output
    assert "3 expired keys deleted." in result.output
    assert "nothing listens to key_expiring" in result.output
    assert owners(app) == {"user:1", "user:6", "user:8", "user:ann"}
    entry = accounts_of(app).audit.entries("user:-40")[0]
    assert (entry.event.actor, entry.event.action) == ("cli", "purge")
    assert accounts_of(app).audit.verify() == []
    assert "0 expired keys deleted." in run(app, "purge-expired").output


def test_long_ended_sessions_are_forgotten(app: Flask) -> None:
    """Which of sessions' records are over is forgotten once no session can have them, and not before."""
    accounts = accounts_of(app)
    accounts.end("user:ann", ["old", "new"], event_of("clear"), make_record())
    with accounts.engine.begin() as connection:
        connection.execute(
            promotions.update().where(promotions.c.origin == "old").values(promoted_at=1)
        )
    run(app, "purge-expired")
    assert accounts.over("user:ann", ["old", "new"]) == {"new"}


def test_old_counts_are_summed_up(app: Flask) -> None:
    """What was counted over 90 days ago is summed up, and said so; a dry run says only how much there is."""
    accounts = accounts_of(app)
    for days_ago in (0, 89, 90, 91, 400):
        day = (NOW - timedelta(days=days_ago)).date().isoformat()
        accounts.usage.add(Use("user:ann", "openai", "", day, "used", 1, 1))
    output = run(app, "purge-expired", "--dry-run").output
    assert "3 old daily counts would be summed up." in output
    assert "3 old daily counts summed up." in run(app, "purge-expired").output
    assert "0 old daily counts summed up." in run(app, "purge-expired").output
    assert accounts.usage.stats(None)["by_provider"]["openai"]["uses"] == 5
    with accounts.engine.connect() as connection:
        found = connection.execute(select(usage.c.uses).order_by(usage.c.day)).scalars().all()
    assert found == [3, 1, 1]


def test_some_days_more(app: Flask) -> None:
    """Keys that expired within the given days stay."""
    assert "1 expired key deleted." in run(app, "purge-expired", "--days", "30").output
    assert "user:-2" in owners(app)


def test_dry_run(app: Flask) -> None:
    """A dry run deletes and signals nothing, and says what it would."""
    heard = listen(app)
    result = run(app, "purge-expired", "--dry-run")
    assert "3 expired keys would be deleted, 2 will expire within a week." in result.output
    assert len(owners(app)) == 7
    assert heard == []


def test_signal(app: Flask) -> None:
    """The host hears of each key that expires within a week: whose, and when, and nothing of the key."""
    heard = listen(app)
    result = run(app, "purge-expired")
    assert "Within a week 2 keys expire: signalled." in result.output
    assert [facts["owner"] for facts in heard] == ["user:1", "user:6"]
    (record,) = accounts_of(app).find(["user:1"])
    assert heard[0] == {
        "owner": "user:1",
        "provider": "openai",
        "id": record.id,
        "expires_at": record.expires_at,
    }


def listen(app: Flask) -> list[dict[str, Any]]:
    """Note what is signalled from now on."""
    heard: list[dict[str, Any]] = []

    def note(sender: Flask, **facts: Any) -> None:
        assert sender is app
        heard.append(facts)

    key_expiring.connect(note, app, weak=False)
    return heard
