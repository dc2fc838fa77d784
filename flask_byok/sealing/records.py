"""What is inside a ciphertext, and what a ciphertext is bound to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec

from ..catalog import ProviderSpec
from ..errors import UnreadableCredentialError
from ..model.credential import (
    CredentialRecord,
    RecordedVerdict,
    Secret,
    Validation,
    make_hint,
    new_version,
    utcnow,
)
from ..model.owner import SessionRef
from .keyring import Context, Keyring


@dataclass(frozen=True, slots=True)
class Sealed:
    """The fields of a credential by name, and the base URL that the person gave with them."""

    fields: dict[str, str] = field(repr=False)
    base_url: str | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Sealed)


def session_owner(session: SessionRef, identity: str) -> str:
    """Name the owner of a session's record: ``session:<ref>``, with the signed-in identity where there is one."""
    return f"session:{session.ref}/{identity}" if identity else f"session:{session.ref}"


def seal(
    keyring: Keyring, context: Context, fields: Mapping[str, Secret], base_url: str | None
) -> str:
    """Seal the fields of a credential for one context."""
    plain = Sealed({name: secret.reveal() for name, secret in fields.items()}, base_url)
    return keyring.seal(_encoder.encode(plain), context)


def new_record(
    keyring: Keyring,
    context: Context,
    spec: ProviderSpec,
    fields: Mapping[str, Secret],
    base_url: str | None,
    *,
    label: str | None = None,
    description: str | None = None,
    active: bool = True,
    expires_at: datetime | None = None,
    validation: Validation | None = None,
) -> CredentialRecord:
    """Return the record of a new key, sealed, with what a check has just found."""
    now, version, api_key = utcnow(), new_version(), fields.get("api_key")
    found = None
    if validation is not None:
        found = RecordedVerdict(validation.verdict, validation.checked_at, version)
    return CredentialRecord(
        provider=spec.id,
        owner=context.owner,
        slot=context.slot,
        ciphertext=seal(keyring, context, fields, base_url),
        hint=make_hint(api_key.reveal() if api_key else "", spec.prefixes),
        version=version,
        created_at=now,
        updated_at=now,
        expires_at=expires_at,
        label=label,
        description=description,
        active=active,
        validity=found,
    )


def open_record(
    keyring: Keyring, scope: str, owner: str, record: CredentialRecord
) -> tuple[dict[str, Secret], str | None]:
    """Open a stored credential as the given owner's.

    :return: the fields by name, and the person's own base URL or None.
    :raises UnreadableCredentialError: it was sealed for something else, altered, or its key is gone.
    """
    context = Context(scope, owner, record.provider, record.slot)
    try:
        plain = _decoder.decode(keyring.open(record.ciphertext, context))
    except msgspec.DecodeError:
        raise UnreadableCredentialError(provider=record.provider) from None
    return {name: Secret(value) for name, value in plain.fields.items()}, plain.base_url


def in_slot(keyring: Keyring, record: CredentialRecord, slot: str) -> CredentialRecord:
    """Return an account's record as it is in another slot.

    :raises UnreadableCredentialError: it does not open.
    """
    if slot == record.slot:
        return record
    there = Context("account", record.owner, record.provider, slot)
    plain = keyring.open(record.ciphertext, there._replace(slot=record.slot))
    return replace(record, slot=slot, ciphertext=keyring.seal(plain, there))
