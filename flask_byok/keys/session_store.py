"""What every session store does, and what the audit log takes.

The host's session data is rewritten whole by each request that touches it, so keys live beside it.
A session is known by two names: ``sid``, a keyed hash of the host's session id, and ``ref``,
random, which names what is stored and stays when the host renews the id. What is stored is valid
for one ``sid`` at a time and belongs to one identity; both are compared by the store itself, in the
same step as the read or write. An ended ``ref`` stays dead, so that a request still under way
cannot bring anything back.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from ..model.credential import REFUSALS, CredentialRecord, RecordedVerdict, SessionUse, utcnow
from ..model.owner import SessionRef
from ..sealing.keyring import prefix_of

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(CredentialRecord)


#: What became of a visitor's record that was to become the user's.
Adoption = Literal["adopted", "kept", "gone"]


@dataclass(frozen=True, slots=True)
class SessionView:
    """What a session holds for one identity.

    ``records`` are the identity's own, by provider. ``visitor_records`` were saved in this session
    before somebody signed in; for a visitor it is empty. ``alive`` is False when the session has
    ended, was renewed under another id, or belonged to somebody else: it then holds nothing and
    takes nothing.
    """

    records: Mapping[str, CredentialRecord] = field(default_factory=dict)
    visitor_records: Mapping[str, CredentialRecord] = field(default_factory=dict)
    alive: bool = True


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Who did what, and what came of it.

    ``actor`` is ``user:<id>``, ``system`` or ``cli``. ``fingerprint`` tells keys apart, never shows
    one.
    """

    actor: str
    action: str
    outcome: str = "done"
    request_id: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain of the audit log ended: its last row's number and hash."""

    owner: str
    number: int
    hash: str


class SessionStore(Protocol):
    """Keeps the sealed records of sessions.

    Every method raises ``StoreError`` when the store does not answer.
    """

    #: One noun for the storage sentence: "Redis", "the database".
    name: str

    def establish(self, sid: str, dead: str | None = None) -> str:
        """Return the ref for a session id, making one where there is none or it is ``dead``.

        Two first callers get the same ref.
        """

    def find(self, sid: str) -> str | None:
        """Return the ref for a session id, or None."""

    def read(self, session: SessionRef, identity: str, providers: Sequence[str]) -> SessionView:
        """Return the records for these providers and let the lifetime slide.

        One round trip. A session that belongs to another identity is ended, and a dead view
        returned. A signed-in identity sees what the visitor left as ``visitor_records``.
        """

    def write(self, session: SessionRef, identity: str, record: CredentialRecord) -> None:
        """Store one record under its provider, replacing the one before it.

        :raises SessionRequiredError: the session is not alive for this id and identity; nothing is
            stored.
        """

    def clear(
        self, session: SessionRef, identity: str, providers: Sequence[str], *, visitor: bool = False
    ) -> list[str]:
        """Delete the records of these providers and return those that were there.

        Deleting nothing is fine. ``visitor`` deletes what the visitor left instead of the
        identity's own.
        """

    def adopt(
        self, session: SessionRef, identity: str, record: CredentialRecord, *, replace: bool
    ) -> Adoption:
        """Put the identity's record in the place of the visitor's of the same version, in one step.

        What is known about that version stays: its verdict and its count. It is ``kept`` where the
        identity has a record already and ``replace`` is off, and ``gone`` where the visitor's has
        been cleared or changed meanwhile; then nothing is changed.
        """

    def exchange(
        self,
        session: SessionRef,
        identity: str,
        record: CredentialRecord,
        *,
        visitor: bool = False,
    ) -> bool:
        """Put a record in the place of the one of the same version.

        The verdict and the count beside it stay, and the session is the identity's from then on.
        ``visitor`` means what the visitor left. False where that version is gone, and where it is
        ``leaving`` and this record is not; then it stays as it is.
        """

    def discard(
        self,
        session: SessionRef,
        identity: str,
        provider: str,
        version: str,
        *,
        visitor: bool = False,
    ) -> bool:
        """Delete the record, if it is of that version still, and say whether it was."""

    def record_verdict(self, session: SessionRef, provider: str, verdict: RecordedVerdict) -> None:
        """Store a verdict beside the record, if that is there in the verdict's version still.

        One that comes late leaves a newer key and its own verdict alone, and one that says nothing
        of the key leaves a refusal. Whoever has the session by then, and by whichever id: the
        version is enough, and a verdict neither ends a session nor prolongs one.
        """

    def count(self, use: SessionUse) -> None:
        """Add uses to what is counted beside the record, if that is there in the use's version still.

        As with a verdict the version is enough, and nothing else changes. A use that may have been
        written has a ticket and is not counted again, unless another worker has counted the same
        key in between.
        """

    def renew(self, session: SessionRef, new_sid: str) -> None:
        """Make what is stored valid for another session id, and for the old one no longer."""

    def end(self, session: SessionRef) -> None:
        """Delete everything of the session and refuse whatever is still written to it."""

    def canary(self, name: str, sealed: str, *, replace: bool = False) -> str:
        """Return the text stored under this name; this one if there is none, or to ``replace`` it.

        It never expires. Of two first callers both get the same.
        """


def encode_record(record: CredentialRecord) -> bytes:
    """Return a record as JSON, without its verdict and its count, which are stored beside it."""
    alone = dataclasses.replace(record, validity=None, usage_count=0, last_used_at=None)
    return _encoder.encode(alone)


def encode_verdict(verdict: RecordedVerdict | None) -> bytes:
    """Return a verdict as JSON; nothing for None."""
    return b"" if verdict is None else _encoder.encode(verdict)


def new_ticket() -> str:
    """Return what tells one use that was handed over from the others of a key."""
    return secrets.token_hex(4)


def version_mark(version: str) -> str:
    """Return what a record of this version holds as JSON, and no other: text has its quotes escaped."""
    return f'"version":"{version}"'


#: Of these a verdict on a bad key holds one as JSON, and no other verdict does.
REFUSAL_MARKS = tuple(f'"verdict":"{verdict.value}"' for verdict in REFUSALS)
#: What a record that is leaving holds as JSON, and no other.
LEAVING_MARK = '"leaving":true'


def sealed_mark(key_id: str) -> str:
    """Return what a record that this encryption key has sealed holds as JSON, and no other."""
    return f'"ciphertext":"{prefix_of(key_id)}'


def decode_record(
    raw: bytes | str, provider: str, verdict: bytes | str | None = None
) -> CredentialRecord:
    """Return the record with its verdict, and with whatever members follow that.

    What cannot be read, or was moved here from another provider, becomes a record that does not
    open, never an error.
    """
    try:
        record = _decoder.decode(_joined(raw, verdict) if verdict else raw)
    except ValueError:  # msgspec's errors are ValueErrors
        return decode_record(raw, provider) if verdict else _unreadable(provider)
    return record if record.provider == provider else _unreadable(provider)


def _joined(raw: bytes | str, verdict: bytes | str) -> bytes:
    """Put the verdict back into the record's JSON: decoding once is three times as fast as twice."""
    record, validity = (text.encode() if isinstance(text, str) else text for text in (raw, verdict))
    return record[:-1] + b',"validity":' + validity + b"}"


def _unreadable(provider: str) -> CredentialRecord:
    now = utcnow()
    return CredentialRecord(
        provider=provider,
        owner="",
        ciphertext="",
        hint="",
        version="",
        created_at=now,
        updated_at=now,
    )
