"""The keyed hashes that the audit log is made of: of its rows, of the heads of chains, and of keys' records.

None can be made without the log's secret, which the database holds sealed only (see :mod:`.canary`).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Table

from ...storage.tables import audit, credentials

_encoder = msgspec.json.Encoder()

#: What came later: a row's hash covers it where there is any, so that older rows still verify.
_LATER = ("was", "became")
_IN_HASH = tuple(column.name for column in audit.columns if column.name not in ("hash", *_LATER))
#: Columns of a record that only a change sets which is in the log. The verdict, the counts of use and
#: the seal change without. Older hashes are over these very columns in this order.
RECORDED = (
    *("id", "owner", "tier", "provider", "slot", "version", "hint", "label", "description"),
    *("active", "created_at", "updated_at", "expires_at", "set_at"),
)


def row_hash(secret: bytes, row: Mapping[str, Any]) -> str:
    """Return the hash of a row of the log, which covers its other columns."""
    later = [row[name] for name in _LATER]
    seen = later if any(value is not None for value in later) else []
    # JSON keeps the columns apart, and None from an empty string.
    return _mac(secret, ["row", *(row[name] for name in _IN_HASH), *seen])


def head_seal(secret: bytes, owner: str, number: int, last: str) -> str:
    """Return the seal of a chain's head."""
    return _mac(secret, ["head", owner, number, last])


def record_hash(secret: bytes, row: Any) -> str:
    """Return the hash of what a key's record is, but for what changes without an event."""
    return _mac(secret, ["key", *(getattr(row, name) for name in RECORDED)])


def is_mac(found: object, expected: str) -> bool:
    """Compare what the database has, which may be anything, with a hash that was made here."""
    return hmac.compare_digest(str(found).encode(errors="replace"), expected.encode())


class Kinds:
    """Tells whether values are what these columns hold: SQLite keeps whatever somebody puts there.

    Bytes would hash as the text that encodes them, so this is asked first.
    """

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        empty = {name: {type(None)} if table.c[name].nullable else set() for name in names}
        self._kinds = {name: {table.c[name].type.python_type, *empty[name]} for name in names}

    def fit(self, row: Any) -> bool:
        """Say whether this row's are."""
        return all(type(getattr(row, name)) in kinds for name, kinds in self._kinds.items())


ROW_KINDS = Kinds(audit, [column.name for column in audit.columns])
RECORD_KINDS = Kinds(credentials, (*RECORDED, "ciphertext"))


def _mac(secret: bytes, parts: Sequence[Any]) -> str:
    return hmac.digest(secret, _encoder.encode(parts), "sha256").hex()
