"""What it takes to work with single keys in accounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..catalog import Catalog
from ..keys.checks import Checks, Notify
from ..keys.journal import Journal
from ..keys.lookup import Resolver
from ..model.credential import CredentialRecord, Secret
from ..model.owner import Tier
from ..sealing.keyring import Keyring
from ..sealing.records import open_record
from ..settings import Settings


class Limiter(Protocol):
    """Counts attempts: see ``stores.rates``."""

    def check(self, owner: str) -> None:
        """Count one attempt.

        :raises RateLimitedError: there were too many.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordParts:
    """What the verbs on records work with."""

    settings: Settings
    catalog: Catalog
    keyring: Keyring
    resolver: Resolver
    verdicts: Checks
    journal: Journal
    validate_limit: Limiter
    set_limit: Limiter
    notify: Notify

    def tell(self, event: str, record: CredentialRecord, **facts: str) -> None:
        """Send a signal about a record."""
        tier = tier_of(record.owner).value
        self.notify(event, {"provider": record.provider, "tier": tier, **facts})


def tier_of(owner: str) -> Tier:
    """Return the tier that an owner's keys belong to."""
    return Tier(owner.partition(":")[0])


def open_stored(
    parts: RecordParts, record: CredentialRecord
) -> tuple[dict[str, Secret], str | None]:
    """Open a record of an account: see ``open_record``."""
    return open_record(parts.keyring, "account", record.owner, record)
