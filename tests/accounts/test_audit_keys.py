"""The audit log and the keys: neither can be restored without the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update

from flask_byok.accounts.store import AuditEvent, Head, audit_verify
from flask_byok.accounts.store.audit_verify import Finding
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.wing import open_accounts
from flask_byok.model.credential import RecordedVerdict, Use, Verdict, utcnow
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.tables import audit, audit_heads, credentials

from .account_kinds import ANN, BEN, KEYRING, event_of, fingerprint_of, make_record, promote, tamper

OF_ANN = audit.c.owner == ANN
NEW = Keyring(
    "4fc82b26aecb47d2868c4efbe3581732a3e7cbcc6c2efb32062c08170a05eeb8",
    ["f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e"],
)
LATER = 4_000_000_000_000
#: What an attacker may want a key's record to be.
FORGED: list[dict[str, Any]] = [
    *({"active": False}, {"expires_at": 1000}, {"expires_at": LATER}, {"set_at": None}),
    *({"created_at": LATER}, {"updated_at": LATER}, {"set_at": LATER}, {"id": "0" * 32}),
    *({"provider": "xai"}, {"tier": "team"}, {"slot": "other"}, {"hint": "sk-…9999"}),
    *({"label": "pay here"}, {"description": "pay here"}),
]


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store with two keys of Ann's, of which one was changed, and one of Ben's."""
    store = open_accounts(database_url, KEYRING)
    store.put(make_record(), event_of())
    store.put(make_record(api_key="sk-2"), event_of())
    store.put(make_record(provider="groq"), event_of())
    store.put(make_record(BEN), AuditEvent(BEN, "set"))
    yield store
    store.engine.dispose()


def put_head_back(store: AccountStore, head: Head, seal: str) -> None:
    """Drop what came after a head, and make it the head again."""
    tamper(
        store,
        delete(audit).where(audit.c.owner == head.owner, audit.c.number > head.number),
        update(audit_heads)
        .where(audit_heads.c.owner == head.owner)
        .values(number=head.number, hash=head.hash, seal=seal),
    )


def seal_of(store: AccountStore, owner: str = ANN) -> str:
    """Return the seal of an owner's head."""
    with store.engine.connect() as connection:
        seals = select(audit_heads.c.seal).where(audit_heads.c.owner == owner)
        return str(connection.execute(seals).scalar_one())


def replace_key(store: AccountStore) -> None:
    """Put another key in the place of Ann's."""
    store.put(make_record(api_key="sk-3"), event_of())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (replace_key, "has the version 3, and its last row says 2"),
        (
            lambda store: store.put(make_record(provider="xai"), event_of()),
            "there is no row about the key",
        ),
        (
            lambda store: store.clear(ANN, ["groq"], event_of("clear")),
            "is gone, and no row says so",
        ),
    ],
)
def test_old_head_put_back_shows(
    store: AccountStore, change: Callable[[AccountStore], object], problem: str
) -> None:
    """A chain whose last rows are dropped with its old head put back does not explain the keys."""
    (head,), seal = store.audit.heads(ANN), seal_of(store)
    change(store)
    assert store.audit.verify() == []
    put_head_back(store, head, seal)
    (finding,) = store.audit.verify()
    assert (finding.owner, finding.number) == (ANN, None)
    assert problem in finding.problem
    store.audit.note(ANN, event_of("reveal"))
    assert [found.problem for found in store.audit.verify()] == [finding.problem]


def test_deleted_key_that_comes_back_shows(store: AccountStore) -> None:
    """A deleted key that is put back past the log is found, however it was deleted."""
    with store.engine.connect() as connection:
        query = select(credentials).where(credentials.c.owner == ANN)
        rows = [dict(row._mapping) for row in connection.execute(query)]
    store.clear(ANN, ["groq"], event_of("clear"))
    (openai,) = store.find([ANN])
    store.delete(openai.id, [ANN], event_of("clear"))
    assert store.audit.verify() == []
    tamper(store, insert(credentials).values(rows))
    findings = store.audit.verify()
    assert [found.owner for found in findings] == [ANN, ANN]
    assert all("its last row says that it was deleted" in found.problem for found in findings)


def test_keys_changed_past_the_log_show(store: AccountStore) -> None:
    """A key that is moved to another owner, or made older, is found at both ends."""
    move = update(credentials).where(credentials.c.provider == "groq").values(owner=BEN)
    older = update(credentials).where(credentials.c.owner == BEN).values(version=7)
    tamper(store, move)
    assert {found.owner for found in store.audit.verify()} == {ANN, BEN}
    tamper(store, older)
    assert len(store.audit.verify(BEN)) == 2


