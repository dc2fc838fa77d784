"""``flask byok purge-expired`` keeps the audit log and the daily counts no longer than the operator says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from flask_byok.accounts.store import audit as audit_module
from flask_byok.accounts.store import audit_prune
from flask_byok.model.credential import Use, to_milliseconds, utcnow
from flask_byok.storage.tables import usage
from tests.accounts.account_kinds import ANN, BEN, event_of, make_record

from .host import SAFE, accounts_of, make_app, run

DAY = timedelta(days=1)
DAYS_AGO = (100, 31, 29, 8, 5, 0)


@pytest.fixture
def make_aged(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Flask]]:
    """Make apps on a database in which two people changed and used keys on each of several days."""
    made: list[Flask] = []

    def make(**config: Any) -> Flask:
        app = make_app(tmp_path, BYOK_DATABASE_URL=database_url, **SAFE, **config)
        made.append(app)
        store = accounts_of(app)
        for ago in DAYS_AGO:
            at = utcnow() - ago * DAY
            with monkeypatch.context() as patch:
                patch.setattr(audit_module, "utcnow", lambda at=at: at)
                records = [store.put(make_record(owner), event_of()) for owner in (ANN, BEN)]
            for owner, record in zip((ANN, BEN), records, strict=True):
                day, when = at.date().isoformat(), to_milliseconds(at)
                store.usage.add(Use(owner, "openai", record.id, day, "used", 1, when))
        return app

    yield make
    for app in made:
        accounts_of(app).engine.dispose()


def days_of_usage(app: Flask) -> set[str]:
    """Return the days that have counts of their own."""
    rows = accounts_of(app).database.read(select(usage.c.day))
    return {row.day for row in rows} - {"1970-01-01"}


def test_retention(make_aged: Callable[..., Flask]) -> None:
    """What is older goes, the log verifies, and the totals stay exact."""
    app = make_aged(BYOK_AUDIT_RETENTION=30 * DAY, BYOK_USAGE_RETENTION=7 * DAY)
    before = accounts_of(app).usage.stats(None)
    result = run(app, "purge-expired")
    assert result.exit_code == 0, result.output
    assert "8 old daily counts summed up." in result.output
    assert result.output.splitlines()[-1] == "4 log entries deleted."
    assert accounts_of(app).audit.entries(ANN, limit=100)[-1].at >= to_milliseconds(
        utcnow() - 30 * DAY
    )
    assert days_of_usage(app) == {(utcnow() - ago * DAY).date().isoformat() for ago in (5, 0)}
    after = accounts_of(app).usage.stats(None)
    assert (after["by_provider"], after["total"]) == (before["by_provider"], before["total"])
    assert run(app, "audit", "verify").exit_code == 0
    again = run(app, "purge-expired")
    assert "0 old daily counts" in again.output
    assert "log entries" not in again.output


def test_by_default(make_aged: Callable[..., Flask]) -> None:
    """Without the settings the log stays, and daily counts stay for 90 days."""
    app = make_aged()
    entries = accounts_of(app).audit.count()
    assert "2 old daily counts summed up." in run(app, "purge-expired").output
    assert accounts_of(app).audit.count() == entries


def test_interrupted(make_aged: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption the log verifies, and the next run goes on."""
    app = make_aged(BYOK_AUDIT_RETENTION=30 * DAY)
    one_batch, done = audit_prune._prune_chain, list[int]()

    def prune_one(*args: Any) -> int | None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return one_batch(*args)

    monkeypatch.setattr(audit_prune, "_BATCH", 1)
    monkeypatch.setattr(audit_prune, "_prune_chain", prune_one)
    result = run(app, "purge-expired")
    assert result.exit_code == 130
    assert "Interrupted: 2 of 4 are done. Run it again to go on." in result.stderr
    monkeypatch.undo()
    assert run(app, "audit", "verify").exit_code == 0
    assert "2 log entries deleted." in run(app, "purge-expired").output
    assert run(app, "audit", "verify").exit_code == 0
