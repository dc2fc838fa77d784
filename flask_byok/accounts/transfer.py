"""Move keys between databases, by export to a file and import from it; copy the operator's keys into the accounts.

The file's plaintext has a line of JSON for each key, with all that another app needs to seal it under its
own encryption key. Verdicts and counts of uses are not in it.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Literal

import msgspec

from ..catalog import ProviderSpec
from ..catalog.paste import refuse_admin_key
from ..errors import ByokError, InvalidFieldError, KeyExistsError, UnreadableCredentialError
from ..keys.operator import OperatorKeys, main_variables
from ..keys.service import Service
from ..keys.typed import NewKey, in_utc
from ..model.credential import CredentialRecord, Moment, Secret, utcnow
from ..model.owner import Tier
from .changes import check_place
from .export_file import SealedFileError, decrypt, encrypt
from .store import AuditEvent, serving_order
from .wing import Wing

_NO_KEY = "The file holds something that is not a key: was it made by a later version?"
_NO_ROOM = "There is no room for another one: BYOK_KEYS_PER_PROVIDER is {}."

#: ``added``: it is stored now. ``kept``: what is stored stays. ``skipped``: it cannot be stored.
Copy = Literal["added", "kept", "skipped"]

_REPLACED = "it replaces the stored key"
_SAME = "it is stored already"
_OTHER = "a key that differs, or does not serve, is stored; --replace puts this one in its place"
_LATER = "another variable or file of this provider comes first"
_NO_ROOM_LEFT = "another key was saved meanwhile, or BYOK_KEYS_PER_PROVIDER leaves no room"


#: What is moved beside the key itself.
_BESIDE = ("label", "description", "active", "expires_at")

#: ``system``, ``user:<id>`` or ``team:<id>``.
OwnerName = Annotated[str, msgspec.Meta(pattern=r"(?s)^(system|(user|team):.+)\Z", max_length=255)]
SlotName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{0,40}\Z")]

#: An owner, a provider and a slot: each record has a place of its own.
Place = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedKey:
    """A decrypted key on its way into the accounts."""

    owner: OwnerName
    provider: Annotated[str, msgspec.Meta(max_length=100)]
    slot: SlotName = ""
    fields: dict[str, str] = field(repr=False)
    base_url: str | None = None
    label: str | None = None
    description: str | None = None
    active: bool = True
    expires_at: Moment | None = None
    created_at: Moment

    @property
    def place(self) -> Place:
        """The place that the key has in the accounts."""
        return self.owner, self.provider, self.slot

    def new(self) -> NewKey:
        """Return the key as one to store."""
        fields = {name: Secret(value) for name, value in self.fields.items()}
        beside = {name: getattr(self, name) for name in ("base_url", *_BESIDE)}
        return NewKey(fields=fields, imported=True, **beside)

    def is_idle(self) -> bool:
        """Return True if the key is switched off or has expired."""
        return not self.active or (self.expires_at is not None and self.expires_at <= utcnow())


class KeyTransfer:
    """The accounts that keys are moved into, or out of."""

    def __init__(self, core: Service, wing: Wing) -> None:
        self.accounts = wing.store
        self.catalog = core.catalog
        self.settings = core.settings
        self._core = core
        self._shelf = wing.everything(core)

    def find(self, owner: str, provider: str) -> dict[str, CredentialRecord]:
        """Return an owner's records for a provider, by slot."""
        return {record.slot: record for record in self.accounts.find([owner], [provider])}

    def open(self, record: CredentialRecord) -> MovedKey | None:
        """Decrypt a stored key; return None if it does not open."""
        try:
            fields, base_url = self._core.keyring.open_record(record.owner, record)
        except UnreadableCredentialError:
            return None
        plain = {name: secret.reveal() for name, secret in fields.items()}
        names = ("owner", "provider", "slot", "created_at", *_BESIDE)
        facts = {name: getattr(record, name) for name in names}
        return MovedKey(fields=plain, base_url=base_url, **facts)

    def clean(self, key: MovedKey) -> MovedKey:
        """Return a key as it would be, had a person typed it in this app.

        :raises ByokError: this app does not take it.
        """
        core, new = self._core, key.new()
        spec = self.catalog.get_typed(key.provider, new.fields)
        if re.search(r"[\x00-\x1f\x7f]", key.owner):
            raise InvalidFieldError("The owner's id has characters that cannot be printed.")
        typed, new = core.saver.read(spec, new)
        if validation := refuse_admin_key(spec, typed.fields):
            raise InvalidFieldError(validation.reason, provider=spec.id)
        check_place(key.owner, key.slot, typed.secrets, self.catalog)
        return dataclasses.replace(
            key,
            provider=spec.id,
            fields=typed.revealed(),
            base_url=typed.base_url,
            label=new.label,
            description=new.description,
            expires_at=new.expires_at,
            created_at=in_utc(key.created_at, "created_at", spec.id),
        )

    def store(self, key: MovedKey, *, replace: bool) -> None:
        """Store a key by the recipe of ``keys.save``, logged as an import.

        :param replace: put it in the place of the stored one.
        :raises KeyExistsError: its slot is taken (unless ``replace``), or there is no room for another key.
        """
        self._shelf.put(
            key.owner,
            key.provider,
            key.new(),
            slot=key.slot,
            replace=replace,
            action="import",
            created_at=key.created_at,
        )


