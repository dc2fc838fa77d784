"""What an operator runs from time to time: ``flask byok rotate|purge-expired|audit``."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import delete, select, text, update

from flask_byok.accounts.store import AuditEvent, audit_prune, reseal
from flask_byok.model.credential import RecordedVerdict, Use, Verdict, utcnow
from flask_byok.sealing.keyring import Keyring
from flask_byok.signals import key_expiring
from flask_byok.storage.tables import audit, promotions, usage
from tests.accounts.account_kinds import (
    ANN,
    BEN,
    event_of,
    fingerprint_of,
    make_record,
    open_key,
    tamper,
)

from .host import NEW, OLD, SAFE, accounts_of, make_app, refused, run

STRANGE = Keyring("785f3ec7eb32f30b90cd0fcf3657d388b5ff4297f2f9716ff66e9b69c05ddd09")
OLD_ID, NEW_ID = Keyring(OLD).key_ids[0], Keyring(NEW).key_ids[0]
NOW = utcnow()
IN_A_WHILE = (NOW + timedelta(hours=1)).isoformat()
VALID = RecordedVerdict(Verdict.VALID, NOW, "")


@pytest.fixture
def rotating(sqlite_url: str, tmp_path: Path) -> Flask:
    """Make an app with a new encryption key, on three keys that the old one sealed."""
    before = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, BYOK_ENCRYPTION_KEY=OLD, **SAFE)
    for number in range(3):
        accounts_of(before).put(make_record(f"user:{number}", validity=VALID), event_of())
    keys = {"BYOK_ENCRYPTION_KEY": NEW, "BYOK_ENCRYPTION_KEY_FALLBACKS": [OLD]}
    return make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, **keys, **SAFE)


def test_rotation(rotating: Flask, tmp_path: Path, sqlite_url: str) -> None:
    """All keys, and the log's secret, are sealed again, and the old encryption key can then go."""
    result = run(rotating, "rotate")
    assert result.exit_code == 0, result.output
    assert "Sealing again: 3" in result.output
    assert f"3 keys sealed with {NEW_ID}." in result.output
    assert f"{OLD_ID}  0 sealed in accounts, 0 in sessions; it can go" in result.output
    retired = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, BYOK_ENCRYPTION_KEY=NEW, **SAFE)
    found, _ = accounts_of(retired).page(None)
    assert {(open_key(record, Keyring(NEW)), record.version) for record in found} == {("sk-1", "1")}
    assert all(record.current_validity() for record in found)
    assert accounts_of(retired).audit.verify() == []
    (entry,) = accounts_of(retired).audit.entries("system")
    assert (entry.actor, entry.action) == ("cli", "rotate")
    assert "Sealing again: 0" in run(rotating, "rotate").output


def test_unreadable_keys(rotating: Flask) -> None:
    """Keys that do not open are counted and left, the missing encryption key is named, and the command fails."""
    accounts_of(rotating).put(make_record(provider="groq", keyring=STRANGE), event_of())
    result = run(rotating, "rotate")
    assert "1 key does not open" in refused(result)
    assert f"3 keys sealed with {NEW_ID}" in result.output
    gone = f"{STRANGE.key_ids[0]}  1 sealed in accounts; if it was taken away too early"
    assert gone in result.output


