"""What a session keeps, as one document, and what a store for such documents does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Protocol

import msgspec

from ..catalog.endpoints import matching
from ..model.credential import CredentialRecord, utcnow
from ..model.owner import SessionRef

#: A provider, and the version of its record.
Version = tuple[str, str]
#: Returns the record to store in place of one; None deletes it.
Change = Callable[[CredentialRecord], CredentialRecord | None]
Records = Mapping[str, CredentialRecord]


@dataclass(frozen=True, slots=True)
class SessionView:
    """What a session holds for one identity, by provider.

    ``records`` are the identity's own. ``visitor_records`` were saved in this session before the user
    signed in; for a visitor the mapping is empty. ``alive`` is False if the session has ended, was
    renewed under another id, or belonged to another identity: it then holds nothing and takes nothing. ``lost``
    names the providers whose keys the store has lost, and no call has said so.
    """

    records: Records = field(default_factory=dict)
    visitor_records: Records = field(default_factory=dict)
    alive: bool = True
    lost: frozenset[str] = frozenset()

    @property
    def providers(self) -> set[str]:
        """The providers of all records."""
        return {*self.records, *self.visitor_records}


class Documents(Protocol):
    """A store for session documents, and for session ids that lead to them.

    Documents are bytes with a revision (16 characters). Times to live are in seconds. Every method
    raises ``StoreError`` if the store does not answer.
    """

    #: The noun for the storage sentence: "Redis", "the database".
    name: str

    def find(self, sid: str) -> str | None:
        """Return the ref that a session id leads to, or None."""

    def point(self, sid: str, ref: str, ttl: float, *, instead_of: str | None) -> str:
        """Let a session id lead to a ref if it leads nowhere or to ``instead_of``.

        Return the ref that it leads to afterwards. Concurrent first callers get the same one.
        """

    def forget(self, sid: str, ref: str) -> None:
        """Let a session id lead nowhere if it leads to this ref."""

    def load(self, ref: str) -> tuple[str, bytes] | None:
        """Return a document's revision and body, or None."""

    def swap(self, ref: str, seen: str | None, revision: str, body: bytes, ttl: float) -> bool:
        """Replace a document if its revision is still ``seen`` (None: if there is none).

        False means that it was not replaced, or that a lost answer hides that it was.
        """

    def delete(self, ref: str) -> None:
        """Delete a document."""

    def hold(self, name: str, text: str, *, replace: bool = False) -> str:
        """Return the text kept under a name for ever; this one if there is none, or to ``replace`` it."""

    def occurrences(self, mark: bytes) -> int | None:
        """Return how often bytes occur in living documents; None if the store cannot tell."""

    def apart(self) -> Documents:
        """Return the same store for work that no request waits for; its faults keep no request away."""


class Document(msgspec.Struct, array_like=True):
    """One session. Times are seconds since 1970; records are JSON, so that a damaged one harms no other."""

    sid: str
    owner: str
    created: float
    seen: float
    own: dict[str, bytes]
    #: What a visitor saved, before or without a sign-in.
    left: dict[str, bytes]

    def side(self, identity: str) -> dict[str, bytes]:
        """Return the records of a signed-in identity, or the visitor's."""
        return self.own if identity else self.left

    def edit(self, versions: Iterable[Version], change: Change) -> list[CredentialRecord]:
        """Change the records of these versions, on whichever side they are, and return them as they were."""
        found = []
        for (provider, version), side in product(versions, (self.own, self.left)):
            record = read_record(side, provider)
            if record is None or not version or record.version != version:
                continue
            if changed := change(record):
                side[provider] = encode_record(changed)
            else:
                del side[provider]
            found.append(record)
        return found

    def tell(self, session: SessionRef) -> frozenset[str]:
        """Let the host's session know of the keys in here; return the providers whose keys were in a lost one."""
        if (saved := session.saved) is None:
            return frozenset()
        here = frozenset((*self.own, *self.left))
        lost = saved.providers - here if saved.ref not in (None, session.ref) else frozenset()
        if lost:
            saved.note(saved.ref, lost)
        else:
            saved.note(session.ref if here else None, here)
        return lost


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Document).decode
encode_record = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(CredentialRecord).decode


def read_record(side: Mapping[str, bytes], provider: str) -> CredentialRecord | None:
    """Return a provider's record; one that does not open if it is damaged, or was moved here from another."""
    if provider not in side:
        return None
    try:
        record = _decode_record(side[provider])
        if record.provider == provider:
            return record
    except (ValueError, msgspec.DecodeError):  # one alone in new releases
        pass
    now = utcnow()
    return CredentialRecord(
        provider, owner="", ciphertext="", hint="", version="", created_at=now, updated_at=now
    )


def read_records(
    side: Mapping[str, bytes], providers: Iterable[str]
) -> dict[str, CredentialRecord]:
    return {name: found for name in matching(side, providers) if (found := read_record(side, name))}
