"""Session keys: one document per session, changed by compare-and-swap.

The host rewrites its session data as a whole in each request, so overlapping requests would lose or
revive keys there. Keys therefore live beside it. A session has two names: ``sid``, a keyed hash of
the host's session id, and ``ref``, a random name for the document, which stays when the host renews
the id. A document is valid for one ``sid`` at a time and belongs to one identity.

While the host's ``SECRET_KEY`` is rotated, a session id has a hash for each of its keys: a ``sid`` is then all of them,
with spaces between. Workers that have only the old key and those that have both know one of them in common.

What a session may do is decided here, once for every store: a document is read, changed in memory
and written back only if it was not changed since. A session without a document has ended,
and a request still under way cannot bring it back.

A key that leaves a session for an account (promoted, or replaced by the account's) is in two stores, and
the process that moves it may be killed between any two steps. So it leaves in three: the session's
record is marked as ``leaving``; the account's transaction notes that the record's version is over; the
record is removed. A record that is leaving counts until its version is over, even if the last step
never happens; to clear it is to note that too. Any other record is cleared in one step.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, TypeVar

import msgspec

from ..catalog.endpoints import refuse_if_full
from ..errors import SessionRequiredError, StoreError
from ..model.credential import CredentialRecord, RecordedVerdict, SessionUse
from ..model.owner import SessionRef
from ..sealing.keyring import Canary, prefix_of
from .documents import (
    Change,
    Document,
    Documents,
    SessionView,
    decode,
    encode,
    encode_record,
    read_record,
    read_records,
)

#: A session's lifetime slides only after this part of it has passed.
_SLIDE = 20
#: Attempts to change a document that others change at the same time, and the longest pause between
#: two of them in seconds. Of 64 writers at once the last one needs about 15.
_TRIES, _LONGEST_PAUSE = 100, 0.05

_logger = logging.getLogger("flask_byok.stores")

_LOST = "The keys saved in this session are gone: the session store no longer has them. Save them again."

#: Where the id of a session leads that was ended or renewed, not lost.
_ENDED = "ended"

T = TypeVar("T")

#: What became of a visitor's record that the user wanted to take over.
Adoption = Literal["adopted", "kept", "gone"]


class KeysLostError(SessionRequiredError):
    """Raised once if the store has lost a session's keys; afterwards the session has none."""

    def __init__(self) -> None:
        super().__init__(_LOST, tier="session")


#: Changes a document in memory, and returns what the caller wants to know.
Edit = Callable[[Document], T]