def test_interrupted(rotating: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is one sentence; what was done stays done, and the next run goes on."""

    def seal(*args: Any) -> Any:
        if done.append(args) or len(done) > 1:
            raise KeyboardInterrupt
        return renewed(*args)

    renewed, done = Keyring.renewed, list[Any]()
    monkeypatch.setattr(reseal, "_BATCH", 1)
    monkeypatch.setattr(Keyring, "renewed", seal)
    result = run(rotating, "rotate")
    assert result.exit_code == 130
    assert "Interrupted: 1 of 3 are done. Run it again to go on." in result.stderr
    monkeypatch.undo()
    assert accounts_of(rotating).seals.count_due() == 2
    assert "2 keys sealed with" in run(rotating, "rotate").output


# flask byok purge-expired


@pytest.fixture
def expiring(tmp_path: Path, sqlite_url: str) -> Flask:
    """Make an app with keys that expired or expire in some days, and one that never does."""
    expiring = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, **SAFE)
    for days in (-40, -2, -1, 1, 6, 8):
        end = NOW + timedelta(days=days)
        accounts_of(expiring).put(make_record(f"user:{days}", expires_at=end), event_of())
    accounts_of(expiring).put(make_record(), event_of())
    return expiring


def owners(expiring: Flask) -> set[str]:
    """Return who has a key still."""
    return {record.owner for record in accounts_of(expiring).page(None)[0]}


def test_purge(expiring: Flask) -> None:
    """What has expired is deleted, as the log says, and nothing else is."""
    assert "1 expired key deleted." in run(expiring, "purge-expired", "--days", "30").output
    assert "user:-2" in owners(expiring)
    result = run(expiring, "purge-expired")
    assert result.exit_code == 0, result.output
    assert "2 expired keys deleted." in result.output
    assert "nothing listens to key_expiring" in result.output
    assert owners(expiring) == {"user:1", "user:6", "user:8", "user:ann"}
    entry = accounts_of(expiring).audit.entries("user:-40")[0]
    assert (entry.actor, entry.action) == ("cli", "purge")
    assert accounts_of(expiring).audit.verify() == []
    assert "0 expired keys deleted." in run(expiring, "purge-expired").output


def test_signal(expiring: Flask) -> None:
    """The host hears of each key that expires within a week: whose, and when, and nothing of the key."""
    heard: list[dict[str, Any]] = []

    def note(sender: Flask, **facts: Any) -> None:
        assert sender is expiring
        heard.append(facts)

    key_expiring.connect(note, expiring, weak=False)
    result = run(expiring, "purge-expired")
    assert "2 keys expire within a week, signalled by key_expiring." in result.output
    assert [facts["owner"] for facts in heard] == ["user:1", "user:6"]
    (record,) = accounts_of(expiring).find(["user:1"])
    facts = {"id": record.id, "expires_at": record.expires_at}
    assert heard[0] == {"owner": "user:1", "provider": "openai"} | facts


def test_long_ended_sessions_are_forgotten(expiring: Flask) -> None:
    """Which of sessions' records are over is forgotten once no session can have them, and not before."""
    accounts = accounts_of(expiring)
    accounts.end("user:ann", ["old", "new"], event_of("clear"), make_record())
    tamper(accounts, update(promotions).where(promotions.c.origin == "old").values(promoted_at=1))
    run(expiring, "purge-expired")
    assert accounts.over("user:ann", ["old", "new"]) == {"new"}


def test_old_counts_are_summed_up(expiring: Flask) -> None:
    """What was counted over 90 days ago is summed up, and said so."""
    accounts = accounts_of(expiring)
    for days_ago in (0, 89, 90, 91, 400):
        day = (NOW - timedelta(days=days_ago)).date().isoformat()
        accounts.usage.add(Use("user:ann", "openai", "", day, "used", 1, 1))
    assert "3 old daily counts summed up." in run(expiring, "purge-expired").output
    assert "0 old daily counts summed up." in run(expiring, "purge-expired").output
    assert accounts.usage.stats(None)["by_provider"]["openai"]["uses"] == 5
    with accounts.engine.connect() as connection:
        found = connection.execute(select(usage.c.uses).order_by(usage.c.day)).scalars().all()
    assert found == [3, 1, 1]


# flask byok audit


@pytest.fixture
def app(tmp_path: Path, sqlite_url: str) -> Flask:
    """Make an app with three entries of Ann's and one of Ben's."""
    app = make_app(tmp_path, BYOK_DATABASE_URL=sqlite_url, **SAFE)
    accounts = accounts_of(app)
    traced = event_of(request_id="0123456789abcdef", fingerprint=fingerprint_of(accounts))
    record = accounts.put(make_record(), traced)
    accounts.change(record.id, [ANN], {"label": "x"}, event_of("change"))
    accounts.put(make_record(BEN), AuditEvent("cli", "set"))
    accounts.delete(record.id, [ANN], event_of("clear"))
    return app


def test_list(app: Flask) -> None:
    """Entries are listed the newest first, with who did what to whose key."""
    result = run(app, "audit", "list")
    assert result.exit_code == 0, result.output
    heads, *lines = (line.split() for line in result.output.splitlines())
    assert heads[:4] == ["when", "owner", "who", "action"]
    of_ann = [line[2:5] for line in lines if line[1] == ANN]
    assert of_ann == [[ANN, action, "openai"] for action in ("clear", "change", "set")]
    assert [line[1:5] for line in lines if line[1] != ANN] == [[BEN, "cli", "set", "openai"]]
    (created,) = (line for line in lines if line[1] == ANN and line[3] == "set")
    assert created[0].endswith("Z")
    expected = fingerprint_of(accounts_of(app))[:12]
    assert created[-3:] == ["done", "0123456789abcdef", expected]


def test_columns_hold_long_names(app: Flask) -> None:
    """Each column begins at the same place in every line, however long an owner's id is."""
    accounts_of(app).put(make_record(f"user:{'x' * 60}"), event_of())
    heads, *lines = run(app, "audit", "list").output.splitlines()
    place = heads.index("provider")
    assert {line[place - 2 : place + 8] for line in lines} == {"  openai  "}


def test_list_less(app: Flask) -> None:
    """The list can be confined to an owner, a number, and what is older than a time."""
    assert len(run(app, "audit", "list", "--owner", BEN).output.splitlines()) == 2
    assert len(run(app, "audit", "list", "--limit", "2").output.splitlines()) == 3
    for hours, expected in ((-1, 1), (1, 5)):
        moment = (utcnow() + timedelta(hours=hours)).isoformat()
        for given in (moment, moment.removesuffix("+00:00")):
            listed = run(app, "audit", "list", "--before", given).output
            assert len(listed.splitlines()) == expected
    assert run(app, "audit", "list", "--before", "yesterday").exit_code == 2
    assert run(app, "audit", "list", "--owner", "ann").exit_code == 2


@pytest.mark.parametrize("column", ["number", "at"])
def test_columns_of_another_type(app: Flask, column: str) -> None:
    """SQLite keeps a word in a column of numbers: it is found, and one bad row does not end the list."""
    where = "WHERE owner = 'user:ann' AND number = 2"
    tamper(accounts_of(app), text(f"UPDATE byok_audit SET {column} = 'zz' {where}"))
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
    mine = audit.c.owner == ANN
    forged = update(audit).where(mine, audit.c.number == 1).values(actor="eve")
    tamper(accounts_of(app), forged, delete(audit).where(mine, audit.c.number == 3))
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


def test_prune(app: Flask, tmp_path: Path) -> None:
    """Old entries are deleted after a question, the rest is whole, and heads of before are said to be pruned."""
    printed = run(app, "audit", "heads").output
    kept = tmp_path / "heads"
    kept.write_text(printed.replace('"number":3', '"number":1'))
    args = ["audit", "prune", "--before", IN_A_WHILE]
    assert "--yes" in refused(run(app, *args))
    assert accounts_of(app).audit.count() == 4
    result = run(app, *args, "--yes")
    assert result.exit_code == 0, result.output
    assert "This deletes 2 entries from before" in result.output
    assert result.output.splitlines()[-1] == "2 log entries deleted."
    verified = run(app, "audit", "verify", "--against", str(kept))
    assert verified.exit_code == 0, verified.output
    assert "Looked for 2 heads, 1 of them pruned since." in verified.output
    assert run(app, *args, "--yes").output == "There is nothing to delete.\n"
    assert run(app, "audit", "prune", "--before", "yesterday").exit_code == 2


def test_prune_asks(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it asks, and no is no."""
    monkeypatch.setattr("flask_byok.cli.accounts.common.is_terminal", lambda stream: True)
    args = ["audit", "prune", "--before", IN_A_WHILE]
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
    args = ["audit", "prune", "--before", IN_A_WHILE, "--yes"]
    result = run(app, *args)
    assert result.exit_code == 130
    assert "1 of 2 are done. Run it again to go on." in result.stderr
    assert run(app, "audit", "verify").exit_code == 0
    monkeypatch.undo()
    assert run(app, *args).exit_code == 0
    assert run(app, "audit", "verify").exit_code == 0


def test_prune_what_is_not_whole(app: Flask) -> None:
    """A chain that is not whole stays, and is named."""
    tamper(accounts_of(app), update(audit).where(audit.c.number == 1).values(actor="eve"))
    said = refused(run(app, "audit", "prune", "--before", IN_A_WHILE, "--yes"))
    assert f"not whole: 1 chain; the first is {ANN}'s." in said
