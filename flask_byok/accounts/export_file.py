"""Encrypt a file with a passphrase, in the format of age (https://c2sp.org/age, version 1).

An export opens without this package: ``age --decrypt keys.age``. This module reads and writes files with
one passphrase and without ASCII armor. It does so itself because pyrage, the library for Python, takes a
work factor for scrypt from the speed of the machine, with no option for another: often 2**20, which needs 1 GiB.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import unicodedata
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ..errors import ByokError

#: Binary logarithm of scrypt's N. OWASP's Password Storage Cheat Sheet asks for at least 17, with
#: r = 8 and p = 1: 128 MiB for each guess.
WORK_FACTOR = 17
#: The largest work factor that is read: 256 MiB. It is age's own default.
LARGEST_WORK_FACTOR = 18
#: Most bytes of a file; it is held in memory as a whole. About 300,000 keys.
LARGEST_FILE = 128 * 1024 * 1024

_CHUNK, _TAG = 64 * 1024, 16
_HEADER = re.compile(
    rb"(age-encryption\.org/v1\n"
    rb"-> scrypt ([A-Za-z0-9+/]{22}) ([1-9][0-9]?)\n([A-Za-z0-9+/]{43})\n"
    rb"---) ([A-Za-z0-9+/]{43})\n"
)

_UNKNOWN = "This is not a file that 'flask byok export' has written."
_WRONG = "The passphrase is wrong, or the file was altered or cut off."
_ALTERED = "The file was altered or cut off."
_COSTLY = "Opening this file would take too much memory or time."
_TOO_LARGE = (
    f"The file would be larger than {LARGEST_FILE // 1024**2} MiB. Use one file for each --owner."
)


class SealedFileError(ByokError):
    """Raised when a sealed file cannot be opened or made."""

    code, title = "sealed_file", "The file cannot be opened"


def encrypt(plaintext: bytes, passphrase: str) -> bytes:
    """Return a file that opens with the passphrase.

    :raises SealedFileError: the file would be larger than ``LARGEST_FILE``.
    """
    file_key, salt, nonce = os.urandom(16), os.urandom(16), os.urandom(16)
    wrapped = _wrapping(passphrase, salt, WORK_FACTOR).encrypt(bytes(12), file_key, None)
    stanza = b"-> scrypt %b %d\n%b" % (_base64(salt), WORK_FACTOR, _base64(wrapped))
    header = b"age-encryption.org/v1\n%b\n---" % stanza
    cipher = ChaCha20Poly1305(_derive(file_key, nonce, b"payload"))
    chunks = [cipher.encrypt(number, chunk, None) for number, chunk in _chunks(plaintext, _CHUNK)]
    content = b"".join([header, b" ", _mac(file_key, header), b"\n", nonce, *chunks])
    if len(content) > LARGEST_FILE:
        raise SealedFileError(_TOO_LARGE)
    return content


def decrypt(content: bytes, passphrase: str) -> bytes:
    """Return the plaintext of a file, opened to its end.

    :raises SealedFileError: the passphrase is wrong; the file was altered or cut off, is another kind
        of file, or needs more memory than a file may.
    """
    found = _HEADER.match(content)
    if found is None:
        raise SealedFileError(_UNKNOWN)
    header, salt, factor, wrapped, mac = found.groups()
    if int(factor) > LARGEST_WORK_FACTOR or len(content) > LARGEST_FILE:
        raise SealedFileError(_COSTLY)
    try:
        wrapping = _wrapping(passphrase, _unbase64(salt), int(factor))
        file_key = wrapping.decrypt(bytes(12), _unbase64(wrapped), None)
    except InvalidTag:
        raise SealedFileError(_WRONG) from None
    except MemoryError:
        raise SealedFileError(_COSTLY) from None
    if not hmac.compare_digest(mac, _mac(file_key, header)):
        raise SealedFileError(_ALTERED)
    payload = content[found.end() :]
    nonce, sealed = payload[:16], payload[16:]
    cipher = ChaCha20Poly1305(_derive(file_key, nonce, b"payload"))
    try:
        return b"".join(
            cipher.decrypt(number, chunk, None) for number, chunk in _chunks(sealed, _CHUNK + _TAG)
        )
    except InvalidTag:
        raise SealedFileError(_ALTERED) from None


def _chunks(text: bytes, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield each chunk with its nonce: its number, and whether it is the last."""
    for number, start in enumerate(range(0, max(len(text), 1), size)):
        is_last = start + size >= len(text)
        yield number.to_bytes(11, "big") + bytes([is_last]), text[start : start + size]


def _wrapping(passphrase: str, salt: bytes, factor: int) -> ChaCha20Poly1305:
    """Derive the cipher that wraps the file's key; slow by intention."""
    # One passphrase typed on two systems may be two sequences of code points (RFC 8265, 4.2.2).
    typed = unicodedata.normalize("NFC", passphrase).encode()
    salt = b"age-encryption.org/v1/scrypt" + salt
    return ChaCha20Poly1305(Scrypt(salt, length=32, n=2**factor, r=8, p=1).derive(typed))


def _mac(file_key: bytes, header: bytes) -> bytes:
    return _base64(hmac.digest(_derive(file_key, b"", b"header"), header, "sha256"))


def _derive(file_key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), length=32, salt=salt, info=info).derive(file_key)


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _unbase64(text: bytes) -> bytes:
    return base64.b64decode(text + b"==")