def test_keys_of_a_chain_without_rows_show(store: AccountStore) -> None:
    """A head that was sealed before there was any row explains no key."""
    store.audit.change("user:new", lambda chain: None)
    assert store.audit.verify() == []
    (seal,) = [seal_of(store, "user:new")]
    store.put(make_record("user:new"), event_of())
    put_head_back(store, Head("user:new", 0, ""), seal)
    (finding,) = store.audit.verify()
    assert "there is no row about the key" in finding.problem


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_changes_while_it_verifies(
    store: AccountStore, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Keys that are changed after their chains were read are explained by the rows that came since."""
    monkeypatch.setattr(audit_verify, "_PAGE", page)
    told: list[tuple[int, ...]] = []

    def change(*looked_at: int) -> None:
        if looked_at in told or len(told) > 20:
            return  # else it would never be done
        told.append(looked_at)
        store.put(make_record(api_key="sk-x"), event_of())
        store.clear(ANN, ["groq"], event_of("clear"))
        store.put(make_record(provider="groq"), event_of())
        store.put(make_record(BEN), event_of())

    assert store.audit.verify(report=change) == []
    assert told


def test_verifies_beside_first_keys(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners who have had a chain without rows, and get their first key meanwhile, are followed once."""
    for owner in ("user:yan", "user:zoe"):
        store.audit.change(owner, lambda chain: None)
    look = store.audit._rowless

    def look_and_go_on(*asked: Any) -> Any:
        found = look(*asked)
        store.put(make_record("user:yan"), event_of())
        return found

    monkeypatch.setattr(store.audit, "_rowless", look_and_go_on)
    assert store.audit.verify() == []


def test_many_owners(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are compared in batches that end anywhere, and none is left out."""
    for number in range(7):
        store.put(make_record(f"user:{number}"), event_of())
        store.audit.change(f"user:{number}x", lambda chain: None)
    for size in (1, 2, 3, 200):
        monkeypatch.setattr(audit_verify, "_BATCH", size)
        assert store.audit.verify() == []
    tamper(store, update(credentials).values(version=9))
    for size in (1, 2, 3, 200):
        monkeypatch.setattr(audit_verify, "_BATCH", size)
        assert len(store.audit.verify()) == 10


# heads that are kept elsewhere


def test_heads(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are every chain's last rows, with pages of any size, and the log contains them ever after."""
    heads = list(store.audit.heads())
    assert [(head.owner, head.number) for head in heads] == [(ANN, 3), (BEN, 1)]
    assert list(store.audit.heads(BEN)) == heads[1:]
    replace_key(store)
    for size in (1, 2):
        monkeypatch.setattr(audit_verify, "_PAGE", size)
        monkeypatch.setattr(audit_verify, "_BATCH", size)
        assert len(list(store.audit.heads())) == 2
        assert store.audit.missing(heads) == ([], 0)


def test_dropped_reveal_is_missed(store: AccountStore) -> None:
    """What nothing in the database shows, heads that were kept elsewhere do."""
    (before,), seal = store.audit.heads(ANN), seal_of(store)
    store.audit.note(ANN, event_of("reveal"))
    kept = list(store.audit.heads())
    put_head_back(store, before, seal)
    assert store.audit.verify() == []
    ((finding,), _) = store.audit.missing(kept)
    assert (finding.owner, finding.number) == (ANN, 4)
    store.audit.note(ANN, event_of("validate"))
    # Another row is in its place.
    assert [found.owner for found in store.audit.missing(kept)[0]] == [ANN]


# what an attacker writes


@pytest.mark.parametrize(
    ("table", "column"), [(audit, "hash"), (audit, "previous"), (audit_heads, "seal")]
)
def test_odd_text_is_a_finding(store: AccountStore, table: Any, column: str) -> None:
    """Text that no hash is made of is found, and keys can still be changed."""
    tamper(store, update(table).where(table.c.owner == ANN).values({column: "é"}))
    assert {found.owner for found in store.audit.verify()} == {ANN}
    replace_key(store)
    assert {found.owner for found in store.audit.verify()} == {ANN}


def test_odd_times_are_listed(store: AccountStore) -> None:
    """A time that no calendar has does not end the list."""
    tamper(store, update(audit).where(OF_ANN).values(at=10**17))
    assert len(store.audit.entries(ANN)) == 3


@pytest.mark.parametrize(
    "odd",
    [
        "UPDATE byok_audit SET number = 'x' WHERE number = 2",
        "UPDATE byok_audit SET number = 'x' || number",
        "UPDATE byok_audit SET at = 'x', version = 'x'",
        "UPDATE byok_audit_heads SET number = 'x'",
        "UPDATE byok_audit_heads SET number = 9223372036854775807",
        "UPDATE byok_audit_heads SET checkpoint = 'x'",
        "UPDATE byok_credentials SET version = 'x'",
    ],
)
def test_odd_types_are_findings(sqlite_url: str, odd: str) -> None:
    """What SQLite takes although it is not of the column's type is found, before and after a change."""
    store = open_accounts(sqlite_url, KEYRING)
    for provider in ("openai", "groq"):
        store.put(make_record(provider=provider), event_of())
    tamper(store, text(odd))
    assert store.audit.verify()
    store.audit.note(ANN, event_of("reveal"))
    assert store.audit.verify()
    assert store.audit.entries(ANN)
    store.engine.dispose()


# what the log says of a record


@pytest.fixture
def log(database_url: str) -> Iterator[AccountStore]:
    """Make a store with a key of Ann's, which was changed, and one of Ben's."""
    log = open_accounts(database_url, KEYRING)
    record = log.put(make_record(label="mine"), event_of(fingerprint=fingerprint_of(log)))
    log.change(record.id, [ANN], {"description": "for work"}, event_of("change"))
    log.put(make_record(BEN), AuditEvent(BEN, "set"))
    yield log
    log.engine.dispose()


def forge(log: AccountStore, owner: str = ANN, **columns: Any) -> None:
    """Change an owner's record past the store."""
    tamper(log, update(credentials).where(credentials.c.owner == owner).values(**columns))


def row_of(log: AccountStore, owner: str = ANN) -> Any:
    """Return the row of an owner's only key."""
    with log.engine.connect() as connection:
        return connection.execute(select(credentials).where(credentials.c.owner == owner)).one()


def problem_of(log: AccountStore) -> str:
    """Return the one problem that there is, which is Ann's."""
    (finding,) = log.audit.verify()
    assert finding.owner == ANN
    return finding.problem


@pytest.mark.parametrize("columns", FORGED, ids=str)
def test_forged_record_shows(log: AccountStore, columns: dict[str, Any]) -> None:
    """Each change of a record past the log is found, until it is undone."""
    before = row_of(log)
    forge(log, **columns)
    findings = log.audit.verify()
    assert findings
    assert {finding.owner for finding in findings} == {ANN}
    forge(log, **{name: getattr(before, name) for name in columns})
    assert log.audit.verify() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda log, id: log.change(id, [ANN], {"label": "new"}, event_of("change")),
        lambda log, id: log.put(make_record(label="new"), event_of()),
        lambda log, id: log.delete(id, [ANN], event_of("clear")),
        lambda log, id: log.clear(ANN, ["openai"], event_of("clear")),
        lambda log, id: log.purge_expired(utcnow(), event_of("purge")),
        lambda log, id: promote(
            log, [make_record(label="new")], replace=True, event=event_of("promote")
        ),
    ],
)
def test_no_change_hides_a_forged_record(
    log: AccountStore, change: Callable[[AccountStore, str], object]
) -> None:
    """A record that was made expired past the log is found also when it is changed or deleted since."""
    forge(log, expires_at=1000)
    (record,) = log.find([ANN])
    change(log, record.id)
    (finding,) = log.audit.verify()
    problem = f"the key {record.id} had been changed before it, and no row says so"
    assert finding == Finding(ANN, 3, problem)


