"""Write the audit log: one chain of rows for each owner, in the transaction of the change itself.

The hash of a row covers the row and the hash before it, under a secret that the database holds sealed
only. The head of a chain has the number and hash of its last row, the checkpoint before its first
one, and a seal over these, so rows missing at either end show as well. A row about a change has the
key's new version and hashes of its record before and after the change, so keys and chain have to
agree: a change past the log shows, even after a later change. Without the encryption key no
row and no head can be forged, even by a writer of the database.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, delete, func, insert, select, update

from ...errors import ConfigurationError
from ...model.credential import to_milliseconds, utcnow
from ...storage.sql import Database, insert_into, keep_text
from ...storage.tables import audit, audit_heads, canaries, credentials
from . import AuditEvent, NoRecord, Subject

if TYPE_CHECKING:
    from ..wing import AuditSecret

_ROW_IS_GONE = (
    "The row {name!r} in byok_canary is gone, without which the audit log cannot be verified or written. "
    "Restore that table from a backup, or set BYOK_DATABASE_URL to a new database."
)

#: The version of a key that is deleted.
GONE = 0
#: Columns of a record that change only with a row in the log. The verdict, the counts of use and the
#: seal change without one.
RECORDED = (
    *("id", "owner", "tier", "provider", "slot", "version", "hint", "label", "description"),
    *("active", "created_at", "updated_at", "expires_at", "set_at"),
)
_HASHED = tuple(column.name for column in audit.columns if column.name != "hash")

_h, _c = audit_heads.c, credentials.c
_NEW_HEAD = {"number": 0, "hash": "", "checkpoint": 0, "checkpoint_hash": "", "seal": ""}

T = TypeVar("T")


class Chain:
    """One owner's chain, held until the transaction ends: changes of an owner's keys wait for each other."""

    def __init__(self, connection: Connection, owner: str, log_secret: AuditSecret) -> None:
        self.connection = connection
        self.owner = owner
        self.secret = log_secret.secret()
        self._fingerprint_of = log_secret.fingerprint_of
        self._rows: list[dict[str, Any]] = []
        # Adds a head or changes nothing, and locks its row until the transaction ends.
        added = insert_into(connection, audit_heads).values(owner=owner, **_NEW_HEAD)
        held = added.on_conflict_do_update(index_elements=["owner"], set_={"number": _h.number})
        self._head = dict(connection.execute(held.returning(*_h)).mappings().one())
        self._new = not (self._head["number"] or self._head["hash"] or self._head["seal"])
        #: False if the head was changed; the chain continues, and is never sealed again.
        self.is_whole = is_mac(self._head["seal"], head_seal(self.secret, self._head))
        if not self.is_whole:
            self._look_behind()

    @property
    def number(self) -> int:
        """The number of the last row."""
        return int(self._head["number"])

    def append(self, event: AuditEvent, subject: Subject | None = None) -> None:
        """Add an event that changes no key; ``close`` writes it."""
        self._add(event, subject or NoRecord())

    def change(self, event: AuditEvent, was: Any, became: Any) -> None:
        """Add an event that changes a key.

        :param was: its row in ``byok_credentials`` before the event, with all columns; None for a new key.
        :param became: the row after the event; None for a deleted key.
        """
        key = was if became is None else became
        if became is not None and (was is None or was.ciphertext != became.ciphertext):
            known = self._fingerprint_of(became)
            event = event if known is None else replace(event, fingerprint=known)
        self._add(
            event,
            key,
            version=GONE if became is None else became.version,
            was=None if was is None else record_hash(self.secret, was),
            became=None if became is None else record_hash(self.secret, became),
        )

    def restate(self, event: AuditEvent, row: Any, fingerprint: str | None) -> None:
        """Add a row that says of a key what an older row says, which is to be pruned.

        :param fingerprint: the key's, which may stand in a row before that.
        """
        event = replace(event, fingerprint=fingerprint)
        key = NoRecord(row.provider, row.slot, row.credential_id)
        self._add(event, key, version=row.version, was=row.became, became=row.became)

    def prune(self, last: Any) -> None:
        """Delete the rows up to this one, and make it the checkpoint."""
        old = audit.c.owner == self.owner, audit.c.number <= last.number
        self.connection.execute(delete(audit).where(*old))
        self._head |= {"checkpoint": last.number, "checkpoint_hash": last.hash}

    def close(self) -> None:
        """Write what was added, and the head."""
        if self._rows:
            self.connection.execute(insert(audit), self._rows)
        seal = head_seal(self.secret, self._head) if self.is_whole else ""
        if not self._rows and seal == self._head["seal"]:
            return
        head = self._head | {"seal": seal}
        self.connection.execute(update(audit_heads).where(_h.owner == self.owner).values(head))

    def _add(self, event: AuditEvent, subject: Subject, **about: Any) -> None:
        row: dict[str, Any] = {
            "owner": self.owner,
            "number": self.number + 1,
            "at": to_milliseconds(utcnow()),
            **asdict(event),
            "previous": self._head["hash"],
            "provider": subject.provider,
            "slot": subject.slot,
            "credential_id": subject.id,
            **{"version": None, "was": None, "became": None, **about},
        }
        row["hash"] = row_hash(self.secret, row)
        self._head |= {"number": row["number"], "hash": row["hash"]}
        self._rows.append(row)

    def _look_behind(self) -> None:
        """Find where a chain with a wrong head continues; a new chain is whole if it has no rows."""
        ask, last = self.connection.scalar, func.max(audit.c.number)
        number = ask(select(last).where(audit.c.owner == self.owner))
        key = ask(select(_c.id).where(_c.owner == self.owner).limit(1))
        self.is_whole = self._new and number is None and key is None
        self._head["number"] = int(number or 0)


class AuditWriter:
    """Opens chains for writing."""

    def __init__(self, database: Database, log_secret: AuditSecret) -> None:
        self.database = database
        self.log_secret = log_secret

    def change(self, owner: str, work: Callable[[Chain], T]) -> T:
        """Run a function in a transaction that holds the owner's chain, and write what it adds to that."""
        self.log_secret.secret()  # before the transaction, as it may have to be read

        def within(connection: Connection) -> T:
            chain = Chain(connection, owner, self.log_secret)
            result = work(chain)
            chain.close()
            return result

        return self.database.change(within)

    def note(self, owner: str, event: AuditEvent, subject: Subject | None = None) -> None:
        """Write an event that changes nothing in the database."""
        self.change(owner, lambda chain: chain.append(event, subject))


