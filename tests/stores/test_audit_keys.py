"""The audit log and the keys: neither can be put back without the other, and a log can be begun anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert, select, text, update

from flask_byok.accounts.rotation import rotate
from flask_byok.accounts.store import audit as audit_module
from flask_byok.accounts.store.audit import AuditEvent, Head
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.errors import ConfigurationError, StoreError
from flask_byok.model.credential import RecordedVerdict, Verdict, utcnow
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.tables import audit, audit_heads, canaries, credentials

from .account_kinds import ANN, BEN, KEYRING, event_of, make_record

RESTART = AuditEvent("cli", "restart")
NEW = Keyring("22" * 32)
OF_ANN = audit.c.owner == ANN


@pytest.fixture
def store(database_url: str) -> Iterator[AccountStore]:
    """Make a store with two keys of Ann's, of which one was changed, and one of Ben's."""
    store = AccountStore(database_url, KEYRING)
    store.create(make_record(), event_of())
    store.put(make_record(api_key="sk-2"), event_of())
    store.create(make_record(provider="groq"), event_of())
    store.create(make_record(BEN), AuditEvent(BEN, "set"))
    yield store
    store.engine.dispose()


def tamper(store: AccountStore, *statements: Any) -> None:
    """Change the database past the store."""
    with store.engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def keys_of(store: AccountStore, owner: str = ANN) -> dict[str, Any]:
    """Return an owner's records by provider."""
    return {record.provider: record for record in store.find([owner])}


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


def add_key(store: AccountStore) -> None:
    """Add a key of Ann's."""
    store.create(make_record(provider="xai"), event_of())


