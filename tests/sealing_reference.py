"""The ciphertext format written a second time, from its description and by hand, to check the first."""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CODES = {"fernet": "f", "aes-256-gcm": "g"}


def seal(
    cipher: str,
    encryption_key: bytes,
    context: tuple[str, str, str, str],
    plaintext: bytes,
    *,
    nonce: bytes,
    time: int = 0,
) -> str:
    """Seal with a nonce (Fernet: the IV, 16 bytes; GCM: 12 bytes) and, for Fernet, a time in seconds."""
    info = encode(context)
    padded = len(plaintext).to_bytes(4, "big") + plaintext
    padded += bytes(-len(padded) % 512)
    if cipher == "fernet":
        raw = _fernet(expand(encryption_key, b"fernet" + info), padded, nonce, time)
    else:
        derived = expand(encryption_key, b"gcm" + info)
        raw = nonce + AESGCM(derived).encrypt(nonce, padded, info)
    payload = base64.urlsafe_b64encode(raw).decode()
    return f"byok1.{key_id(encryption_key)}.{CODES[cipher]}.{payload}"


def encode(context: tuple[str, str, str, str]) -> bytes:
    """Encode scope, owner, provider and slot, each after its length in four bytes."""
    encoded = b"flask-byok/v1"
    for part in context:
        raw = part.encode()
        encoded += len(raw).to_bytes(4, "big") + raw
    return encoded


def expand(encryption_key: bytes, info: bytes) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869, 2.3) for one block: T(1) = HMAC(key, info | 0x01)."""
    return hmac.digest(encryption_key, info + b"\x01", "sha256")


def key_id(encryption_key: bytes) -> str:
    """Name an encryption key: 12 hex digits of a hash."""
    return hashlib.sha256(b"flask-byok key id" + encryption_key).hexdigest()[:12]


def _fernet(derived: bytes, plaintext: bytes, iv: bytes, time: int) -> bytes:
    """Build a token as the Fernet specification says: AES-128-CBC, then HMAC-SHA256 over all of it."""
    signing, encrypting = derived[:16], derived[16:]
    filler = 16 - len(plaintext) % 16
    encryptor = Cipher(algorithms.AES(encrypting), modes.CBC(iv)).encryptor()
    sealed = encryptor.update(plaintext + bytes([filler]) * filler) + encryptor.finalize()
    body = b"\x80" + time.to_bytes(8, "big") + iv + sealed
    return body + hmac.digest(signing, body, "sha256")
