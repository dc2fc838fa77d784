"""Passing faults of keys, for ``BYOK_FALLBACK_ON``: no credit, too many calls, a provider that cannot be reached.

They are forgotten after five minutes, and with the key that they were about. Those of people's keys stand beside the
key, as its verdict; those of the operator's own keys have a place in the session store, so that all workers know
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import blake2b

from ..errors import StoreError
from ..model.credential import Credential, RecordedVerdict, Verdict, utcnow
from .documents import Documents

#: After this time a passing fault is forgotten.
FORGOTTEN_AFTER = timedelta(minutes=5)

#: Seconds for which each process remembers what the store knows: a fault that another one met counts as soon.
KEPT = 1.0
# So long a refusal is remembered of a key that is neither checked nor replaced.
_FOR_GOOD = timedelta(days=3650)

#: The verdict that stands for a passing fault, by the code of a call's error.
PASSING = {
    "no_credit": Verdict.VALID_NO_CREDIT,
    "provider_rate_limited": Verdict.VALID_RATE_LIMITED,
    "provider_unavailable": Verdict.UNREACHABLE,
    "provider_overloaded": Verdict.UNREACHABLE,
}


def reason_of(verdict: Verdict | None) -> str | None:
    """Return the reason of a fallback that a verdict gives, if it gives one."""
    if verdict and verdict in PASSING.values():
        return verdict.removeprefix("valid_")
    return "rejected" if verdict and verdict.valid is False else None


def fault_in(recorded: RecordedVerdict | None) -> str | None:
    """Return the reason for which a key with this verdict may be passed over, if it is not forgotten."""
    fresh = recorded and utcnow() - recorded.checked_at < FORGOTTEN_AFTER
    return reason_of(recorded.verdict) if recorded and fresh else None


@dataclass(eq=False, repr=False)
class Faults:
    """The faults of the operator's own keys, by tier and provider, as names that lead to them in the session store."""

    documents: Documents
    clock: Callable[[], float] = time.monotonic
    #: What the store said last, and until when that is not asked again, by name.
    _known: dict[str, tuple[str | None, float]] = field(default_factory=dict)

    def note(self, credential: Credential, verdict: Verdict) -> None:
        """Note what a check or call found, in place of what was known; a store that does not answer forgets it."""
        name, reason = _name(credential), reason_of(verdict)
        # A refusal holds until a good check, or another key.
        lasts = _FOR_GOOD if reason == "rejected" else FORGOTTEN_AFTER
        self._known.pop(name, None)
        with suppress(StoreError):
            held = self.documents.find(name)
            if reason:
                found, seconds = f"{reason} {_mark(credential)}", lasts.total_seconds()
                self.documents.point(name, found, seconds, instead_of=held)
            elif held:
                self.documents.forget(name, held)

    def find(self, credential: Credential) -> str | None:
        """Return the fault of this very key, if there is one; in each process at most ``KEPT`` seconds late.

        :raises StoreError: the store does not answer.
        """
        name, now = _name(credential), self.clock()
        held, until = self._known.get(name, (None, now))
        if until <= now:
            held = self.documents.find(name)
            self._known[name] = held, now + KEPT
        reason, _, mark = (held or "").partition(" ")
        return reason if held and mark == _mark(credential) else None


def _name(credential: Credential) -> str:
    return f"fault:{credential.source}:{credential.provider}"


def _mark(credential: Credential) -> str:
    """Tell one key from the next: 8 bytes of a hash, from which no key can be found."""
    values = (credential.reveal(name) for name in sorted(credential.fields))
    return blake2b("\0".join(values).encode(), digest_size=8, person=b"byok-fault").hexdigest()