def delete_key(store: AccountStore) -> None:
    """Delete a key of Ann's."""
    store.clear(ANN, ["groq"], event_of("clear"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (replace_key, "has the version 3, and its last row says 2"),
        (add_key, "there is no row about the key"),
        (delete_key, "is gone, and no row says so"),
    ],
)
def test_old_head_put_back_shows(
    store: AccountStore, change: Callable[[AccountStore], None], problem: str
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
    """A deleted key that somebody puts back past the log is found, whichever way it was deleted."""
    with store.engine.connect() as connection:
        query = select(credentials).where(credentials.c.owner == ANN)
        rows = [dict(row._mapping) for row in connection.execute(query)]
    store.clear(ANN, ["groq"], event_of("clear"))
    store.delete(keys_of(store)["openai"].id, [ANN], event_of("clear"))
    assert store.audit.verify() == []
    tamper(store, insert(credentials).values(rows))
    findings = store.audit.verify()
    assert [found.owner for found in findings] == [ANN, ANN]
    assert all("its last row says that it was deleted" in found.problem for found in findings)


def test_keys_changed_past_the_log_show(store: AccountStore) -> None:
    """A key that is moved to somebody else, or made older, is found at both ends."""
    move = update(credentials).where(credentials.c.provider == "groq").values(owner=BEN)
    older = update(credentials).where(credentials.c.owner == BEN).values(version=7)
    tamper(store, move)
    assert {found.owner for found in store.audit.verify()} == {ANN, BEN}
    tamper(store, older)
    assert len(store.audit.verify(BEN)) == 2


def test_keys_of_a_chain_without_rows_show(store: AccountStore) -> None:
    """A head that was sealed before there was any row explains no key."""
    store.audit.change("user:new", lambda connection, chain: None)
    assert store.audit.verify() == []
    (seal,) = [seal_of(store, "user:new")]
    store.create(make_record("user:new"), event_of())
    put_head_back(store, Head("user:new", 0, ""), seal)
    (finding,) = store.audit.verify()
    assert "there is no row about the key" in finding.problem


def test_what_raises_no_version_is_no_finding(store: AccountStore) -> None:
    """Verdicts, uses and sealing anew leave keys and log in agreement."""
    record = keys_of(store)["openai"]
    verdict = RecordedVerdict(Verdict.VALID, utcnow(), record.version)
    assert store.record_verdict(record.id, record.version, verdict, event_of("validate"))
    assert store.record_verdict(record.id, record.version, verdict)
    assert not store.record_verdict(record.id, "1", verdict, event_of("validate"))
    store.audit.note(ANN, event_of("reveal"), record)
    rotating = AccountStore(store.engine.url, Keyring("11" * 32, ["00" * 32]))
    assert sum(1 for _ in rotate(rotating, rotating._keyring, AuditEvent("cli", "rotate")))
    assert rotating.audit.verify() == []
    rotating.engine.dispose()


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_changes_while_it_verifies(
    store: AccountStore, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Keys that are changed after their chains were read are explained by the rows that came since."""
    monkeypatch.setattr(audit_module, "_PAGE", page)
    told: list[tuple[int, ...]] = []

    def change(*looked_at: int) -> None:
        if looked_at in told or len(told) > 20:
            return  # else it would never be done
        told.append(looked_at)
        store.put(make_record(api_key="sk-x"), event_of())
        store.clear(ANN, ["groq"], event_of("clear"))
        store.create(make_record(provider="groq"), event_of())
        store.put(make_record(BEN), event_of())

    assert store.audit.verify(report=change) == []
    assert told


def test_verifies_beside_writers(store: AccountStore) -> None:
    """However many changes go on meanwhile, nothing is found that is not there."""
    over = threading.Event()

    def write() -> None:
        mine = AccountStore(store.engine.url, KEYRING)
        while not over.is_set():
            mine.put(make_record(), event_of())
            mine.clear(ANN, ["groq"], event_of("clear"))
            mine.put(make_record(provider="groq"), event_of())
        mine.engine.dispose()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert [store.audit.verify() for _ in range(30)] == [[]] * 30
    finally:
        over.set()
        writer.join()


def test_verifies_beside_first_keys(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners who have had a chain without rows, and get their first key meanwhile, are followed once."""
    for owner in ("user:yan", "user:zoe"):
        store.audit.change(owner, lambda connection, chain: None)
    look = store.audit._rowless

    def look_and_go_on(*asked: Any) -> Any:
        found = look(*asked)
        store.create(make_record("user:yan"), event_of())
        return found

    monkeypatch.setattr(store.audit, "_rowless", look_and_go_on)
    assert store.audit.verify() == []


def test_many_owners(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are compared in batches that end anywhere, and none is left out."""
    for number in range(7):
        store.create(make_record(f"user:{number}"), event_of())
        store.audit.change(f"user:{number}x", lambda connection, chain: None)
    for size in (1, 2, 3, 200):
        monkeypatch.setattr(audit_module, "_BATCH", size)
        assert store.audit.verify() == []
    tamper(store, update(credentials).values(version=9))
    for size in (1, 2, 3, 200):
        monkeypatch.setattr(audit_module, "_BATCH", size)
        assert len(store.audit.verify()) == 10


# heads that are kept elsewhere


def test_heads(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are every chain's last rows, whatever the size of pages, and the log contains them ever after."""
    heads = list(store.audit.heads())
    assert [(head.owner, head.number) for head in heads] == [(ANN, 3), (BEN, 1)]
    assert list(store.audit.heads(BEN)) == heads[1:]
    replace_key(store)
    for size in (1, 2):
        monkeypatch.setattr(audit_module, "_PAGE", size)
        monkeypatch.setattr(audit_module, "_BATCH", size)
        assert len(list(store.audit.heads())) == 2
        assert list(store.audit.missing(heads)) == []


def test_dropped_reveal_is_missed(store: AccountStore) -> None:
    """What nothing in the database shows, heads that were kept elsewhere do."""
    (before,), seal = store.audit.heads(ANN), seal_of(store)
    store.audit.note(ANN, event_of("reveal"))
    kept = list(store.audit.heads())
    put_head_back(store, before, seal)
    assert store.audit.verify() == []
    (finding,) = store.audit.missing(kept)
    assert (finding.owner, finding.number) == (ANN, 4)
    store.audit.note(ANN, event_of("validate"))
    assert [found.owner for found in store.audit.missing(kept)] == [ANN], "another row in its place"


# what somebody puts there


@pytest.mark.parametrize(
    ("table", "column"), [(audit, "hash"), (audit, "previous"), (audit_heads, "seal")]
)
def test_odd_text_is_a_finding(store: AccountStore, table: Any, column: str) -> None:
    """Text that no hash is made of is found, and keeps nobody from changing keys."""
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
        "UPDATE byok_audit SET hash = x'00'",
        "UPDATE byok_audit SET number = 'x' WHERE number = 2",
        "UPDATE byok_audit SET number = 'x' || number",
        "UPDATE byok_audit SET number = number + 0.5",
        "UPDATE byok_audit SET at = 'x', version = 'x', previous = x'00'",
        "UPDATE byok_audit SET credential_id = x'00'",
        "UPDATE byok_audit_heads SET number = 'x'",
        "UPDATE byok_audit_heads SET number = 9223372036854775807",
        "UPDATE byok_audit_heads SET number = 2.5",
        "UPDATE byok_audit_heads SET seal = x'00'",
        "UPDATE byok_credentials SET version = 'x'",
    ],
)
def test_odd_types_are_findings(sqlite_url: str, odd: str) -> None:
    """What SQLite takes although it is not of the column's type is found, before and after a change."""
    store = AccountStore(sqlite_url, KEYRING)
    for provider in ("openai", "groq"):
        store.create(make_record(provider=provider), event_of())
    tamper(store, text(odd))
    assert store.audit.verify()
    store.audit.note(ANN, event_of("reveal"))
    assert store.audit.verify()
    assert store.audit.entries(ANN)
    store.engine.dispose()


# a new log


def break_log(connection: Connection) -> None:
    """Change a row."""
    connection.execute(update(audit).values(actor="eve"))


def empty_log(connection: Connection) -> None:
    """Delete the log, as an operator might who wants it shorter."""
    connection.execute(delete(audit))
    connection.execute(delete(audit_heads))


def lose_secret(connection: Connection) -> None:
    """Delete the log's secret."""
    connection.execute(delete(canaries))


@pytest.mark.parametrize("harm", [break_log, empty_log, lose_secret])
def test_restart(store: AccountStore, harm: Callable[[Connection], None]) -> None:
    """Whatever became of the log, a new one is whole, says of each key that it is there, and goes on."""
    with store.engine.begin() as connection:
        harm(connection)
    fresh = AccountStore(store.engine.url, KEYRING)
    assert fresh.audit.restart(RESTART).keys == 3
    assert fresh.audit.verify() == []
    restarts = {(e.owner, e.number, e.provider, e.event.actor) for e in fresh.audit.entries()}
    assert restarts == {
        ("system", 1, "", "cli"),
        (ANN, 1, "openai", "cli"),
        (ANN, 2, "groq", "cli"),
        (BEN, 1, "openai", "cli"),
    }
    replace_key(fresh)
    add_key(fresh)
    delete_key(fresh)
    assert fresh.audit.verify() == []
    fresh.engine.dispose()


def test_restart_with_another_encryption_key(store: AccountStore) -> None:
    """Where the encryption key is lost, another one begins a new log, and the lost one is the wrong one."""
    fresh = AccountStore(store.engine.url, NEW)
    with pytest.raises(ConfigurationError, match="flask byok audit restart"):
        fresh.canary.secret()
    assert fresh.audit.restart(RESTART).deleted == 4
    fresh.create(make_record("system", keyring=NEW), event_of())
    assert AccountStore(store.engine.url, NEW).audit.verify() == []
    with pytest.raises(ConfigurationError):
        AccountStore(store.engine.url, KEYRING).canary.secret()
    fresh.engine.dispose()


def test_lost_secret_names_the_way_out(store: AccountStore) -> None:
    """A secret that is gone is refused with the command that begins a new log."""
    with store.engine.begin() as connection:
        lose_secret(connection)
    with pytest.raises(ConfigurationError, match="flask byok audit restart"):
        AccountStore(store.engine.url, KEYRING).canary.secret()


def test_workers_go_on_after_a_restart(store: AccountStore) -> None:
    """A worker that knows the old secret finds the new one, for old chains, new ones and such as have gone."""
    other = AccountStore(store.engine.url, KEYRING)
    other.audit.restart(RESTART)
    replace_key(store)
    store.create(make_record("user:new"), event_of())
    store.audit.note("system", event_of("rotate"))
    assert other.audit.verify() == store.audit.verify() == []
    other.engine.dispose()


def test_restarts_beside_writers(store: AccountStore) -> None:
    """Changes that go on during a restart are either in the old log or in the new one."""
    over = threading.Event()
    unexpected: list[BaseException] = []

    def write(number: int) -> None:
        mine, count = AccountStore(store.engine.url, KEYRING), 0
        while not over.is_set():
            try:
                mine.put(make_record(), event_of())
                mine.create(make_record(f"user:{number}-{count}"), event_of())
                count += 1
            except StoreError:
                pass  # it had to wait for too long
            except BaseException as error:
                unexpected.append(error)
                raise
        mine.engine.dispose()

    writers = [threading.Thread(target=write, args=[number]) for number in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(8):
            store.audit.restart(RESTART)
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert unexpected == []
    assert store.audit.verify() == []


def test_restart_in_batches(store: AccountStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are written a few at a time make the same chains."""
    monkeypatch.setattr("flask_byok.accounts.store.audit_restart._BATCH", 1)
    store.create(make_record("system"), event_of())
    assert store.audit.restart(RESTART).keys == 4
    assert store.audit.verify() == []
    assert store.audit.count("system") == 2
