"""The audit log: ``flask byok audit``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import delete, update

from flask_byok.credentials import utcnow
from flask_byok.stores.base import AuditEvent
from flask_byok.stores.tables import audit
from tests.stores.account_kinds import ANN, BEN, event_of, make_record

from .host import SAFE, accounts_of, make_app, refused, run


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Flask:
    """Make an app with three entries of Ann's and one of Ben's."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=database_url, **SAFE)
    accounts = accounts_of(app)
    traced = event_of(request_id="0123456789abcdef", fingerprint="f" * 64)
    record = accounts.create(make_record(), traced)
    accounts.change(record.id, [ANN], {"label": "x"}, event_of("change"))
    accounts.create(make_record(BEN), AuditEvent("cli", "set"))
    accounts.delete(record.id, [ANN], event_of("clear"))
    return app


def test_list(app: Flask) -> None:
    """Entries are listed the newest first, with who did what to whose key."""
    result = run(app, "audit", "list")
    assert result.exit_code == 0, result.output
    heads, *lines = (line.split() for line in result.output.splitlines())
    assert heads[:4] == ["when", "owner", "who", "action"]
    assert sorted(tuple(line[1:5]) for line in lines) == [
        (ANN, ANN, "change", "openai"),
        (ANN, ANN, "clear", "openai"),
        (ANN, ANN, "set", "openai"),
        (BEN, "cli", "set", "openai"),
    ]
    (created,) = (line for line in lines if line[1] == ANN and line[3] == "set")
    assert created[0].endswith("Z")
    assert created[-3:] == ["done", "0123456789abcdef", "f" * 12]


def test_list_less(app: Flask) -> None:
    """The list can be confined to an owner, a number, and what is older than a time."""
    assert len(run(app, "audit", "list", "--owner", BEN).output.splitlines()) == 2
    assert len(run(app, "audit", "list", "--limit", "2").output.splitlines()) == 3
    for hours, expected in ((-1, 1), (1, 5)):
        moment = (utcnow() + timedelta(hours=hours)).isoformat()
        for text in (moment, moment.removesuffix("+00:00")):
            listed = run(app, "audit", "list", "--before", text).output
            assert len(listed.splitlines()) == expected
    assert run(app, "audit", "list", "--before", "yesterday").exit_code == 2
    assert run(app, "audit", "list", "--owner", "ann").exit_code == 2


def test_names_cannot_steer_the_terminal(app: Flask) -> None:
    """What a name has that a terminal would obey is shown escaped."""
    accounts_of(app).create(make_record("user:\x1b[2J\nx"), event_of())
    output = run(app, "audit", "list").output
    assert "\x1b" not in output
    assert "user:\\x1b[2J\\nx" in output


def test_verify(app: Flask) -> None:
    """A whole log verifies, and it is said how much was looked at."""
    result = run(app, "audit", "verify")
    assert result.exit_code == 0, result.output
    assert "4 rows in 2 chains were verified." in result.output
    one = run(app, "audit", "verify", "--owner", BEN)
    assert "1 rows in 1 chains were verified." in one.output


def test_verify_finds(app: Flask) -> None:
    """Each finding is a line, and the command fails."""
    with accounts_of(app)._database.transactions.several() as connection:
        mine = audit.c.owner == ANN
        connection.execute(update(audit).where(mine, audit.c.number == 1).values(actor="eve"))
        connection.execute(delete(audit).where(mine, audit.c.number == 3))
    result = run(app, "audit", "verify")
    assert "3 findings" in refused(result)
    assert f"{ANN} row 1: it was changed" in result.output
    assert f"{ANN}: rows at its end are missing" in result.output
    assert "is gone, and no row says so" in result.output
    assert run(app, "audit", "verify", "--owner", BEN).exit_code == 0
