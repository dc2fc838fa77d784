"""Seal every account's key anew with the current encryption key.

It goes on beside readers and writers, and may be ended at any point and begun again: what is done
stays done, and what is due is told by the ciphertexts themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnreadableCredentialError
from ..keys.session_store import AuditEvent
from ..sealing.keyring import Context, Keyring

if TYPE_CHECKING:
    from .store.keys import AccountStore
    from .store.reseal import AccountSeals, Resealed, SealedKey

#: Rounds over keys that somebody else holds, and seconds between two of them.
_ROUNDS, _PAUSE = 50, 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rotation is, in keys.

    ``total`` were due at its beginning; others may have come since. ``held`` are left over because
    somebody else was changing them.
    """

    total: int
    done: int = 0
    unreadable: int = 0
    held: int = 0


def rotate(accounts: AccountStore, keyring: Keyring, event: AuditEvent) -> Iterator[Progress]:
    """Seal all that is due anew, batch by batch, and yield after each; the log's secret at the end.

    Keys that somebody else is changing are taken up again, for some ten seconds after the last one
    that could be done.

    :raises ConfigurationError: the encryption key is the wrong one.
    :raises StoreError: the database does not answer; what was yielded is done.
    """
    accounts.canary.secret()
    total, done, idle = accounts.seals.count_due(), 0, 0
    progress = Progress(total)
    while idle < _ROUNDS:
        before, unreadable, held = done, 0, 0
        for batch in _round(accounts.seals, keyring, event):
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


def key_ids_without_key(counts: Mapping[str, int], keyring: Keyring) -> dict[str, int]:
    """Return what names an encryption key that is not configured: it was retired too early."""
    return {id: count for id, count in counts.items() if id and id not in keyring.key_ids}


def _round(seals: AccountSeals, keyring: Keyring, event: AuditEvent) -> Iterator[Resealed]:
    def seal(key: SealedKey) -> str | None:
        context = Context("account", key.owner, key.provider, key.slot)
        try:
            return keyring.seal(keyring.open(key.ciphertext, context), context)
        except UnreadableCredentialError:
            return None

    after: str | None = ""
    while after is not None:
        batch = seals.renew(seal, event, after=after)
        yield batch
        after = batch.after
