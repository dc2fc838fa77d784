"""Count the uses of keys, by whose they are and how they ended; see :mod:`.tally` for how no call waits for that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Literal

from ..model.credential import Credential
from ..model.owner import OPERATOR_TIERS, Caller, Tier
from .tally import Notes, Tally

#: How a call with a key ended: the provider answered, refused the key, or did neither.
Outcome = Literal["used", "rejected", "failed"]
#: Called with the outcome of each call that was made.
Count = Callable[[Outcome], None]

#: Seconds between two batches: what a crash loses.
INTERVAL = 1.0
_EPOCH = date(1970, 1, 1).toordinal()

# Owner, provider, id of the credential, day since 1970, outcome.
_OwnersKey = tuple[str, str, str, int, Outcome]
# Ref, provider, version.
_SessionsKey = tuple[str, str, str]


@dataclass(slots=True)
class Use:
    """How often an owner used a key on one day (ISO 8601, UTC) with one outcome.

    ``last_used_at`` is in milliseconds since 1970. ``credential_id`` is empty for keys that the
    database does not keep.
    """

    owner: str
    provider: str
    credential_id: str
    day: str
    outcome: Outcome
    uses: int
    last_used_at: int
    #: Set by a store that cannot tell whether this was written; by it the store finds out later.
    ticket: str = ""


@dataclass(slots=True)
class SessionUse:
    """How often a key was used that lies in a session: ``ref`` names that, ``version`` the key.

    ``last_used_at`` and ``ticket`` are as in ``Use``.
    """

    ref: str
    provider: str
    version: str
    uses: int
    last_used_at: int
    ticket: str = ""


def counted_owner(caller: Caller, credential: Credential) -> str | None:
    """Return whose use this is, or None where nobody's statistics count it.

    What a visitor keeps in the session has nobody to count it for; a user's session key counts for the user.
    """
    if credential.source == "argument":
        return None
    if credential.source == Tier.SESSION:
        return caller.identity or None
    return "system" if credential.source in OPERATOR_TIERS else credential.owner


class UsageRecorder:
    """Notes uses at about a microsecond each, and hands them to the stores every second.

    A process that is killed loses what it noted in its last second; one that ends hands it over.
    While a store is away everything of it waits, up to ``MAX_PENDING`` entries. Each process that a
    server forks has counts and threads of its own.

    A store writes one use, wholly or not at all. When it raises, the use is handed over again,
    later and together with what was noted since; unless it carries a ticket: then as it was.

    :param add: writes what an owner did; None where nobody keeps it.
    :param interval: in seconds.
    :param count: writes what was done with a key in a session.
    """

    def __init__(
        self,
        add: Callable[[Use], None] | None,
        interval: float = INTERVAL,
        *,
        count: Callable[[SessionUse], None] | None = None,
    ) -> None:
        self._owners = None if add is None else Notes(Tally(add, _use), interval)
        self._sessions = None if count is None else Notes(Tally(count, _session_use), interval)

    def note(self, owner: str, provider: str, credential_id: str, outcome: Outcome) -> None:
        """Count one use of an owner's, now."""
        if self._owners is not None:
            now = time.time()
            self._owners.note((owner, provider, credential_id, int(now // 86_400), outcome), now)

    def note_in_session(self, ref: str, provider: str, version: str, outcome: Outcome) -> None:
        """Count one use of a key that lies in a session, now; ``used`` ones alone."""
        if self._sessions is not None and outcome == "used":
            self._sessions.note((ref, provider, version), time.time())

    def counter(self, caller: Caller, credential: Credential) -> Count | None:
        """Return what counts the calls with a credential; None where they are not counted."""
        for_owner = self._for_owner(caller, credential)
        for_session = self._for_session(caller, credential)
        if for_owner is None or for_session is None:
            return for_owner or for_session

        def for_both(outcome: Outcome) -> None:
            for_owner(outcome)
            for_session(outcome)

        return for_both

    def flush(self) -> None:
        """Hand everything over now.

        :raises StoreError: a store does not answer; what is left is handed over later.
        """
        for notes in (self._owners, self._sessions):
            if notes is not None:
                notes.tally.flush()

    def _for_owner(self, caller: Caller, credential: Credential) -> Count | None:
        owner = counted_owner(caller, credential)
        if self._owners is None or owner is None:
            return None
        return partial(self.note, owner, credential.provider, credential.id)

    def _for_session(self, caller: Caller, credential: Credential) -> Count | None:
        session, version = caller.session, credential.version
        if self._sessions is None or credential.source != Tier.SESSION:
            return None
        if session is None or version is None:
            return None
        return partial(self.note_in_session, session.ref, credential.provider, version)


def _use(key: _OwnersKey, uses: int, at: float) -> Use:
    owner, provider, credential_id, day, outcome = key
    written = date.fromordinal(_EPOCH + day).isoformat()
    return Use(owner, provider, credential_id, written, outcome, uses, int(at * 1000))


def _session_use(key: _SessionsKey, uses: int, at: float) -> SessionUse:
    return SessionUse(*key, uses, int(at * 1000))
