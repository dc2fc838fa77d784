"""Begin the audit log anew, where it cannot be made whole again or its secret is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text

from ...keys.session_store import AuditEvent
from ...storage.tables import audit, audit_heads, credentials
from .audit_chain import NOTHING, Link, make_row
from .audit_hashes import RECORDED, head_seal

#: Where a restart itself is noted, and what concerns no single owner.
_SYSTEM = "system"
#: Rows that are written at a time.
_BATCH = 1000
# Every change of a key holds a row of this table, so none comes between.
_HOLD_ALL = text("LOCK TABLE byok_audit_heads IN EXCLUSIVE MODE")
_KEYS = select(*(credentials.c[name] for name in (*RECORDED, "ciphertext"))).execution_options(
    yield_per=_BATCH
)


@dataclass(frozen=True, slots=True)
class Restarted:
    """How many rows were deleted, and how many keys the new log begins with."""

    deleted: int
    keys: int


def hold_all(connection: Connection) -> None:
    """Let nobody change a key to the end of the transaction; on SQLite nobody can."""
    if connection.dialect.name == "postgresql":
        connection.execute(_HOLD_ALL)


def restart(
    connection: Connection,
    secret: bytes,
    event: AuditEvent,
    fingerprint: Callable[[bytes, Any], str | None],
) -> Restarted:
    """Delete every chain, and begin new ones with a row for each key as it is.

    :param fingerprint: returns that of the key in a row under this secret, None where it does not open.
    """
    deleted = connection.execute(select(func.count()).select_from(audit)).scalar_one()
    connection.execute(delete(audit))
    connection.execute(delete(audit_heads))
    rows: list[dict[str, Any]] = []
    keys = -1  # the first row is about none
    for owner, found in groupby(_subjects(connection), key=lambda found: found[0]):
        link = Link(owner)
        for _, key in found:
            if key is None:
                row = make_row(secret, link, event, NOTHING)
            else:
                told = replace(event, fingerprint=fingerprint(secret, key))
                row = make_row(secret, link, told, key, became=key)
            rows.append(row)
            link = Link(owner, link.number + 1, row["hash"])
            keys += 1
        connection.execute(insert(audit_heads), _head(secret, row))
        if len(rows) >= _BATCH:
            connection.execute(insert(audit), rows)
            rows = []
    if rows:
        connection.execute(insert(audit), rows)
    return Restarted(deleted, keys)


def _subjects(connection: Connection) -> Iterator[tuple[str, Any]]:
    """Yield what gets a row, by owner: the restart itself (None), the system's keys, and everybody else's."""
    yield _SYSTEM, None
    owner, id = credentials.c.owner, credentials.c.id
    for query in (
        _KEYS.where(owner == _SYSTEM).order_by(id),
        _KEYS.where(owner != _SYSTEM).order_by(owner, id),
    ):
        for row in connection.execute(query):
            yield row.owner, row


def _head(secret: bytes, last: dict[str, Any]) -> dict[str, Any]:
    owner, number, hash = last["owner"], last["number"], last["hash"]
    seal = head_seal(secret, owner, number, hash)
    return {"owner": owner, "number": number, "hash": hash, "seal": seal}
