"""Write accounts' keys to a file sealed with a passphrase, and read them from it.

The file's plaintext is a line of JSON for each key: what it takes to make its record anew, under any
encryption key. Verdicts and counts of use stay where they were made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import msgspec

from ..errors import UnreadableCredentialError
from ..keys.session_store import AuditEvent
from ..model.credential import CredentialRecord, Moment
from ..sealing.keyring import Keyring
from .export_file import SealedFileError, SealedReader, SealedWriter

if TYPE_CHECKING:
    from .store.keys import AccountStore

_NO_KEY = "The file holds something that is not a key: was it made by a later version?"

#: Keys that are read from the database at a time.
PAGE = 200
#: Bytes that a key's line may have. The longest that there can be have some 20,000.
LONGEST_LINE = 256 * 1024

#: ``system``, ``user:<id>`` or ``team:<id>``.
OwnerName = Annotated[str, msgspec.Meta(pattern=r"(?s)^(system|(user|team):.+)\Z", max_length=255)]
SlotName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{0,40}\Z")]

#: An owner, a provider and a slot: no two records have the same.
Place = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class MovedKey:
    """A key in plain, on its way from one database to another."""

    owner: OwnerName
    provider: Annotated[str, msgspec.Meta(max_length=100)]
    slot: SlotName
    fields: dict[str, str] = field(repr=False)
    base_url: str | None
    label: str | None
    description: str | None
    active: bool
    expires_at: Moment | None
    created_at: Moment

    @property
    def place(self) -> Place:
        """Name where it belongs."""
        return self.owner, self.provider, self.slot


@dataclass(slots=True)
class Exported:
    """How many keys are in the file, and the places of those that do not open and are not."""

    keys: int = 0
    unreadable: list[Place] = field(default_factory=list)


def export_keys(
    accounts: AccountStore,
    keyring: Keyring,
    sealed: SealedWriter,
    *,
    owner: str | None = None,
) -> Exported:
    """Write all accounts' keys, or one owner's, into a sealed file, and close it.

    The audit log has first that it was begun: once for ``system``, and for each owner before the first of their
    keys. Whoever has the file in its place notes that it was done.
    """
    event = AuditEvent("cli", "export", "begun")
    accounts.audit.note("system", event)
    noted, result = {"system"}, Exported()
    for page in _pages(accounts, owner):
        for record in page:
            if record.owner not in noted:
                accounts.audit.note(record.owner, event)
                noted.add(record.owner)
            _export(keyring, record, sealed, result)
    sealed.close()
    return result


def read_keys(sealed: SealedReader) -> Iterator[MovedKey]:
    """Yield the keys of a sealed file.

    :raises SealedFileError: it does not open, or holds something else.
    """
    decoder = msgspec.json.Decoder(MovedKey)
    for line in _lines(sealed):
        try:
            yield decoder.decode(line)
        except ValueError:  # its text could show what was in the line
            raise SealedFileError(_NO_KEY) from None


def _pages(accounts: AccountStore, owner: str | None) -> Iterator[list[CredentialRecord]]:
    after: str | None = ""
    while after is not None:
        page, after = accounts.page(None if owner is None else [owner], after=after, limit=PAGE)
        yield page


def _export(
    keyring: Keyring, record: CredentialRecord, sealed: SealedWriter, result: Exported
) -> None:
    key = open_key(keyring, record)
    if key is None:
        result.unreadable.append(place_of(record))
        return
    sealed.write(msgspec.json.encode(key) + b"\n")
    result.keys += 1


def open_key(keyring: Keyring, record: CredentialRecord) -> MovedKey | None:
    """Return a stored key in plain, None where it does not open."""
    try:
        fields, base_url = keyring.open_record("account", record.owner, record)
    except UnreadableCredentialError:
        return None
    return MovedKey(
        owner=record.owner,
        provider=record.provider,
        slot=record.slot,
        fields={name: secret.reveal() for name, secret in fields.items()},
        base_url=base_url,
        label=record.label,
        description=record.description,
        active=record.active,
        expires_at=record.expires_at,
        created_at=record.created_at,
    )


def place_of(record: CredentialRecord) -> Place:
    """Name where a record belongs."""
    return record.owner, record.provider, record.slot


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > LONGEST_LINE:
            raise SealedFileError(_NO_KEY)
    if rest:
        yield rest