def hold_secret(database: Database, name: str, sealed: str, *, replace: bool = False) -> str:
    """Keep the log's sealed secret in the database; see ``sealing.keyring.Canary``."""

    def work(connection: Connection) -> str:
        kept = connection.execute(select(canaries.c.name).where(canaries.c.name == name)).first()
        if kept is None and connection.execute(select(_h.owner).limit(1)).first():
            raise ConfigurationError(_ROW_IS_GONE.format(name=name))
        return keep_text(connection, name, sealed, replace=replace)

    return database.change(work)


def row_hash(secret: bytes, row: Mapping[str, Any]) -> str:
    """Return the hash of a row of the log, over its other columns."""
    return _mac(secret, ["row", *(row[name] for name in _HASHED)])


def head_seal(secret: bytes, head: Mapping[str, Any]) -> str:
    """Return the seal of a chain's head, over its other columns."""
    names = ("owner", "number", "hash", "checkpoint", "checkpoint_hash")
    return _mac(secret, ["head", *(head[name] for name in names)])


def record_hash(secret: bytes, row: Any) -> str:
    """Return the hash of a key's record, over the columns that change only with a row in the log."""
    return _mac(secret, ["key", *(getattr(row, name) for name in RECORDED)])


def is_mac(found: object, expected: str) -> bool:
    """Compare a hash that the database has with one that was made here."""
    return hmac.compare_digest(str(found).encode(errors="replace"), expected.encode())


def _mac(secret: bytes, parts: Sequence[Any]) -> str:
    # JSON keeps the columns apart, and None from an empty string. Bytes, which SQLite takes for a text,
    # have a form that no text has.
    written = json.dumps(parts, default=lambda odd: {"odd": repr(odd)})
    return hmac.digest(secret, written.encode(), "sha256").hex()
