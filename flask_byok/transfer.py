"""Move accounts' keys between databases, through one file sealed with a passphrase.

The file's plaintext is a line of JSON for each key: what it takes to make its record anew, under any
encryption key. Verdicts and counts of use stay where they were made.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import msgspec

from .catalog import Catalog
from .credentials import CredentialRecord, Moment, Secret
from .errors import ByokError, KeyExistsError, StoreError
from .intake import read_typed
from .keyring import Context, Keyring
from .passphrase import SealedFileError, SealedReader, SealedWriter
from .sealing import new_record, open_record
from .settings import Settings
from .stores.base import AuditEvent

if TYPE_CHECKING:
    from .stores.accounts import AccountStore

#: Keys that are read from the database at a time.
PAGE = 200
#: How often an import tries to write a key, and seconds between: of many keys, one is slow.
TRIES, PAUSE = 5, 1.0

#: ``system``, ``user:<id>`` or ``team:<id>``.
OwnerName = Annotated[str, msgspec.Meta(pattern="^(system|(user|team):.+)$", max_length=255)]
SlotName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{0,40}$")]

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


@dataclass(slots=True)
class Imported:
    """How many keys were written, were there already, or stayed though the file's differ.

    ``left_out`` counts those that this app cannot take, by provider and reason.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    kept: int = 0
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Count all that were looked at."""
        return self.added + self.replaced + self.unchanged + self.kept + self.left_out.total()


def export_keys(
    accounts: AccountStore,
    keyring: Keyring,
    sealed: SealedWriter,
    *,
    owner: str | None = None,
) -> Exported:
    """Write all accounts' keys, or one owner's, into a sealed file, and close it.

    The audit log has it first: once for ``system``, and for each owner before the first of their keys.
    """
    event = AuditEvent("cli", "export")
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
            raise SealedFileError(
                "The file holds something that is not a key: was it made by a later version?"
            ) from None


class Importer:
    """Puts keys into the accounts, sealed with the encryption key that is used there.

    Each is written by itself, so an import that was interrupted is finished by running it again.

    :param replace: put the file's key in the place of a different one; else that one stays.
    :param dry_run: only count what would be done.
    """

    def __init__(
        self,
        accounts: AccountStore,
        keyring: Keyring,
        catalog: Catalog,
        settings: Settings,
        *,
        replace: bool = False,
        dry_run: bool = False,
    ) -> None:
        self.result = Imported()
        self._accounts = accounts
        self._keyring = keyring
        self._catalog = catalog
        self._settings = settings
        self._replace = replace
        self._dry_run = dry_run

    def run(self, keys: Iterable[MovedKey], progress: Callable[[int], object] = int) -> Imported:
        """Take in all these keys, and return what became of them.

        :param progress: called with how many are done.
        """
        if not self._dry_run:
            self._accounts.audit.note("system", AuditEvent("cli", "import"))
        waiting = iter(keys)
        while batch := list(islice(waiting, PAGE)):
            present = self._present(batch)
            for key in batch:
                self._take_patiently(key, present)
            progress(self.result.total)
        return self.result

    def _present(self, batch: list[MovedKey]) -> dict[Place, MovedKey | None]:
        """Return what the database has in these places; None is a key that does not open."""
        records = self._accounts.find(list(dict.fromkeys(key.owner for key in batch)))
        return {_place(record): _opened(self._keyring, record) for record in records}

    def _take_patiently(self, key: MovedKey, present: dict[Place, MovedKey | None]) -> None:
        """Take a key in; where the database does not answer, look what became of it and try again."""
        for _ in range(TRIES - 1):
            try:
                self._take(key, present)
                return
            except StoreError:
                time.sleep(PAUSE)
                with suppress(StoreError):
                    present |= self._present([key])
        self._take(key, present)

    def _take(self, key: MovedKey, present: dict[Place, MovedKey | None]) -> None:
        try:
            key = self._clean(key)
        except ByokError as error:
            self.result.left_out[key.provider, str(error)] += 1
            return
        if _same(present.get(key.place), key):
            self.result.unchanged += 1
        elif key.place in present and not self._replace:
            self.result.kept += 1
        elif self._write(key):
            self._count(replaced=key.place in present)
            present[key.place] = key

    def _count(self, *, replaced: bool) -> None:
        if replaced:
            self.result.replaced += 1
        else:
            self.result.added += 1

    def _clean(self, key: MovedKey) -> MovedKey:
        """Return a key as it would be, had it been typed here.

        :raises ByokError: this app cannot take it.
        """
        spec = self._catalog.get(key.provider)
        fields = {name: Secret(value) for name, value in key.fields.items()}
        typed = read_typed(spec, fields, key.base_url, self._settings)
        return dataclasses.replace(
            key, provider=spec.id, fields=typed.revealed(), base_url=typed.base_url
        )

    def _write(self, key: MovedKey) -> bool:
        """Store a key; False where somebody saved one in its place meanwhile, which stays."""
        if self._dry_run:
            return True
        fields = {name: Secret(value) for name, value in key.fields.items()}
        event = AuditEvent("cli", "import", fingerprint=self._accounts.audit.fingerprint(fields))
        write = self._accounts.put if self._replace else self._accounts.create
        try:
            write(self._record(key, fields), event)
        except KeyExistsError:
            self.result.kept += 1
            return False
        return True

    def _record(self, key: MovedKey, fields: dict[str, Secret]) -> CredentialRecord:
        record = new_record(
            self._keyring,
            Context("account", *key.place),
            self._catalog.get(key.provider),
            fields,
            key.base_url,
            label=key.label,
            description=key.description,
            expires_at=key.expires_at,
        )
        return dataclasses.replace(record, active=key.active, created_at=key.created_at)


def _pages(accounts: AccountStore, owner: str | None) -> Iterator[list[CredentialRecord]]:
    after: str | None = ""
    while after is not None:
        page, after = accounts.page(None if owner is None else [owner], after=after, limit=PAGE)
        yield page


def _export(
    keyring: Keyring, record: CredentialRecord, sealed: SealedWriter, result: Exported
) -> None:
    key = _opened(keyring, record)
    if key is None:
        result.unreadable.append(_place(record))
        return
    sealed.write(msgspec.json.encode(key) + b"\n")
    result.keys += 1


def _opened(keyring: Keyring, record: CredentialRecord) -> MovedKey | None:
    """Return a stored key in plain, None where it does not open."""
    try:
        fields, base_url = open_record(keyring, "account", record.owner, record)
    except ByokError:
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


def _same(one: MovedKey | None, other: MovedKey) -> bool:
    """Compare all but when they were saved."""
    return one is not None and dataclasses.replace(one, created_at=other.created_at) == other


def _place(record: CredentialRecord) -> Place:
    return record.owner, record.provider, record.slot


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest
