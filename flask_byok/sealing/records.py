"""The record of a new key, and old names for what is in ``keyring`` and ``model.owner``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ..catalog import ProviderSpec
from ..model.credential import (
    CredentialRecord,
    RecordedVerdict,
    SealedRecord,
    Secret,
    Validation,
    make_hint,
    new_version,
    utcnow,
)
from ..model.owner import session_owner
from .keyring import Context, Keyring

__all__ = ["new_record", "open_record", "seal", "session_owner"]


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
    """Return the sealed record of a new key, with the verdict of its check."""
    now, version, api_key = utcnow(), new_version(), fields.get("api_key")
    found = None
    if validation is not None:
        found = RecordedVerdict(validation.verdict, validation.checked_at, version)
    return CredentialRecord(
        provider=spec.id,
        owner=context.owner,
        slot=context.slot,
        ciphertext=keyring.seal_fields(context, fields, base_url),
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


def seal(
    keyring: Keyring, context: Context, fields: Mapping[str, Secret], base_url: str | None
) -> str:
    """Seal the fields of a credential; see ``Keyring.seal_fields``."""
    return keyring.seal_fields(context, fields, base_url)


def open_record(
    keyring: Keyring, scope: str, owner: str, record: SealedRecord
) -> tuple[dict[str, Secret], str | None]:
    """Open a stored credential; see ``Keyring.open_record``."""
    return keyring.open_record(scope, owner, record)
