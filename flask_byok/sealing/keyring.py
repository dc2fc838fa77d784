"""Seal and open credentials with the operator's encryption keys, and find a wrong one at the start.

A ciphertext is ``byok1.<key_id>.<cipher>.<payload>``. It is bound to a :class:`Context`: under another owner,
provider, slot or scope it does not open. Fernet has no associated data, so each context gets a key of its own,
derived with HKDF-SHA256 (RFC 5869); AES-256-GCM also takes the context as associated data.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ..errors import ConfigurationError, UnreadableCredentialError
from ..model.credential import CredentialRecord, Fields, Secret
from ..settings import Cipher

#: Plaintexts are padded to a multiple of this many bytes; a Fernet token's length would tell the provider's family.
PADDING = 512

#: How many derived keys each encryption key keeps ready.
DERIVED_KEYS = 1024

_FORMAT = "byok1"
_CODES: dict[Cipher, str] = {"fernet": "f", "aes-256-gcm": "g"}
_DOMAIN = b"flask-byok/v1"
_NONCE_BYTES = 12  # NIST SP 800-38D, section 8.2: 96 bits

_WRONG = (
    "BYOK_ENCRYPTION_KEY is not the one that this store was used with. Set the right one; if it was replaced on "
    "purpose, put the old one into BYOK_ENCRYPTION_KEY_FALLBACKS. If it is lost, no key stored so far opens any more; "
    "to start with empty sessions, delete the canary {name!r}: 'byok:canary:{name}' in Redis, or its row in the table "
    "byok_canary."
)
#: Set in click's context by a command that shows a wrong encryption key, so needs an app in spite of it.
SHOWS_WRONG_KEY = "flask_byok.shows_wrong_encryption_key"


class Context(NamedTuple):
    """What a ciphertext is bound to."""

    scope: str
    owner: str
    provider: str
    slot: str = ""

    def encode(self) -> bytes:
        """Return an injective encoding: each part with its length in front, so no two contexts are equal."""
        parts = (part.encode() for part in self)
        return _DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def context_of(owner: str, provider: str, slot: str = "") -> Context:
    """Return what an owner's key is bound to; the name of the owner says if it is kept in a session."""
    scope = "session" if owner.startswith("session:") else "account"
    return Context(scope, owner, provider, slot)