# export


def export_keys(
    transfer: KeyTransfer, owner: str | None = None
) -> tuple[list[MovedKey], list[Place]]:
    """Return the decrypted keys of all accounts, or of one owner, and the places of unreadable ones.

    The audit log has the export as begun, under ``system`` and under each owner, before a key of that owner is
    opened. The caller logs that it was done.
    """
    note, event = transfer.accounts.audit.note, AuditEvent("cli", "export", "begun")
    note("system", event)
    logged = {"system"}
    keys, unreadable = list[MovedKey](), list[Place]()
    for record in transfer.accounts.every(owner):
        if record.owner not in logged:
            note(record.owner, event)
            logged.add(record.owner)
        key = transfer.open(record)
        if key is None:
            unreadable.append((record.owner, record.provider, record.slot))
        else:
            keys.append(key)
    return keys, unreadable


def to_file(keys: Sequence[MovedKey], passphrase: str) -> bytes:
    """Return the content of a file with these keys.

    :raises SealedFileError: the file would be too large.
    """
    return encrypt(msgspec.json.Encoder().encode_lines(keys), passphrase)


def from_file(content: bytes, passphrase: str) -> list[MovedKey]:
    """Return the keys of a file.

    :raises SealedFileError: it does not open, or holds something else.
    """
    plaintext = decrypt(content, passphrase)
    try:
        return msgspec.json.Decoder(MovedKey).decode_lines(plaintext)
    except (ValueError, msgspec.DecodeError):  # its text could show a part of a key
        raise SealedFileError(_NO_KEY) from None


# import


