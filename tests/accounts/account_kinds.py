"""What the tests of the account store share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, Executable, event

from flask_byok.accounts.changes import in_slot
from flask_byok.accounts.promotion import promotion_rule
from flask_byok.accounts.store import AuditEvent, main_slot
from flask_byok.accounts.store.keys import AccountStore, Seat
from flask_byok.model.credential import CredentialRecord, Secret, new_version, utcnow
from flask_byok.sealing.keyring import Context, Keyring

ANN, BEN, TEAM, SYSTEM = "user:ann", "user:ben", "team:red", "system"
KEYRING = Keyring("f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e")


def event_of(action: str = "set", **options: Any) -> AuditEvent:
    """Make an event of Ann's."""
    return AuditEvent(ANN, action, **options)


def make_record(
    owner: str = ANN,
    provider: str = "openai",
    api_key: str = "sk-1",
    *,
    slot: str = "",
    keyring: Keyring = KEYRING,
    **fields: Any,
) -> CredentialRecord:
    """Make a record as the service would store it."""
    now = utcnow()
    context = Context("account", owner, provider, slot)
    return CredentialRecord(
        provider=provider,
        owner=owner,
        ciphertext=keyring.seal_fields(context, {"api_key": Secret(api_key)}, None),
        hint="sk-…1234",
        version=new_version(),
        created_at=now,
        updated_at=now,
        slot=slot,
        **fields,
    )


def open_key(record: CredentialRecord, keyring: Keyring = KEYRING) -> str:
    """Return the key in a record."""
    fields, _ = keyring.open_record(record.owner, record)
    return fields["api_key"].reveal()


def in_main_slot(at_most: int | None) -> Seat:
    """Return what seats records as the wing does."""
    return lambda record, taken: in_slot(KEYRING, record, main_slot(taken, at_most))


def promote(
    store: AccountStore,
    records: Sequence[CredentialRecord],
    *,
    replace: bool,
    event: AuditEvent,
    at_most: int | None = None,
    check: Callable[[CredentialRecord], object] = str,
    **options: Any,
) -> tuple[list[str], list[str]]:
    """Promote records as the wing does; return the providers that are the owner's, and those that stayed out."""
    seat = in_main_slot(at_most)
    decide = promotion_rule(KEYRING, replace=replace, confirm=check)
    ended = {record.version: () for record in records} | options.pop("ended", {})
    outcomes = store.promote(records, event, seat=seat, decide=decide, ended=ended, **options)
    taken = [name for name, outcome in outcomes.items() if outcome in ("promoted", "known")]
    return taken, [name for name, outcome in outcomes.items() if outcome == "kept"]


def fingerprint_of(store: AccountStore, api_key: str = "sk-1") -> str:
    """Return what the log calls a key."""
    return store.canary.fingerprint({"api_key": Secret(api_key)})


def tamper(store: AccountStore, *statements: Executable) -> None:
    """Change the database past the store, in one transaction."""
    with store.engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def count_statements(engine: Engine, call: Callable[[], object]) -> int:
    """Return how many statements a call sends; others write meanwhile what has been counted."""
    sent: list[str] = []
    caller = threading.get_ident()

    def note(_c: object, _u: object, statement: str, *_: object) -> None:
        if threading.get_ident() == caller:
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    call()
    event.remove(engine, "before_cursor_execute", note)
    return len(sent)