def test_what_changes_without_an_event(log: AccountStore) -> None:
    """A verdict, a use and sealing again, which is in the chain of the system, are no findings."""
    (record,) = log.find([ANN])
    found = RecordedVerdict(Verdict.INVALID, utcnow(), record.version)
    assert log.record_verdict(record.id, record.version, found)
    day = utcnow().date().isoformat()
    used = Use(ANN, "openai", record.id, day, "used", uses=3, last_used_at=LATER)
    log.usage.add(used)
    rotating = open_accounts(log.engine.url, NEW)
    assert list(rotating.seals.rotate(NEW.renewed, AuditEvent("cli", "rotate")))[-1].done == 2
    for keyring in (
        NEW,
        Keyring("4fc82b26aecb47d2868c4efbe3581732a3e7cbcc6c2efb32062c08170a05eeb8"),
    ):
        assert open_accounts(log.engine.url, keyring).audit.verify() == []
    rotating.change(record.id, [ANN], {"label": "after it"}, event_of("change"))
    assert rotating.audit.verify() == []


def test_other_ciphertext_shows(log: AccountStore) -> None:
    """A key that was replaced and is put back past the log is found, also after other changes."""
    old = row_of(log)
    (record,) = log.find([ANN])
    fresh = event_of(fingerprint=fingerprint_of(log, "sk-2"))
    log.put(make_record(api_key="sk-2"), fresh)
    assert log.audit.verify() == []
    forge(log, ciphertext=old.ciphertext)
    problem = f"the key {record.id} holds another secret than its rows say"
    assert problem_of(log) == problem
    log.change(record.id, [ANN], {"label": "new"}, event_of("change"))
    assert problem_of(log) == problem
    log.put(make_record(api_key="sk-2"), fresh)
    assert log.audit.verify() == []


def test_ciphertext_of_another_shows(log: AccountStore) -> None:
    """A ciphertext that does not open in its place is found."""
    forge(log, ciphertext=row_of(log, BEN).ciphertext)
    assert problem_of(log).endswith("does not open")


def test_fingerprints_are_keyed(sqlite_url: str) -> None:
    """One key has one fingerprint in one log and another in another, so no key can be guessed by it."""
    first, second = open_accounts(sqlite_url, KEYRING), open_accounts(sqlite_url, KEYRING)
    assert fingerprint_of(first) == fingerprint_of(second) != fingerprint_of(first, "sk-2")
    assert fingerprint_of(open_accounts("sqlite://", KEYRING)) != fingerprint_of(first)
    first.engine.dispose()
    second.engine.dispose()