@dataclass(slots=True)
class Imported:
    """The outcome of an import, in numbers of keys.

    ``kept``: a different key stayed in the account. ``left_out``: this app does not take the key, by provider
    and reason. ``without_room``: the places of keys that ``BYOK_KEYS_PER_PROVIDER`` leaves no room for.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    kept: int = 0
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    without_room: list[Place] = field(default_factory=list)

    @property
    def total(self) -> int:
        """The number of all keys that were looked at."""
        return self.added + self.replaced + self.unchanged + self.kept + self.left_out.total()


@dataclass
class Importer:
    """Stores keys in the accounts, each by itself: after an interruption, run the import again.

    :param replace: put the file's key in the place of a different one; otherwise that one stays.
    :param dry_run: count what would be done, and store nothing.
    """

    transfer: KeyTransfer
    replace: bool = False
    dry_run: bool = False
    result: Imported = field(default_factory=Imported)
    # Keys that a dry run would have added, by owner and provider.
    planned: Counter[tuple[str, str]] = field(default_factory=Counter)

    def run(self, keys: Iterable[MovedKey], progress: Callable[[int], object] = int) -> Imported:
        """Import the keys, those that serve before the others, and return the outcome.

        :param progress: called with the number of keys that are done.
        :raises StoreError: the database does not answer; what is stored by then stays.
        """
        if not self.dry_run:
            self.transfer.accounts.audit.note("system", AuditEvent("cli", "import"))
        for key in sorted(keys, key=lambda key: (key.is_idle(), serving_order(key.slot))):
            self._import(key)
            progress(self.result.total)
        return self.result

    def _import(self, key: MovedKey) -> None:
        try:
            key = self.transfer.clean(key)
        except ByokError as error:
            self.result.left_out[key.provider, str(error)] += 1
            return
        for is_last in (False, True):
            try:
                return self._take(key)
            except KeyExistsError as error:  # its owner has saved a key just now: compare with that
                if is_last:
                    self.result.left_out[key.provider, str(error)] += 1

    def _take(self, key: MovedKey) -> None:
        result, limit = self.result, self.transfer.settings.slots_of(key.provider)
        stored = self.transfer.find(key.owner, key.provider)
        there = stored.get(key.slot)
        if there is None and len(stored) + self.planned[key.place[:2]] >= limit:
            result.left_out[key.provider, _NO_ROOM.format(limit)] += 1
            result.without_room.append(key.place)
        elif there is None:
            self._store(key, replace=False)
            result.added += 1
        elif self._is_same(there, key):
            result.unchanged += 1
        elif self.replace:
            self._store(key, replace=True)
            result.replaced += 1
        else:
            result.kept += 1

    def _store(self, key: MovedKey, *, replace: bool) -> None:
        if not self.dry_run:
            self.transfer.store(key, replace=replace)
        elif not replace:
            self.planned[key.place[:2]] += 1

    def _is_same(self, record: CredentialRecord, key: MovedKey) -> bool:
        """Compare all but the time of saving.

        A key whose life an earlier import cut short (``BYOK_MAX_KEY_LIFETIME``) is the same until it expires.
        """
        stored = self.transfer.open(record)
        if stored is None:
            return False
        ends, wanted = stored.expires_at, key.expires_at
        is_limited = self.transfer.settings.max_key_lifetime is not None
        if is_limited and ends and wanted and utcnow() < ends < wanted:
            wanted = ends
        return stored == dataclasses.replace(key, created_at=stored.created_at, expires_at=wanted)


# the operator's keys


@dataclass(frozen=True, slots=True)
class Copied:
    """The outcome for one variable or secret file.

    ``removable``: the same key is stored, and serves until ``expires_at``.
    """

    provider: str
    tier: Tier
    name: str
    outcome: Copy
    reason: str
    hint: str = ""
    removable: bool = False
    expires_at: Moment | None = None


def copy_keys(
    transfer: KeyTransfer, owner: str, *, replace: bool = False, dry_run: bool = False
) -> Iterator[Copied]:
    """Copy each provider's first key to the owner's first slot; yield an outcome for every key found.

    :param replace: replace a stored key that differs, or that does not serve.
    :param dry_run: store nothing.
    """
    for spec in transfer.catalog:
        record = transfer.find(owner, spec.id).get("")
        is_active = record is not None and record.state(utcnow()) == "active"
        serving = transfer.open(record) if record and is_active else None
        is_first = True
        for tier, name, key in _search(transfer, spec, owner):
            if isinstance(key, ByokError):
                yield Copied(spec.id, tier, name, "skipped", str(key))
                continue
            outcome: Copy = "kept"
            if serving and serving.fields == key.fields:
                reason = _SAME
            elif not is_first:
                reason = _LATER
            elif record and not replace:
                reason = _OTHER
            else:
                try:
                    if not dry_run:
                        transfer.store(key, replace=record is not None)
                    outcome, reason, serving = "added", _REPLACED if record else "", key
                except KeyExistsError:
                    outcome, reason = "skipped", _NO_ROOM_LEFT
            same = serving if serving and serving.fields == key.fields else None
            hint = spec.hint({name: Secret(text) for name, text in key.fields.items()})
            ends = same.expires_at if same else None
            yield Copied(spec.id, tier, name, outcome, reason, hint, same is not None, ends)
            is_first = False


def _search(
    transfer: KeyTransfer, spec: ProviderSpec, owner: str
) -> Iterator[tuple[Tier, str, MovedKey | ByokError]]:
    """Yield each key, or the error that says why it cannot be stored, in the order in which they serve."""
    source = OperatorKeys(transfer.settings)
    order = sorted(source.tiers, key=[*transfer.settings.precedence, *source.tiers].index)
    for tier, name in product(order, main_variables(spec)):
        try:
            found = source.read(tier, spec, name)
            if found is None:
                continue
            name = found.name
            fields = {field: secret.reveal() for field, secret in found.fields.items()}
            key = MovedKey(owner=owner, provider=spec.id, fields=fields, created_at=utcnow())
            yield tier, name, transfer.clean(key)
        except ByokError as error:
            yield tier, name, error
