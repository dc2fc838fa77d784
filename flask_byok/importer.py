"""Take in the keys that came from another database."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from .catalog import Catalog
from .credentials import CredentialRecord, Secret
from .errors import ByokError, KeyExistsError, StoreError
from .intake import read_typed
from .keyring import Context, Keyring
from .sealing import new_record
from .settings import Settings
from .stores.base import AuditEvent
from .transfer import PAGE, MovedKey, Place, open_key, place_of

if TYPE_CHECKING:
    from .stores.accounts import AccountStore

#: How often an import tries to write a key, and seconds between: of many keys, one is slow.
TRIES, PAUSE = 5, 1.0


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


def _same(one: MovedKey | None, other: MovedKey) -> bool:
    """Compare all but when they were saved."""
    return one is not None and dataclasses.replace(one, created_at=other.created_at) == other
