"""Copy the operator's keys from environment variables and secret files into the accounts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ..catalog import ProviderSpec
from ..errors import ByokError, KeyExistsError
from ..keys.operator import EnvironmentKeys, OperatorKey, OperatorTier, SecretFileKeys, variables
from ..model.credential import make_hint, utcnow
from ..model.owner import Tier
from ..settings import Settings
from .transfer import Destination, MovedKey

Sources = Sequence[OperatorTier]
#: ``added``: it is stored now. ``kept``: what is stored stays. ``skipped``: it cannot be stored.
Outcome = Literal["added", "kept", "skipped"]

_REPLACED = "it replaces the stored key"
_SAME = "it is stored already"
_OTHER = "a key that differs, or does not serve, is stored; --replace puts this one in its place"
_LATER = "another variable or file of this provider comes first"
_NO_ROOM = "another key was saved meanwhile, or BYOK_KEYS_PER_PROVIDER leaves no room"


@dataclass(frozen=True, slots=True)
class Copied:
    """The outcome for one variable or secret file.

    ``removable``: the same key is stored, and serves until ``expires_at``.
    """

    provider: str
    tier: Tier
    name: str
    outcome: Outcome
    reason: str
    hint: str = ""
    removable: bool = False
    expires_at: datetime | None = None


def operator_sources(settings: Settings) -> Sources:
    """Return the places of the operator's keys, in the order in which they serve."""
    places: Sources = (SecretFileKeys(settings), EnvironmentKeys(settings))
    sources = {source.tier: source for source in places}
    order = dict.fromkeys([*settings.precedence, *sources])
    return [sources[tier] for tier in order if tier in sources]


def copy_keys(
    destination: Destination,
    sources: Sources,
    owner: str,
    *,
    replace: bool = False,
    dry_run: bool = False,
) -> Iterator[Copied]:
    """Copy each provider's first key to the owner's first slot; yield an outcome for every key found.

    :param replace: replace a stored key that differs, or that does not serve.
    :param dry_run: store nothing.
    """
    for spec in destination.catalog:
        slot = _FirstSlot(destination, owner, spec.id, replace=replace, dry_run=dry_run)
        is_first = True
        for tier, name, key in _search(destination, spec, sources, owner):
            if isinstance(key, ByokError):
                yield Copied(spec.id, tier, name, "skipped", str(key))
                continue
            outcome, reason = slot.take(key, is_first=is_first)
            removable = slot.has(key)
            ends = slot.expires_at if removable else None
            hint = make_hint(key.fields["api_key"], spec.prefixes)
            yield Copied(spec.id, tier, name, outcome, reason, hint, removable, ends)
            is_first = False


def _search(
    destination: Destination, spec: ProviderSpec, sources: Sources, owner: str
) -> Iterator[tuple[Tier, str, MovedKey | ByokError]]:
    """Yield each key, or the error that says why it cannot be stored."""
    for source in sources:
        for variable in variables(spec):
            name = variable
            key: MovedKey | ByokError
            try:
                found = source.read(spec, variable)
                if found is None:
                    continue
                name = found.name
                key = destination.clean(_moved(owner, spec, found))
            except ByokError as error:
                key = error
            yield source.tier, name, key


def _moved(owner: str, spec: ProviderSpec, key: OperatorKey) -> MovedKey:
    fields = {name: secret.reveal() for name, secret in key.fields.items()}
    return MovedKey(owner=owner, provider=spec.id, fields=fields, created_at=utcnow())


class _FirstSlot:
    """The owner's first slot for one provider, as it is while keys are copied."""

    def __init__(
        self, destination: Destination, owner: str, provider: str, *, replace: bool, dry_run: bool
    ) -> None:
        record = destination.find(owner, provider).get("")
        self._destination = destination
        self._taken = record is not None
        self._replace = replace
        self._dry_run = dry_run
        self._serving: MovedKey | None = None
        if record is not None and record.state(utcnow()) == "active":
            self._serving = destination.open(record)

    @property
    def expires_at(self) -> datetime | None:
        """The time at which the stored key expires."""
        return None if self._serving is None else self._serving.expires_at

    def has(self, key: MovedKey) -> bool:
        """Return True if this key is stored, and is active."""
        return self._serving is not None and self._serving.fields == key.fields

    def take(self, key: MovedKey, *, is_first: bool) -> tuple[Outcome, str]:
        """Store a key, or return the reason not to."""
        if self.has(key):
            return "kept", _SAME
        if not is_first:
            return "kept", _LATER
        if self._taken and not self._replace:
            return "kept", _OTHER
        if not self._dry_run:
            try:
                self._destination.store(key, replace=self._taken)
            except KeyExistsError:
                return "skipped", _NO_ROOM
        self._serving = key
        return "added", _REPLACED if self._taken else ""
