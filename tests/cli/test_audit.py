"""The audit log: ``flask byok audit``."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import delete, update

from flask_byok.accounts.store import audit_prune
from flask_byok.keys.ports import AuditEvent
from flask_byok.model.credential import utcnow
from flask_byok.storage.tables import audit
from tests.accounts.account_kinds import ANN, BEN, event_of, fingerprint_of, make_record

from .host import SAFE, accounts_of, make_app, refused, run


@pytest.fixture
def app(tmp_path: Path, sqlite_url: str) -> Flask:
    """Make an app with three entries of Ann's and one of Ben's."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, **SAFE)
    accounts = accounts_of(app)
    traced = event_of(request_id="0123456789abcdef", fingerprint=fingerprint_of(accounts))
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
    expected = fingerprint_of(accounts_of(app))[:12]
    assert created[-3:] == ["done", "0123456789abcdef", expected]


def test_columns_hold_long_names(app: Flask) -> None:
    """Each column begins at the same place in every line, however long an owner's id is."""
    accounts_of(app).create(make_record(f"user:{'x' * 60}"), event_of())
    heads, *lines = run(app, "audit", "list").output.splitlines()
    place = heads.index("provider")
    assert {line[place - 2 : place + 8] for line in lines} == {"  openai  "}


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


@pytest.mark.parametrize("column", ["number", "at"])
def test_columns_of_another_type(app: Flask, column: str) -> None:
    """SQLite keeps a word in a column of numbers: it is found, and one bad row does not end the list."""
    with accounts_of(app)._database.transactions.several() as connection:
        where = "WHERE owner = 'user:ann' AND number = 2"
        connection.exec_driver_sql(f"UPDATE byok_audit SET {column} = 'zz' {where}")
    assert "The log is not whole" in refused(run(app, "audit", "verify"))
    listed = run(app, "audit", "list")
    assert listed.exit_code == 0, listed.exception
    assert len(listed.output.splitlines()) == 5


def test_verify(app: Flask) -> None:
    """A whole log verifies, and it is said how much was looked at."""
    result = run(app, "audit", "verify")
    assert result.exit_code == 0, result.output
    assert "Verified 4 rows in 2 chains." in result.output
    one = run(app, "audit", "verify", "--owner", BEN)
    assert "Verified 1 row in 1 chain." in one.output


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


def test_heads(app: Flask, tmp_path: Path) -> None:
    """Heads that were printed and kept elsewhere tell when the log no longer has them."""
    printed = run(app, "audit", "heads")
    assert printed.exit_code == 0
    heads = [json.loads(line) for line in printed.output.splitlines()]
    assert [(head["owner"], head["number"]) for head in heads] == [(ANN, 3), (BEN, 1)]
    assert len(run(app, "audit", "heads", "--owner", BEN).output.splitlines()) == 1
    kept = tmp_path / "heads"
    kept.write_text(printed.output)
    accounts_of(app).audit.note(ANN, event_of("reveal"))
    whole = run(app, "audit", "verify", "--against", str(kept))
    assert whole.exit_code == 0, whole.output
    assert "Looked for 2 heads, 0 of them pruned since." in whole.output
    heads[0]["hash"] = "0" * 64
    kept.write_text("\n".join(map(json.dumps, heads)))
    result = run(app, "audit", "verify", "--against", str(kept))
    assert "1 finding." in refused(result)
    assert f"{ANN} row 3: " in result.output
    assert run(app, "audit", "verify", "--against", str(kept), "--owner", BEN).exit_code == 0


def test_heads_that_are_none(app: Flask, tmp_path: Path) -> None:
    """A file that does not exist, or has something else, is refused and not repeated."""
    kept = tmp_path / "sk-secret"
    for content in (None, b"x", b'{"owner": "system"}', b"\xff"):
        if content is not None:
            kept.write_bytes(content)
        result = run(app, "audit", "verify", "--against", str(kept))
        assert result.exit_code == 2
        assert "flask byok audit heads" in result.output
        assert "sk-secret" not in result.output


def in_a_while() -> str:
    """Name a time before which all is."""
    return (utcnow() + timedelta(hours=1)).isoformat()


def test_prune(app: Flask, tmp_path: Path) -> None:
    """Old entries are deleted after a question, the rest is whole, and heads of before are said to be pruned."""
    printed = run(app, "audit", "heads").output
    kept = tmp_path / "heads"
    kept.write_text(printed.replace('"number":3', '"number":1'))
    args = ["audit", "prune", "--before", in_a_while()]
    assert "--yes" in refused(run(app, *args))
    assert accounts_of(app).audit.count() == 4
    result = run(app, *args, "--yes")
    assert result.exit_code == 0, result.output
    assert "This deletes 2 entries from before" in result.output
    assert result.output.splitlines()[-1] == "2 entries deleted."
    verified = run(app, "audit", "verify", "--against", str(kept))
    assert verified.exit_code == 0, verified.output
    assert "Looked for 2 heads, 1 of them pruned since." in verified.output
    assert run(app, *args, "--yes").output == "There is nothing to delete.\n"
    assert run(app, "audit", "prune", "--before", "yesterday").exit_code == 2


def test_prune_asks(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it asks, and no is no."""
    monkeypatch.setattr("flask_byok.cli.common.is_terminal", lambda stream: True)
    args = ["audit", "prune", "--before", in_a_while()]
    assert run(app, *args, input="n\n").exit_code == 1
    assert accounts_of(app).audit.count() == 4
    assert run(app, *args, input="y\n").exit_code == 0
    assert accounts_of(app).audit.count() == 4, "Ann's and Ben's last, two of the pruning"


def test_prune_interrupted(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is one sentence; what was done stays done, and the next run goes on."""
    monkeypatch.setattr(audit_prune, "_BATCH", 1)
    one_batch, done = audit_prune._prune_chain, []

    def prune_one(*args: Any) -> int | None:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return one_batch(*args)

    monkeypatch.setattr(audit_prune, "_prune_chain", prune_one)
    args = ["audit", "prune", "--before", in_a_while(), "--yes"]
    result = run(app, *args)
    assert result.exit_code == 130
    assert "1 of 2 are done. Run it again to go on." in result.stderr
    monkeypatch.undo()
    assert run(app, *args).exit_code == 0
    assert run(app, "audit", "verify").exit_code == 0


def test_prune_what_is_not_whole(app: Flask) -> None:
    """A chain that is not whole stays, and is named."""
    with accounts_of(app)._database.transactions.several() as connection:
        connection.execute(update(audit).where(audit.c.number == 1).values(actor="eve"))
    said = refused(run(app, "audit", "prune", "--before", in_a_while(), "--yes"))
    assert f"not whole: 1 chain; the first is {ANN}'s." in said
