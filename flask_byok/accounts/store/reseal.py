"""Seal accounts' keys anew with the current encryption key, while they are read and changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Text,
    bindparam,
    cast,
    func,
    select,
    update,
)

from ...keys.session_store import AuditEvent
from ...sealing.keyring import Keyring
from ...storage.database import Database
from ...storage.deadline import LONG_LIMIT
from ...storage.sql import HELD
from ...storage.tables import credentials
from .audit import AuditLog
from .audit_chain import Chain
from .canary import NAME
from .rows import key_columns

_c = credentials.c

_BY_KEY_ID = select(_c.key_id, func.count().label("count")).group_by(_c.key_id)
_OTHERS = ~_c.ciphertext.startswith(bindparam("prefix"))
_DUE = select(func.count()).select_from(credentials).where(_OTHERS)
_READ = (
    select(_c.id, _c.owner, _c.provider, _c.slot, _c.ciphertext, _c.version)
    .where(_c.id > bindparam("after"), _OTHERS)
    .order_by(_c.id)
    .limit(bindparam("batch"))
)
#: Leaves what somebody else is changing, so nobody is waited for while rows are held.
_HOLD = (
    select(_c.id)
    .where(_c.id.in_(bindparam("ids", expanding=True)))
    .with_for_update(skip_locked=True)
)
#: Unless the key was replaced since it was read: its version has changed then.
_WRITE = (
    update(credentials)
    .where(_c.id == bindparam("of_id"), _c.version == bindparam("of_version"))
    .values(ciphertext=bindparam("sealed"), key_id=bindparam("by"))
)


def _column(name: str, type: Any) -> Any:
    # One text, since drivers take long to write an array: none of the values has a space.
    return cast(func.string_to_array(bindparam(name, type_=Text), " "), ARRAY(type))


_new = (
    func.unnest(_column("ids", Text), _column("versions", BigInteger), _column("sealed", Text))
    .table_valued("id", "version", "ciphertext", name="new")
    .render_derived()
)
_held = (
    select(_c.id, _new.c.ciphertext)
    .where(_c.id == _new.c.id, _c.version == _new.c.version)
    .with_for_update(skip_locked=True, of=credentials)
    .cte("held")
)
#: Both for a whole batch on PostgreSQL, which is far faster than row by row.
_WRITE_ALL = (
    update(credentials)
    .where(_c.id == _held.c.id)
    .values(ciphertext=_held.c.ciphertext, key_id=bindparam("by"))
)


class SealedKey(Protocol):
    """What is needed to open a stored key."""

    @property
    def owner(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def slot(self) -> str: ...
    @property
    def ciphertext(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Resealed:
    """What became of one batch; ``after`` is where the next one starts, None at the end.

    ``missed`` were being changed by somebody else, or have been since they were read.
    """

    done: int
    unreadable: int
    missed: int
    after: str | None


class AccountSeals:
    """Tells which encryption key sealed what, and seals anew in batches.

    A batch is read, sealed without holding anything, and written in one short transaction, so
    nobody waits for the cryptography.
    """

    def __init__(self, database: Database, audit: AuditLog, keyring: Keyring) -> None:
        self._database = database
        self._audit = audit
        self._keyring = keyring

    def count_by_key_id(self) -> dict[str, int]:
        """Return how many ciphertexts each encryption key has sealed, the audit log's secret included."""
        counts = Counter({row.key_id: row.count for row in self._all(_BY_KEY_ID, {})})
        held = self._all(HELD, {"called": NAME})
        counts.update(key_columns(row.sealed)["key_id"] for row in held)
        return dict(counts)

    def count_due(self) -> int:
        """Return how many keys the current encryption key and cipher have not sealed."""
        return int(self._all(_DUE, {"prefix": self._keyring.seal_prefix})[0][0])

    def renew(
        self,
        seal: Callable[[SealedKey], str | None],
        event: AuditEvent,
        *,
        after: str | None = None,
        limit: int = 500,
    ) -> Resealed:
        """Seal one batch anew of what is due; versions and verdicts stay.

        The event goes into the chain of ``system``, one for each batch that changed something.

        :param seal: returns the new ciphertext, None where the old one does not open.
        """
        values = {"after": after or "", "prefix": self._keyring.seal_prefix, "batch": limit}
        found = self._all(_READ, values)
        sealed = [(row, text) for row in found if (text := seal(row)) is not None]
        done = self._write(sealed, event) if sealed else 0
        last = found[-1].id if len(found) == limit else None
        return Resealed(done, len(found) - len(sealed), len(sealed) - done, last)

    def _write(self, sealed: Sequence[tuple[Any, str]], event: AuditEvent) -> int:
        def work(connection: Connection, chain: Chain) -> int:
            done = _update(connection, sealed, self._keyring.key_ids[0])
            if done:
                chain.append(event)
            return done

        return self._audit.change("system", work, limit=LONG_LIMIT)

    def _all(self, query: Any, values: dict[str, Any]) -> Sequence[Any]:
        def read() -> Sequence[Any]:
            with self._database.transactions.single() as connection:
                return connection.execute(query, values).all()

        return self._database.call(read, limit=LONG_LIMIT)


def _update(connection: Connection, sealed: Sequence[tuple[Any, str]], key_id: str) -> int:
    """Write new ciphertexts and return how many of the rows were still as read."""
    if connection.dialect.name == "postgresql":
        columns = {
            "ids": " ".join(row.id for row, _ in sealed),
            "versions": " ".join(str(row.version) for row, _ in sealed),
            "sealed": " ".join(text for _, text in sealed),
        }
        return connection.execute(_WRITE_ALL, {**columns, "by": key_id}).rowcount
    held = set(connection.execute(_HOLD, {"ids": [row.id for row, _ in sealed]}).scalars())
    rows = [
        {"of_id": row.id, "of_version": row.version, "sealed": text, "by": key_id}
        for row, text in sealed
        if row.id in held
    ]
    return connection.execute(_WRITE, rows).rowcount if rows else 0
