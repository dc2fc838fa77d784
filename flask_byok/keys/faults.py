"""Passing faults of keys, for ``BYOK_FALLBACK_ON``: no credit, too many calls, a provider that cannot be reached.

They are forgotten after five minutes, and with the key that they were about. Those of people's keys stand beside the
key, as its verdict; those of the operator's own keys have a place in the session store, so that all workers know
them.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b

from ..errors import StoreError
from ..model.credential import Credential, RecordedVerdict, Verdict, utcnow
from ..settings import FallbackReason
from .sessions import Documents

#: After this time a passing fault is forgotten.
FORGOTTEN_AFTER = timedelta(minutes=5)

#: The reason of a fallback, by the code of a call's error.
REASONS: dict[str, FallbackReason] = {
    "no_credit": "no_credit",
    "provider_rate_limited": "rate_limited",
    "provider_unavailable": "unreachable",
    "provider_overloaded": "unreachable",
}
#: The verdict that stands for a passing reason.
VERDICTS = {
    "no_credit": Verdict.VALID_NO_CREDIT,
    "rate_limited": Verdict.VALID_RATE_LIMITED,
    "unreachable": Verdict.UNREACHABLE,
}


def fault_in(recorded: RecordedVerdict | None) -> str | None:
    """Return the reason for which a key with this verdict may be passed over, if it is not forgotten."""
    if recorded is None or recorded.verdict not in VERDICTS.values():
        return None
    fresh = utcnow() - recorded.checked_at < FORGOTTEN_AFTER
    return recorded.verdict.removeprefix("valid_") if fresh else None


@dataclass(frozen=True, eq=False, repr=False)
class Faults:
    """The faults of the operator's own keys, by tier and provider."""

    documents: Documents

    def note(self, credential: Credential, verdict: Verdict) -> None:
        """Note what a check or call found, in place of what was known; a store that does not answer forgets it."""
        until = time.time() + FORGOTTEN_AFTER.total_seconds()
        reason = verdict.removeprefix("valid_") if verdict in VERDICTS.values() else "-"
        if verdict.valid is False:
            reason, until = "rejected", math.inf  # until a good check, or another key
        with suppress(StoreError):
            text = f"{reason} {until} {_mark(credential)}"
            self.documents.hold(_name(credential), text, replace=True)

    def find(self, credential: Credential) -> str | None:
        """Return the fault of this very key, if there is one.

        :raises StoreError: the store does not answer.
        """
        reason, until, mark = (self.documents.hold(_name(credential), "- 0 -")).split(" ")
        known = mark == _mark(credential) and float(until) > time.time()
        return reason if known and reason != "-" else None


def _name(credential: Credential) -> str:
    return f"fault:{credential.source}:{credential.provider}"


def _mark(credential: Credential) -> str:
    """Tell one key from the next: 8 bytes of a hash, from which no key can be found."""
    values = (credential.reveal(name) for name in sorted(credential.fields))
    return blake2b("\0".join(values).encode(), digest_size=8, person=b"byok-fault").hexdigest()
