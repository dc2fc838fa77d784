"""Begin the audit log anew, where it cannot be made whole again or its secret is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text

from .audit_chain import NOTHING, Link, Subject, head_seal, make_row
from .base import AuditEvent
from .tables import audit, audit_heads, credentials

#: Where a restart itself is noted, and what concerns no single owner.
_SYSTEM = "system"
#: Rows that are written at a time.
_BATCH = 1000
# Every change of a key holds a row of this table, so none comes between.
_HOLD_ALL = text("LOCK TABLE byok_audit_heads IN EXCLUSIVE MODE")
_KEYS = select(
    credentials.c.owner,
    credentials.c.provider,
    credentials.c.slot,
    credentials.c.id,
    credentials.c.version,
).execution_options(yield_per=_BATCH)


@dataclass(frozen=True, slots=True)
class Restarted:
    """How many rows were deleted, and how many keys the new log begins with."""

    deleted: int
    keys: int


def hold_all(connection: Connection) -> None:
    """Let nobody change a key to the end of the transaction; on SQLite nobody can."""
    if connection.dialect.name == "postgresql":
        connection.execute(_HOLD_ALL)


def restart(connection: Connection, secret: bytes, event: AuditEvent) -> Restarted:
    """Delete every chain, and begin new ones with a row for each key as it is."""
    deleted = connection.execute(select(func.count()).select_from(audit)).scalar_one()
    connection.execute(delete(audit))
    connection.execute(delete(audit_heads))
    rows: list[dict[str, Any]] = []
    keys = -1  # the first row is about none
    for owner, subjects in groupby(_subjects(connection), key=lambda found: found[0]):
        link = Link(owner)
        for _, subject, version in subjects:
            rows.append(row := make_row(secret, link, event, subject, version))
            link = Link(owner, link.number + 1, row["hash"])
            keys += 1
        connection.execute(insert(audit_heads), _head(secret, row))
        if len(rows) >= _BATCH:
            connection.execute(insert(audit), rows)
            rows = []
    if rows:
        connection.execute(insert(audit), rows)
    return Restarted(deleted, keys)


def _subjects(connection: Connection) -> Iterator[tuple[str, Subject, int | None]]:
    """Yield what gets a row: the restart itself, the system's keys, and everybody else's."""
    yield _SYSTEM, NOTHING, None
    owner, id = credentials.c.owner, credentials.c.id
    for query in (
        _KEYS.where(owner == _SYSTEM).order_by(id),
        _KEYS.where(owner != _SYSTEM).order_by(owner, id),
    ):
        for row in connection.execute(query):
            yield row.owner, row, row.version


def _head(secret: bytes, last: dict[str, Any]) -> dict[str, Any]:
    owner, number, hash = last["owner"], last["number"], last["hash"]
    seal = head_seal(secret, owner, number, hash)
    return {"owner": owner, "number": number, "hash": hash, "seal": seal}
