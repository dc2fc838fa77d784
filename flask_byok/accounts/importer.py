"""Take in the keys that came from another database."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal

from ..catalog import Catalog
from ..errors import ByokError, InvalidFieldError, KeyExistsError, KeyRefusedError, StoreError
from ..keys.checks import refuse_admin_key
from ..keys.notes import check_place, clean_note
from ..keys.session_store import AuditEvent
from ..keys.typed import Typed, cut_short, in_utc, read_typed
from ..model.credential import CredentialRecord, Secret, utcnow
from ..sealing.keyring import Context, Keyring
from ..sealing.records import new_record
from ..settings import Settings
from .store.slots import FIRST, serving_order
from .transfer import PAGE, MovedKey, Place, open_key, place_of

if TYPE_CHECKING:
    from .store.keys import AccountStore

#: How often an import tries to write a key, and seconds between: of many keys, one is slow.
TRIES, PAUSE = 5, 1.0

_NO_ROOM = "There is no room for another one: BYOK_KEYS_PER_PROVIDER is {}."


@dataclass(slots=True)
class Imported:
    """How many keys were written, were there already, or stayed though the file's differ.

    ``left_out`` counts those that this app cannot take, by provider and reason; ``without_room`` names the places
    of those for which there was no room.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    kept: int = 0
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    without_room: list[Place] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Count all that were looked at."""
        return self.added + self.replaced + self.unchanged + self.kept + self.left_out.total()


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
        # What a dry run would have added, by owner and provider.
        self._planned: Counter[tuple[str, str]] = Counter()

    def run(self, keys: Iterable[MovedKey], progress: Callable[[int], object] = int) -> Imported:
        """Take in all these keys, and return what became of them.

        :param progress: called with how many are done.
        """
        if not self._dry_run:
            self._accounts.audit.note("system", AuditEvent("cli", "import"))
        waiting = _as_they_serve(self._cleaned(keys))
        while batch := list(islice(waiting, PAGE)):
            present = self._present(batch)
            for key in batch:
                self._take_patiently(key, present)
            progress(self.result.total)
        return self.result

    def _present(self, batch: list[MovedKey]) -> dict[Place, MovedKey | None]:
        """Return what the database has in these places; None is a key that does not open."""
        records = self._accounts.find(list(dict.fromkeys(key.owner for key in batch)))
        return {place_of(record): open_key(self._keyring, record) for record in records}

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

    def _cleaned(self, keys: Iterable[MovedKey]) -> Iterator[MovedKey]:
        """Yield the keys that this app can take, and count the others."""
        for key in keys:
            try:
                yield self._clean(key)
            except ByokError as error:
                self.result.left_out[key.provider, str(error)] += 1

    def _take(self, key: MovedKey, present: dict[Place, MovedKey | None]) -> None:
        if self._is_same(present.get(key.place), key):
            self.result.unchanged += 1
        elif key.place in present:
            self._take_over(key)
        elif not self._has_room(key, present):
            self._leave_out(key)
        elif self._add(key):
            present[key.place] = key

    def _is_same(self, stored: MovedKey | None, key: MovedKey) -> bool:
        """Compare all but when they were saved.

        One that an earlier run cut short, as the longest lifetime asks, is the same as long as it serves.
        """
        if stored is None:
            return False
        ends, wanted = stored.expires_at, key.expires_at
        if self._settings.max_key_lifetime and ends and wanted and utcnow() < ends < wanted:
            wanted = ends
        return stored == dataclasses.replace(key, created_at=stored.created_at, expires_at=wanted)

    def _has_room(self, key: MovedKey, present: Iterable[Place]) -> bool:
        owner_and_provider = key.place[:2]
        taken = sum(place[:2] == owner_and_provider for place in present)
        return taken + self._planned[owner_and_provider] < self._settings.keys_per_provider

    def _clean(self, key: MovedKey) -> MovedKey:
        """Return a key as it would be, had it been typed here.

        :raises ByokError: this app cannot take it.
        """
        spec = self._catalog.get(key.provider)
        if re.search(r"[\x00-\x1f\x7f]", key.owner):
            raise InvalidFieldError("The owner's id has characters that cannot be printed.")
        typed = read_typed(spec, _secrets(key), key.base_url, self._settings)
        refused = refuse_admin_key(spec, typed.revealed())
        if refused is not None:
            raise KeyRefusedError(refused, provider=spec.id)
        check_place(key.owner, key.slot, typed.secrets, self._catalog)
        ends = None if key.expires_at is None else in_utc(key.expires_at, "expires_at", spec.id)
        return dataclasses.replace(
            key,
            provider=spec.id,
            fields=typed.revealed(),
            base_url=typed.base_url,
            label=self._note(key.label, "label", typed),
            description=self._note(key.description, "description", typed),
            expires_at=cut_short(ends, self._settings),
            created_at=in_utc(key.created_at, "created_at", spec.id),
        )

    def _note(
        self, text: str | None, name: Literal["label", "description"], typed: Typed
    ) -> str | None:
        return clean_note(text, name, typed.fields, self._catalog)

    def _take_over(self, key: MovedKey) -> None:
        """Put a key in the place of a different one, if so asked."""
        if not self._replace:
            self.result.kept += 1
            return
        if self._dry_run or self._written(self._accounts.put, key):
            self.result.replaced += 1

    def _add(self, key: MovedKey) -> bool:
        """Store a new key, and say so."""
        if self._dry_run:
            self._planned[key.place[:2]] += 1
            self.result.added += 1
            return False
        added = self._written(self._accounts.create, key)
        self.result.added += added
        return added

    def _written(self, write: Callable[..., object], key: MovedKey) -> bool:
        """Write a key, and say so; what somebody saved meanwhile in its place, or in the last one, stays."""
        try:
            write(*self._record_and_event(key), at_most=self._settings.keys_per_provider)
        except KeyExistsError:
            there = self._accounts.find([key.owner], [key.provider])
            if any(record.slot == key.slot for record in there):
                self.result.kept += 1
            else:
                self._leave_out(key)
            return False
        return True

    def _leave_out(self, key: MovedKey) -> None:
        reason = _NO_ROOM.format(self._settings.keys_per_provider)
        self.result.left_out[key.provider, reason] += 1
        self.result.without_room.append(key.place)

    def _record_and_event(self, key: MovedKey) -> tuple[CredentialRecord, AuditEvent]:
        fields = _secrets(key)
        fingerprint = self._accounts.audit.fingerprint(fields)
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
        # It is saved here now, whenever that was where it comes from: the longest lifetime counts from now.
        record = dataclasses.replace(
            record, active=key.active, created_at=key.created_at, set_at=record.created_at
        )
        return record, AuditEvent("cli", "import", fingerprint=fingerprint)


def _as_they_serve(keys: Iterable[MovedKey]) -> Iterator[MovedKey]:
    """Yield an owner's keys for a provider in the order that they serve in, so that the first get the room there is.

    Those that are off, have expired or are in further slots wait in memory; most people have none.
    """
    waiting, now = [], utcnow()

    def is_idle(key: MovedKey) -> bool:
        return not key.active or (key.expires_at is not None and key.expires_at <= now)

    for key in keys:
        if key.slot == FIRST and not is_idle(key):
            yield key
        else:
            waiting.append(key)
    yield from sorted(waiting, key=lambda key: (is_idle(key), serving_order(key.slot)))


def _secrets(key: MovedKey) -> dict[str, Secret]:
    return {name: Secret(value) for name, value in key.fields.items()}
