"""Copy the operator's keys from environment variables and secret files into the accounts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from ..catalog import ProviderSpec
from ..errors import ByokError, KeyExistsError, KeyRefusedError, UnreadableCredentialError
from ..keys.checks import refuse_admin_key
from ..keys.operator import EnvironmentKeys, OperatorKey, SecretFileKeys
from ..keys.session_store import AuditEvent
from ..keys.typed import cut_short
from ..model.credential import CredentialRecord, Secret, make_hint, utcnow
from ..model.owner import Tier
from ..sealing.keyring import Context, Keyring
from ..sealing.records import new_record, open_record
from ..settings import Settings

if TYPE_CHECKING:
    from .store.keys import AccountStore

#: How a key that was found compares with what is stored. ``idle``: it is stored, and does not serve.
#: ``shadowed``: another variable of the same provider comes first. ``unusable``: it may not be stored,
#: or cannot be a key.
Kind = Literal["new", "same", "idle", "different", "shadowed", "unusable"]

Sources = Sequence[EnvironmentKeys | SecretFileKeys]


@dataclass(frozen=True, slots=True)
class Found:
    """A variable or secret file with a key of the operator's.

    ``problem`` says why it is unusable or idle; ``expires_at`` when what is stored ends, or would end.
    """

    spec: ProviderSpec
    tier: Tier
    name: str
    kind: Kind
    fields: dict[str, Secret] = dataclasses.field(default_factory=dict)
    problem: str = ""
    expires_at: datetime | None = None

    @property
    def hint(self) -> str:
        """Show as much of the key as may be shown."""
        return make_hint(self.fields["api_key"].reveal(), self.spec.prefixes) if self.fields else ""


def find_keys(
    accounts: AccountStore,
    keyring: Keyring,
    settings: Settings,
    specs: Sequence[ProviderSpec],
    sources: Sources,
    owner: str,
) -> Iterator[Found]:
    """Yield every key that the operator has for these providers, compared with the owner's stored ones.

    :param sources: where to look, the first one first.
    """
    records = accounts.find([owner], [spec.id for spec in specs])
    stored = {record.provider: record for record in records if not record.slot}
    for spec in specs:
        record = stored.get(spec.id)
        ends, is_first = cut_short(None, settings), True
        for tier, name, key in _search(spec, sources):
            if isinstance(key, ByokError):
                yield Found(spec, tier, name, "unusable", problem=str(key))
                continue
            fields = dict(key.fields)
            kind, state = _compare(keyring, record, fields)
            if kind == "same" and record is not None:
                yield Found(spec, tier, name, kind, fields, expires_at=record.expires_at)
            elif is_first:
                yield Found(spec, tier, name, kind, fields, state, ends)
            else:
                yield Found(spec, tier, name, "shadowed", fields)
            is_first = False


def store_key(
    accounts: AccountStore,
    keyring: Keyring,
    settings: Settings,
    found: Found,
    owner: str,
    *,
    replace: bool = False,
) -> bool:
    """Store a key that was found; False where somebody saved one meanwhile, or there is no room.

    :param replace: put it in the place of the one that was there when it was found.
    """
    record = new_record(
        keyring,
        Context("account", owner, found.spec.id),
        found.spec,
        found.fields,
        None,
        expires_at=found.expires_at,
    )
    event = AuditEvent("cli", "import", fingerprint=accounts.audit.fingerprint(found.fields))
    try:
        if replace and found.kind != "new":
            accounts.put(record, event, at_most=settings.keys_per_provider)
        else:
            accounts.create(record, event, at_most=settings.keys_per_provider)
    except KeyExistsError:
        return False
    return True


def _search(
    spec: ProviderSpec, sources: Sources
) -> Iterator[tuple[Tier, str, OperatorKey | ByokError]]:
    """Yield each variable's key, or what is wrong with it: not only that of the first one that has any."""
    for source in sources:
        for variable in spec.env:
            try:
                key = source.find(dataclasses.replace(spec, env=(variable,)))
                if key is not None:
                    yield source.tier, key.name, _allowed(spec, key)
            except UnreadableCredentialError as error:
                yield source.tier, variable, error


def _allowed(spec: ProviderSpec, key: OperatorKey) -> OperatorKey | ByokError:
    refused = refuse_admin_key(spec, {name: each.reveal() for name, each in key.fields.items()})
    return key if refused is None else KeyRefusedError(refused, provider=spec.id)


def _compare(
    keyring: Keyring, record: CredentialRecord | None, fields: dict[str, Secret]
) -> tuple[Kind, str]:
    """Compare a key with what is stored, and say in which state that is if it does not serve."""
    if record is None:
        return "new", ""
    if _opened(keyring, record) != fields:
        return "different", ""
    state = record.state(utcnow())
    return ("same", "") if state == "active" else ("idle", state)


def _opened(keyring: Keyring, record: CredentialRecord) -> dict[str, Secret] | None:
    try:
        return open_record(keyring, "account", record.owner, record)[0]
    except UnreadableCredentialError:
        return None
