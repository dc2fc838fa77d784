"""The steps that changes of accounts' keys are made of, within a transaction that holds the chain."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from sqlalchemy import Connection

from ...errors import (
    InvalidFieldError,
    KeyNotFoundError,
    UnreadableCredentialError,
    VersionConflictError,
)
from ...keys.session_store import AuditEvent
from ...model.credential import CredentialRecord, utcnow
from ...sealing.keyring import Keyring
from ...sealing.records import open_record
from . import statements
from .audit_chain import Chain, to_milliseconds
from .rows import changed_values, new_values, to_record
from .statements import Owners

#: Is shown a record in the slot that it goes to, and raises ``InvalidFieldError`` where it may not be there.
Check = Callable[[CredentialRecord], object]

#: What becomes of a record that is to be taken over: it is the owner's, now or since before; a key of the owner's own
#: stays; or it was cleared since, and nothing is there.
Taken = Literal["promoted", "kept", "gone"]


def new_id() -> str:
    """Return an id that grows with time: 48 bits of milliseconds and 80 random ones, in hex digits."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def place(connection: Connection, record: CredentialRecord) -> Any:
    """Return the row that is in a record's place, None where there is none."""
    values = {"of_owner": record.owner, "of_provider": record.provider, "of_slot": record.slot}
    return connection.execute(statements.PLACE, values).one_or_none()


def slots(connection: Connection, record: CredentialRecord) -> set[str]:
    """Return the slots that a record's owner has for its provider."""
    values = {"of_owner": record.owner, "of_provider": record.provider}
    return set(connection.execute(statements.SLOTS, values).scalars())


def require(connection: Connection, id: str, owners: Owners, if_version: int | None) -> Any:
    """Return the row of a record that is theirs and in this version, or raise."""
    row = connection.execute(statements.by_id(id, owners), {}).one_or_none()
    if row is None:
        raise KeyNotFoundError
    if if_version is not None and row.version != if_version:
        raise VersionConflictError(provider=row.provider)
    return row


def written(
    connection: Connection, chain: Chain, id: str, was: Any, event: AuditEvent
) -> CredentialRecord:
    """Return what was just written, and log it."""
    row = connection.execute(statements.by_id(id, None), {}).one()
    chain.change(event, was, row)
    return to_record(row)


def add(
    connection: Connection, chain: Chain, record: CredentialRecord, event: AuditEvent
) -> CredentialRecord:
    """Store a record in a new row."""
    id = new_id()
    connection.execute(statements.ADD, {"id": id, **new_values(record)})
    return written(connection, chain, id, None, event)


def replace(
    connection: Connection, chain: Chain, was: Any, record: CredentialRecord, event: AuditEvent
) -> CredentialRecord:
    """Store a record in the row of another."""
    names = ("ciphertext", "hint", "label", "description", "active", "expires_at", "validity")
    wanted = {name: getattr(record, name) for name in names} | {"set_at": record.saved_at}
    return set_columns(connection, chain, was, changed_values(wanted), event)


def put(
    connection: Connection, chain: Chain, record: CredentialRecord, event: AuditEvent
) -> CredentialRecord:
    """Store a record in the row of what is in its place, or in a new one."""
    found = place(connection, record)
    if found is None:
        return add(connection, chain, record, event)
    return replace(connection, chain, found, record, event)


def set_columns(
    connection: Connection,
    chain: Chain,
    was: Any,
    values: Mapping[str, Any],
    event: AuditEvent,
) -> CredentialRecord:
    """Change these columns of a row."""
    connection.execute(statements.change(values), {"of_id": was.id, **new_parameters(values)})
    return written(connection, chain, was.id, was, event)


def new_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Name the parameters of new values: by a column's own name SQLAlchemy takes them for its own."""
    return {f"new_{name}": value for name, value in values.items()}


def over(connection: Connection, owner: str, versions: Collection[str]) -> set[str]:
    """Return those of these versions of sessions' records that are over."""
    values = {"of_owner": owner, "origins": list(versions)}
    return set(connection.execute(statements.OVER, values).scalars())


def end(connection: Connection, owner: str, versions: Collection[str]) -> set[str]:
    """Note that these versions of sessions' records are over, and return those that were not before.

    Whoever calls it holds the owner's chain, so nobody else notes the same meanwhile.
    """
    fresh = set(versions) - over(connection, owner, versions) if versions else set()
    now = to_milliseconds(utcnow())
    for version in fresh:
        connection.execute(statements.END, {"of_owner": owner, "of_origin": version, "at": now})
    return fresh


def promote(
    connection: Connection,
    chain: Chain,
    keyring: Keyring,
    record: CredentialRecord,
    overwrite: bool,
    event: AuditEvent,
    check: Check | None,
) -> Taken:
    """Take one record over, unless it is over or has to stay out, and say what became of it."""
    there = place(connection, record)
    if over(connection, record.owner, [record.version]):
        return _taken_before(keyring, record, there)
    if not overwrite and there is not None:
        return "kept"
    try:
        if check is not None:
            check(record)
    except InvalidFieldError:
        return "kept"
    end(connection, record.owner, [record.version])
    put(connection, chain, record, event)
    return "promoted"


def _taken_before(keyring: Keyring, record: CredentialRecord, there: Any) -> Taken:
    """Say what became of a record that is over: it was promoted, or something else was kept, or it was cleared."""
    if there is None:
        return "gone"
    both = (record, to_record(there))
    try:
        mine, theirs = (open_record(keyring, "account", one.owner, one) for one in both)
    except UnreadableCredentialError:
        return "kept"
    return "promoted" if mine == theirs else "kept"


def delete(
    connection: Connection,
    chain: Chain,
    query: Any,
    values: Mapping[str, Any],
    event: AuditEvent,
) -> list[CredentialRecord]:
    """Delete what a query finds, and log each."""
    gone = connection.execute(query, values).all()
    connection.execute(statements.DELETE, {"ids": [row.id for row in gone]})
    for row in gone:
        chain.change(event, row, None)
    return [to_record(row) for row in gone]