@dataclass(eq=False, repr=False)
class Sessions:
    """The keys in sessions, on any store.

    :param ttl: lifetime after the last use; it slides in steps of a twentieth.
    :param max_age: lifetime after the session was established, however much it is used.
    :param over: returns which of these versions of an identity's records are over; None without accounts to end them.
    """

    documents: Documents
    ttl: timedelta
    max_age: timedelta
    clock: Callable[[], float] = time.time
    over: Callable[[str, Collection[str]], Collection[str]] | None = None
    #: Opens with the right encryption key only; None if that was made up for this run. It is looked at before records
    #: are read or written.
    canary: Canary | None = None

    def __post_init__(self) -> None:
        self.name = self.documents.name
        self._counts = self.documents.apart()
        self._confirm_key: Callable[[], object] = self.canary.confirm if self.canary else bool
        self._ttl, self._max_age = self.ttl.total_seconds(), self.max_age.total_seconds()

    def probe(self) -> None:
        """Raise if session keys cannot be found here.

        :raises ConfigurationError: the encryption key is a wrong one, or the tables are outdated.
        :raises StoreError: the store does not answer.
        """
        if self.canary is not None:
            self.canary.secret()
        self.documents.find("")

    # The session itself

    def establish(self, sid: str, dead: str | None = None) -> str:
        """Return the ref for a session id; a new one if there is none, or if it is ``dead``.

        Concurrent first callers get the same ref.
        """
        leads = self._leads(sid)
        if held := next((ref for ref in self._living(sid, leads) if ref != dead), None):
            return held
        ref, now = secrets.token_hex(16), self.clock()
        body = encode(Document(sid, "", now, now, {}, {}))
        self.documents.swap(ref, None, secrets.token_hex(8), body, min(self._ttl, self._max_age))
        won = self._point(leads, ref)
        if won != ref:
            self.documents.delete(ref)
        return won

    def find(self, sid: str) -> str | None:
        """Return the ref of the living session that a session id leads to, or None."""
        return next(self._living(sid, self._leads(sid)), None)

    def renew(self, session: SessionRef, new_sid: str) -> None:
        """Move a session to another session id; the old id ends."""
        if new_sid == session.sid:
            return
        # The new id leads here before the old one stops, so one of them does at any moment.
        self._point(self._leads(new_sid), session.ref)

        def move(document: Document) -> str | None:
            before = document.sid
            if not _share(before, f"{session.sid} {new_sid}"):
                return None
            document.sid = new_sid
            return before

        if before := self._swap(session.ref, move):
            # What other workers know it by ends too.
            old = {*session.sid.split(), *before.split()} - {*new_sid.split()}
            self._repoint(old, session.ref, _ENDED)
        else:
            for one in new_sid.split():
                self.documents.forget(one, session.ref)

    def end(self, session: SessionRef) -> None:
        """Delete everything in a session; writes still under way are refused."""
        self.documents.delete(session.ref)
        with suppress(StoreError):  # a session id without a document leads nowhere
            self._repoint(session.sid.split(), session.ref, _ENDED)

    def count_sealed_with(self, key_id: str) -> int | None:
        """Return how many keys in living sessions an encryption key has sealed.

        It reads all of them. None if the store cannot tell.
        """
        # As JSON only a record's own ciphertext has this: quotes within a text are escaped.
        return self.documents.occurrences(f'"ciphertext":"{prefix_of(key_id)}'.encode())

    # Its records

    def read(self, session: SessionRef, identity: str, providers: Sequence[str]) -> SessionView:
        """Return the records for these providers, or patterns of providers, without those whose version is over.

        One round trip; one query of the accounts more if a record is leaving. A session that belongs to
        another identity is ended.
        """
        self._confirm_key()
        loaded = self._load(session.ref)
        if loaded is None or not self._is_theirs(session, identity, loaded[1]):
            return SessionView(alive=False, lost=self._lost(session))
        document = loaded[1]
        lost = document.tell(session)
        if (self.clock() - document.seen) * _SLIDE > self._ttl:
            self._slide(session, identity)
        own = read_records(document.side(identity), providers)
        left = read_records(document.left, providers) if identity else {}
        leaving = [one for one in (*own.values(), *left.values()) if one.leaving]
        if leaving and identity and self.over is not None:
            over = self.over(identity, [one.version for one in leaving])
            gone = [one for one in leaving if one.version in over]
            self.remove(session, identity, gone)
            own, left = (
                {name: one for name, one in side.items() if one not in gone} for side in (own, left)
            )
        return SessionView(own, left, lost=lost)

    def write(self, session: SessionRef, identity: str, record: CredentialRecord) -> None:
        """Store a record under its provider, replacing the one before it.

        :raises SessionRequiredError: the session is not alive for this id and identity; nothing is
            stored.
        :raises KeyExistsError: it has as many named endpoints as allowed.
        """

        def put(document: Document) -> bool:
            side = document.side(identity)
            refuse_if_full(side, record.provider)
            side[record.provider] = encode_record(record)
            return True

        self._confirm_key()
        if not self._change(session, identity, put):
            raise SessionRequiredError(provider=record.provider, tier="session")

    def clear(
        self, session: SessionRef, identity: str, providers: Sequence[str], *, visitor: bool = False
    ) -> list[str]:
        """Delete all records for these providers, except those that are leaving, and return their providers.

        :param visitor: delete only what the visitor left.
        """

        def drop(document: Document) -> list[str]:
            gone = []
            for side in (document.left,) if visitor else (document.own, document.left):
                for name in [
                    n for n, one in read_records(side, providers).items() if not one.leaving
                ]:
                    del side[name]
                    gone.append(name)
            return gone

        return self._change(session, identity, drop, claim=False) or []

    def mark_leaving(
        self, session: SessionRef, identity: str, records: Collection[CredentialRecord]
    ) -> list[CredentialRecord]:
        """Mark records as leaving, all in one step, and return those that are still there, as stored before.

        A record of another version is not marked. Nothing is without accounts or for a visitor.
        """
        if not records or not identity or self.over is None:
            return []
        leave = _editing(records, partial(dataclasses.replace, leaving=True))
        return self._change(session, identity, leave) or []

    def remove(
        self, session: SessionRef, identity: str, ended: Collection[CredentialRecord]
    ) -> None:
        """Delete records of just these versions, all in one step.

        If the store does not answer they stay, but do not count.
        """
        if ended:
            with suppress(StoreError):
                self._change(session, identity, _editing(ended, lambda _: None), claim=False)

    def adopt(
        self, session: SessionRef, identity: str, record: CredentialRecord, *, replace: bool
    ) -> Adoption:
        """Put an identity's record in place of the visitor's of the same version, in one step.

        The version's verdict and count stay. ``kept`` means that the identity has a record already and
        ``replace`` is off, ``gone`` that the visitor's was cleared or changed; then nothing changes.
        """

        def take(document: Document) -> Adoption | None:
            left = read_record(document.left, record.provider)
            if left is None or left.version != record.version:
                return None
            if record.provider in document.own and not replace:
                return "kept"
            del document.left[record.provider]
            document.own[record.provider] = encode_record(_resealed(left, record))
            return "adopted"

        self._confirm_key()
        return self._change(session, identity, take) or "gone"

    def reseal(self, session: SessionRef, identity: str, record: CredentialRecord) -> bool:
        """Put a record in place of the one of the same version; False if that is gone.

        The version's verdict and count stay, and what is leaving goes on leaving.
        """
        self._confirm_key()
        put = _editing([record], partial(_resealed, record=record))
        return bool(self._change(session, identity, put))

    # What becomes known about them

    def record_verdict(self, session: SessionRef, provider: str, verdict: RecordedVerdict) -> None:
        """Store a verdict beside the record of its version.

        A late verdict leaves a newer key alone, and one that learnt nothing leaves a refusal. The
        version alone decides: a verdict neither ends nor prolongs a session, even another identity's.
        """

        def learn(record: CredentialRecord) -> CredentialRecord:
            known = record.validity
            if verdict.verdict.valid is None and known and known.verdict.valid is False:
                return record
            return dataclasses.replace(record, validity=verdict)

        self._swap(session.ref, lambda found: found.edit([(provider, verdict.version)], learn))

    def count(self, use: SessionUse) -> None:
        """Add uses to the count of the record of their version; as with a verdict nothing else changes.

        If an answer is lost, a batch may be counted twice.
        """
        at = datetime.fromtimestamp(use.last_used_at / 1000, UTC)

        def add(record: CredentialRecord) -> CredentialRecord:
            count, last = record.usage_count + use.uses, max(record.last_used_at or at, at)
            return dataclasses.replace(record, usage_count=count, last_used_at=last)

        version = (use.provider, use.version)
        self._swap(use.ref, lambda found: found.edit([version], add), self._counts)

    # Steps

    def _lost(self, session: SessionRef) -> frozenset[str]:
        """Return the providers with keys in a session that has no document though nothing has ended it."""
        if not (lost := session.saved.providers if session.saved else frozenset()):
            return lost
        ended = {*self._leads(session.sid).values()} - {None, session.ref}
        return frozenset() if ended else lost

    def _load(self, ref: str, documents: Documents | None = None) -> tuple[str, Document] | None:
        """Return a living document and its revision."""
        loaded = (documents or self.documents).load(ref)
        if loaded is None:
            return None
        try:
            document = decode(loaded[1])
        except (ValueError, msgspec.DecodeError):
            _logger.warning("A session in %s cannot be read: it counts as ended.", self.name)
            return None
        return (loaded[0], document) if self._left(document) > 0 else None

    def _left(self, document: Document) -> float:
        """Return how long a document lives, in seconds."""
        return min(document.seen + self._ttl, document.created + self._max_age) - self.clock()

    def _leads(self, sid: str) -> dict[str, str | None]:
        """Return where each hash of a session id leads."""
        return {one: self.documents.find(one) for one in sid.split()}

    def _living(self, sid: str, leads: Mapping[str, str | None]) -> Iterator[str]:
        """Yield the living sessions that are a session id's own: others have been renewed under another one."""
        for ref in filter(None, leads.values()):
            if (loaded := self._load(ref)) and _share(loaded[1].sid, sid):
                yield ref

    def _point(self, leads: Mapping[str, str | None], ref: str) -> str:
        """Let all hashes of a session id lead to a ref, or to the one that another caller has set.

        :param leads: where they lead now.
        """
        # The last is of the oldest key, which all workers have, so it decides.
        for one in reversed([*leads]):
            ref = self.documents.point(one, ref, self._ttl, instead_of=leads[one])
        return ref

    def _repoint(self, hashes: Iterable[str], ref: str, to: str) -> None:
        """Let those of the hashes that lead to a ref, or nowhere, lead to another or for longer."""
        for one in hashes:
            self.documents.point(one, to, self._ttl, instead_of=ref)

    def _slide(self, session: SessionRef, identity: str) -> None:
        """Begin the lifetime of a session and its id again, if the store takes that now."""

        def see(document: Document) -> bool:
            document.seen = self.clock()
            # Of a rotation of SECRET_KEY too: workers that have only the old key go on, and later those with the new.
            document.sid = " ".join(dict.fromkeys(f"{session.sid} {document.sid}".split()))
            return True

        with suppress(StoreError):
            if self._change(session, identity, see, claim=False):
                self._repoint(session.sid.split(), session.ref, session.ref)

    def _is_theirs(self, session: SessionRef, identity: str, document: Document) -> bool:
        """Return True if a session is valid for this id and identity; end another identity's."""
        if _share(document.sid, session.sid):
            if document.owner in ("", identity):
                return True
            self.end(session)
        return False

    def _change(
        self, session: SessionRef, identity: str, change: Edit[T], *, claim: bool = True
    ) -> T | None:
        """Change a living session and return the result; None if it is not theirs.

        :param claim: make the session the identity's if there was something to change.
        """

        def guarded(document: Document) -> T | None:
            if not self._is_theirs(session, identity, document):
                return None
            result = change(document)
            if result and claim:
                document.owner = identity
            changed[:] = [document]
            return result

        changed: list[Document] = []
        result = self._swap(session.ref, guarded)
        if changed:
            changed[0].tell(session)
        return result

    def _swap(self, ref: str, change: Edit[T], documents: Documents | None = None) -> T | None:
        """Apply a change to a living document and return the result; None if there is none."""
        documents = documents or self.documents
        result: T | None = None
        written = None
        for attempt in range(_TRIES):
            if (loaded := self._load(ref, documents)) is None:
                return None
            seen, document = loaded
            if seen == written:
                return result  # only the answer was lost
            before = encode(document)
            result, written = change(document), secrets.token_hex(8)
            body = encode(document)
            if body == before or documents.swap(ref, seen, written, body, self._left(document)):
                return result
            time.sleep(secrets.randbelow(1000) / 1000 * min(_LONGEST_PAUSE, 0.001 * 1.5**attempt))
        raise StoreError(tier="session")


def _editing(records: Iterable[CredentialRecord], change: Change) -> Edit[list[CredentialRecord]]:
    versions = [(one.provider, one.version) for one in records]
    return lambda document: document.edit(versions, change)


def _share(sids: str, others: str) -> bool:
    return sids == others or not set(sids.split()).isdisjoint(others.split())


def _resealed(before: CredentialRecord, record: CredentialRecord) -> CredentialRecord:
    """Return a record in another's sealing; what is known about it stays."""
    return dataclasses.replace(before, owner=record.owner, ciphertext=record.ciphertext)
