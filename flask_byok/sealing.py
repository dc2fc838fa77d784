"""What is inside a ciphertext, and what a ciphertext is bound to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from .credentials import CredentialRecord, Secret
from .errors import UnreadableCredentialError
from .keyring import Context, Keyring
from .owners import SessionRef


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