#: The fields of an opened credential by name, and the person's own base URL or None.
Opened = tuple[dict[str, Secret], str | None]


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a ciphertext holds: the fields of a credential by name, and the base URL that the person gave."""

    fields: dict[str, str] = field(repr=False)
    base_url: str | None = None


_decoder = msgspec.json.Decoder(Sealed)


class UnknownKeyIdError(UnreadableCredentialError):
    """Raised when a ciphertext names an encryption key that we do not have: it was retired too early."""

    title = "The encryption key of this ciphertext is not configured"


class Keyring:
    """The current encryption key and its fallbacks.

    The current key seals; a ciphertext is opened by the key that it names. This is a class because deriving
    from the keys is done once, not at each call.

    :param encryption_key: Fernet key (44 characters of URL-safe base64) or 64 hex digits.
    :param fallbacks: retired keys of the same forms that still open what they sealed.
    :param cipher: how to seal; both ciphers always open.
    :raises ConfigurationError: a key is malformed.
    """

    def __init__(
        self,
        encryption_key: str | bytes,
        fallbacks: Iterable[str | bytes] = (),
        *,
        cipher: Cipher = "fernet",
    ) -> None:
        current = _Key(encryption_key, "BYOK_ENCRYPTION_KEY")
        retired = [_Key(key, "BYOK_ENCRYPTION_KEY_FALLBACKS") for key in fallbacks]
        #: Names of all keys, the current one first.
        self.key_ids = tuple(dict.fromkeys(key.key_id for key in (current, *retired)))
        self.cipher: Cipher = cipher
        self._current = current
        self._keys = {key.key_id: key for key in (*retired, current)}

    def __repr__(self) -> str:
        return f"Keyring(key_ids={self.key_ids!r}, cipher={self.cipher!r})"

    def seal(self, plaintext: bytes, context: Context) -> str:
        """Encrypt with the current key, bound to the context."""
        code = _CODES[self.cipher]
        payload = self._current.seal(code, _pad(plaintext), context)
        return f"{_FORMAT}.{self._current.key_id}.{code}.{payload}"

    def open(self, ciphertext: str, context: Context) -> bytes:
        """Decrypt what was sealed for this context.

        :raises UnknownKeyIdError: the key that sealed it is not in this keyring.
        :raises UnreadableCredentialError: altered, cut, moved to another context, or not ours.
        """
        parts = ciphertext.split(".")
        if len(parts) != 4 or parts[0] != _FORMAT:
            raise UnreadableCredentialError(provider=context.provider)
        _, key_id, code, payload = parts
        key = self._keys.get(key_id)
        if key is None:
            raise UnknownKeyIdError(provider=context.provider)
        try:
            return _unpad(key.open(code, payload, context))
        except (InvalidToken, InvalidTag, ValueError):
            raise UnreadableCredentialError(provider=context.provider) from None

    def needs_rotation(self, ciphertext: str) -> bool:
        """Return True if another key or cipher than the current one sealed this ciphertext."""
        return not ciphertext.startswith(self.seal_prefix)

    @property
    def seal_prefix(self) -> str:
        """Return the first characters of every ciphertext that is sealed now."""
        return f"{prefix_of(self._current.key_id)}{_CODES[self.cipher]}."

    def seal_fields(self, context: Context, fields: Fields, base_url: str | None) -> str:
        """Seal the fields of a credential, bound to the context."""
        plain = Sealed({name: secret.reveal() for name, secret in fields.items()}, base_url)
        return self.seal(msgspec.json.encode(plain), context)

    def open_record(self, owner: str, record: CredentialRecord) -> Opened:
        """Open a stored credential as this owner's; the owner that the record names is ignored.

        :param record: or a row of the database with its provider, slot and ciphertext.
        :raises UnreadableCredentialError: it was sealed for something else, altered, or its key is gone.
        """
        context = context_of(owner, record.provider, record.slot)
        try:
            plain = _decoder.decode(self.open(record.ciphertext, context))
        except msgspec.DecodeError:
            raise UnreadableCredentialError(provider=record.provider) from None
        return {name: Secret(value) for name, value in plain.fields.items()}, plain.base_url

    def renewed(self, record: CredentialRecord, owner: str | None = None) -> str | None:
        """Return a record's ciphertext, sealed with the current key; None if it does not open.

        :param owner: see ``open_record``; by default the one that the record names.
        """
        context = context_of(owner or record.owner, record.provider, record.slot)
        try:
            return self.seal(self.open(record.ciphertext, context), context)
        except UnreadableCredentialError:
            return None


@dataclass(eq=False, repr=False)
class Canary:
    """A sealed text in a store, which only the right encryption key opens: it shows a wrong one at the start, or at
    the first use of a store that was away then.

    That of a session store is fixed. That of the accounts' database is random, and keys the audit log: the log
    therefore outlives a change of the encryption key, as rotation seals this one text again.

    :param name: tells an app's canary from those of other apps in the same store.
    :param hold: returns the sealed text under a name, and keeps the given one if there is none or to
        ``replace`` it; see ``Documents.hold``.
    :param text: what is sealed at the first start.
    :param wrong: the message for an encryption key that does not open it.
    :param tolerant: do not look again at the first use.
    :param before: one that is looked at first: while ``SECRET_KEY`` is rotated, that of its old value, as this one may
        not be there yet.
    """

    keyring: Keyring
    name: str
    hold: Callable[..., str]
    text: bytes = b"flask-byok"
    wrong: str = _WRONG
    tolerant: bool = False
    before: Canary | None = None

    def __post_init__(self) -> None:
        self._context = Context("canary", "system", self.name)
        self._opened: bytes | None = None

    def secret(self) -> bytes:
        """Return the text, sealed at the first call ever and read once by each process.

        :raises ConfigurationError: it does not open, or the store's tables are too old.
        :raises StoreError: the store does not answer.
        """
        if self._opened is None:
            if self.before is not None:
                self.before.secret()
            held = self.hold(self.name, self.keyring.seal(self.text, self._context))
            try:
                self._opened = self.keyring.open(held, self._context)
            except UnreadableCredentialError:
                raise ConfigurationError(self.wrong.format(name=self.name)) from None
        return self._opened

    def confirm(self) -> None:
        """Look at the text if that was not possible at the start; see ``secret``."""
        if self._opened is None and not self.tolerant:
            self.secret()

    def reseal(self) -> None:
        """Seal the text with the current encryption key, unless that has sealed it already."""
        sealed = self.keyring.seal(self.secret(), self._context)
        if self.keyring.needs_rotation(self.hold(self.name, sealed)):
            self.hold(self.name, sealed, replace=True)


class _Key:
    """One encryption key and what is derived from it."""

    def __init__(self, text: str | bytes, setting: str) -> None:
        self._material = parse_encryption_key(text, setting)
        self.key_id = hashlib.sha256(b"flask-byok key id" + self._material).hexdigest()[:12]
        # One person's calls come in rows, and deriving takes as long as decrypting.
        self._fernet = lru_cache(DERIVED_KEYS)(self._derive_fernet)

    def seal(self, code: str, plaintext: bytes, context: Context) -> str:
        if code == "f":
            return self._fernet(context).encrypt(plaintext).decode()
        info = context.encode()
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self._derive(b"gcm" + info)).encrypt(nonce, plaintext, info)
        return base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, code: str, payload: str, context: Context) -> bytes:
        raw = _decode(payload)
        if code == "f":
            return self._fernet(context).decrypt(payload)
        if code == "g":
            info, nonce, sealed = context.encode(), raw[:_NONCE_BYTES], raw[_NONCE_BYTES:]
            return AESGCM(self._derive(b"gcm" + info)).decrypt(nonce, sealed, info)
        raise ValueError("unknown cipher")

    def _derive_fernet(self, context: Context) -> Fernet:
        return Fernet(base64.urlsafe_b64encode(self._derive(b"fernet" + context.encode())))

    def _derive(self, info: bytes) -> bytes:
        # The encryption key is uniformly random, so the extract step of HKDF may be left out (RFC 5869, 3.3).
        return HKDFExpand(SHA256(), 32, info).derive(self._material)


def prefix_of(key_id: str) -> str:
    """Return the first characters of every ciphertext that an encryption key has sealed."""
    return f"{_FORMAT}.{key_id}."


def generate_encryption_key() -> str:
    """Return a new encryption key for ``BYOK_ENCRYPTION_KEY``: 44 characters, 32 random bytes."""
    return Fernet.generate_key().decode()


def parse_encryption_key(text: str | bytes, setting: str) -> bytes:
    """Return the 32 bytes of an encryption key.

    :raises ConfigurationError: neither a Fernet key nor 64 hex digits; names the setting, not the value.
    """
    stripped = (text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)).strip()
    if re.fullmatch(r"[0-9a-fA-F]{64}", stripped):
        return bytes.fromhex(stripped)
    try:
        material = base64.b64decode(stripped.encode(), altchars=b"-_", validate=True)
    except ValueError:
        material = b""
    if len(material) != 32:
        raise ConfigurationError(
            f"{setting} is not an encryption key: it wants a Fernet key (44 characters of URL-safe base64) or "
            "64 hex digits. Make one with 'flask byok generate-key'."
        )
    return material


# What has stood in documentation (the specification of Fernet), and the SHA-256 of nothing and of an empty line, which
# a script makes of a variable that is not set.
_WELL_KNOWN = (
    "730ff4c7af3d46923e8ed451ee813c87f790b0a226bc96a92de49b5e9c05e1ee",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b",
)


def is_guessable(text: str | bytes) -> bool:
    """Return True if a well-formed encryption key is plainly no secret.

    That is a pattern that repeats, a sequence, fewer than 8 different bytes, or a known example. A random key is so
    once in 10**36.
    """
    try:
        material = parse_encryption_key(text, "")
    except ConfigurationError:
        return False
    steps = {(after - before) % 256 for before, after in pairwise(material)}
    repeats = any(material[period:] == material[:-period] for period in range(1, 17))
    few = len(steps) == 1 or len(set(material)) < 8
    return few or repeats or material.hex() in _WELL_KNOWN


def _decode(payload: str) -> bytes:
    """Decode base64 in the one spelling of its bytes.

    Decoders overlook stray characters and the spare bits of the last one (RFC 4648, 3.5).
    """
    raw = base64.urlsafe_b64decode(payload)
    if base64.urlsafe_b64encode(raw).decode() != payload:
        raise ValueError("not canonical base64")
    return raw


def _pad(plaintext: bytes) -> bytes:
    body = len(plaintext).to_bytes(4, "big") + plaintext
    return body + b"\0" * (-len(body) % PADDING)


def _unpad(padded: bytes) -> bytes:
    size = int.from_bytes(padded[:4], "big")
    if len(padded) % PADDING or size > len(padded) - 4:
        raise ValueError("wrong padding")
    return padded[4 : 4 + size]
