"""Seal every account's key again with the current encryption key.

Readers and writers may go on meanwhile. It may be ended at any point and begun again: what is done stays
done, and the ciphertexts themselves show what is due.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnreadableCredentialError
from ..keys.ports import AuditEvent
from ..model.credential import SealedRecord
from ..sealing.keyring import Context, Keyring

if TYPE_CHECKING:
    from .store.keys import AccountStore
    from .store.reseal import Resealed

#: Rounds over keys that other transactions hold, and seconds between two of them.
_ROUNDS, _PAUSE = 50, 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rotation is, in keys.

    ``total`` were due at its beginning; more may have come since. ``held`` are left over because other
    transactions were changing them.
    """

    total: int
    done: int = 0
    unreadable: int = 0
    held: int = 0


def rotate(accounts: AccountStore, keyring: Keyring, event: AuditEvent) -> Iterator[Progress]:
    """Seal all that is due again, batch by batch, and yield after each; the log's secret at the end.

    Keys that are being changed are taken up again, for some ten seconds after the last one that
    could be done.

    :raises ConfigurationError: the encryption key is the wrong one.
    :raises StoreError: the database does not answer; what was yielded is done.
    """
    accounts.canary.secret()
    total, done, idle = accounts.seals.count_due(), 0, 0
    progress = Progress(total)
    while idle < _ROUNDS:
        before, unreadable, held = done, 0, 0
        for batch in _round(accounts, keyring, event):
            done += batch.done
            unreadable += batch.unreadable
            held += batch.missed
            progress = Progress(total, done, unreadable, held)
            yield progress
        if not progress.held:
            break
        idle = 0 if done > before else idle + 1
        time.sleep(_PAUSE)
    accounts.canary.reseal()


def _round(accounts: AccountStore, keyring: Keyring, event: AuditEvent) -> Iterator[Resealed]:
    def seal(key: SealedRecord) -> str | None:
        context = Context("account", key.owner, key.provider, key.slot)
        try:
            return keyring.seal(keyring.open(key.ciphertext, context), context)
        except UnreadableCredentialError:
            return None

    after: str | None = ""
    while after is not None:
        batch = accounts.seals.renew(seal, event, after=after)
        yield batch
        after = batch.after
