"""Seal every account's key again with the current encryption key.

Readers and writers may go on meanwhile. It may be ended at any point and begun again: what is done stays
done, and the ciphertexts themselves show what is due.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Text, bindparam, cast, func, select, update

from ...model.credential import CredentialRecord
from ...storage.tables import canaries, credentials
from . import AuditEvent
from .audit import Chain
from .audit_verify import AuditLog
from .rows import key_columns

#: Rounds over keys that other transactions hold, and seconds between two of them.
_ROUNDS, _PAUSE = 50, 0.2
#: Keys that one transaction writes.
_BATCH = 500

#: Returns a key's ciphertext under the current encryption key, None if it does not open.
Seal = Callable[[CredentialRecord], str | None]

_c = credentials.c

#: Unless the key was replaced since it was read: its version has changed then. SQLite has one writer.
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
#: Skips rows that another transaction is changing, so this one waits for none while it holds rows.
_held = (
    select(_c.id, _new.c.ciphertext)
    .where(_c.id == _new.c.id, _c.version == _new.c.version)
    .with_for_update(skip_locked=True, of=credentials)
    .cte("held")
)
#: A whole batch on PostgreSQL, which is far faster than row by row.
_WRITE_ALL = (
    update(credentials)
    .where(_c.id == _held.c.id)
    .values(ciphertext=_held.c.ciphertext, key_id=bindparam("by"))
)


@dataclass(slots=True)
class Progress:
    """How far a rotation is, in keys.

    ``total`` were due at its beginning; more may have come since. ``held`` are left over because other
    transactions were changing them.
    """

    total: int
    done: int = 0
    unreadable: int = 0
    held: int = 0


class AccountSeals:
    """Counts what each encryption key has sealed, and renews ciphertexts in batches."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit, self._read = audit, audit.database.read
        self._is_due = ~_c.ciphertext.startswith(audit.log_secret.keyring.seal_prefix)

    def count_by_key_id(self) -> dict[str, int]:
        """Return how many ciphertexts each encryption key has sealed, the audit log's secret included."""
        by_key_id = select(_c.key_id, func.count()).group_by(_c.key_id)
        counts = Counter[str](dict(self._read(by_key_id)))
        secret = select(canaries.c.sealed).where(canaries.c.name == "audit")
        counts.update(key_columns(row.sealed)["key_id"] for row in self._read(secret))
        return dict(counts)

    def count_due(self) -> int:
        """Return how many keys the current encryption key and cipher have not sealed."""
        return int(self._read(select(func.count(_c.id)).where(self._is_due))[0][0])

    def rotate(self, seal: Seal, event: AuditEvent) -> Iterator[Progress]:
        """Seal all that is due again, batch by batch, and yield after each; the log's secret at the end.

        Versions and verdicts stay. The chain of ``system`` gets the event once for each batch that changed something.

        Keys that are being changed are taken up again, for some ten seconds after the last one that
        could be done.

        :raises ConfigurationError: the encryption key is the wrong one.
        :raises StoreError: the database does not answer; what was yielded is done.
        """
        self._audit.log_secret.secret()
        progress, idle = Progress(self.count_due()), 0
        while idle < _ROUNDS:
            before, progress.unreadable, progress.held = progress.done, 0, 0
            for batch in self._due_batches():
                # Sealed before the transaction, so nothing waits for the cryptography.
                sealed = [(row, text) for row in batch if (text := seal(row)) is not None]
                write = partial(_update, sealed=sealed, event=event)
                done = self._audit.change("system", write) if sealed else 0
                progress.done += done
                progress.unreadable += len(batch) - len(sealed)
                progress.held += len(sealed) - done
                yield replace(progress)
            if not progress.held:
                break
            idle = 0 if progress.done > before else idle + 1
            time.sleep(_PAUSE)
        self._audit.log_secret.reseal()

    def _due_batches(self) -> Iterator[Sequence[Any]]:
        """Yield what is due, batch by batch; an empty one at the end, even of nothing."""
        columns, after = (_c.id, _c.owner, _c.provider, _c.slot, _c.ciphertext, _c.version), ""
        due = select(*columns).where(self._is_due).order_by(_c.id).limit(_BATCH)
        while found := self._read(due.where(_c.id > after)):
            yield found
            after = found[-1].id
        yield found


def _update(chain: Chain, sealed: Sequence[tuple[Any, str]], event: AuditEvent) -> int:
    """Write new ciphertexts and return how many of the rows were still as read."""
    execute, key_id = chain.connection.execute, key_columns(sealed[0][1])["key_id"]
    if chain.connection.dialect.name == "postgresql":
        columns = {
            "ids": " ".join(row.id for row, _ in sealed),
            "versions": " ".join(str(row.version) for row, _ in sealed),
            "sealed": " ".join(text for _, text in sealed),
        }
        done = execute(_WRITE_ALL, {**columns, "by": key_id}).rowcount
    else:
        rows = [
            {"of_id": row.id, "of_version": row.version, "sealed": text, "by": key_id}
            for row, text in sealed
        ]
        done = execute(_WRITE, rows).rowcount
    if done:
        chain.append(event)
    return done
