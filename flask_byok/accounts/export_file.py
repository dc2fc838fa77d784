"""Seal a file with a passphrase.

The first line is JSON and says how the passphrase becomes a key (scrypt, RFC 7914). Then come chunks,
each sealed with AES-256-GCM by the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár,
"Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015): the nonce is
the chunk's number and whether it is the last, and the first line is associated data. So a chunk that
is missing, moved or repeated does not open, and neither does a file that was cut off or added to,
while no more than two chunks are in memory.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, BinaryIO, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ..errors import ByokError

#: Plaintext bytes in each chunk but the last.
CHUNK = 64 * 1024
#: OWASP's Password Storage Cheat Sheet asks for at least n=2**17, r=8, p=1: 128 MiB for each guess.
COST = (2**17, 8, 1)
#: Most memory that a file may make us use, in bytes: scrypt takes 128 * r * (n + p) of its numbers.
MOST_MEMORY = 256 * 1024 * 1024
#: Most r and p that a file may have.
MOST_BLOCKS, MOST_ROUNDS = 32, 4

_TAG_BYTES = 16
_SALT_BYTES = 16
_NUMBER_BYTES = 11  # with one for the mark of the last: the 96 bits of a nonce
_LONGEST_HEADER = 512

_NOT_OURS = "This is not a file that 'flask byok export' has written."
_FIRST = "The passphrase is wrong, or the file was altered or cut off."
_LATER = "The file was altered or cut off."
_TOO_MUCH = (
    "Opening this file would take more memory or time than is allowed, or than there is: 'flask byok "
    "export' writes no such file."
)


class SealedFileError(ByokError):
    """Raised when a sealed file does not open: another passphrase, altered, cut off, or not ours."""

    code, title = "sealed_file", "The file cannot be opened"


@dataclass(frozen=True, slots=True)
class _Header:
    """The first line. ``salt`` is new for each file, so no two have the same key."""

    format: Literal["flask-byok-export-1"]
    kdf: Literal["scrypt"]
    n: Annotated[int, msgspec.Meta(ge=2)]
    r: Annotated[int, msgspec.Meta(ge=1)]
    p: Annotated[int, msgspec.Meta(ge=1)]
    salt: bytes

    def aead(self, passphrase: str) -> AESGCM:
        """Derive the file's cipher; this is meant to take a while."""
        # One passphrase typed on two systems may be two sequences of code points (RFC 8265, 4.2.2).
        typed = unicodedata.normalize("NFC", passphrase).encode()
        return AESGCM(Scrypt(self.salt, 32, self.n, self.r, self.p).derive(typed))


class SealedWriter:
    """Writes a sealed file. Without ``close`` it has no end, and does not open."""

    def __init__(self, file: BinaryIO, passphrase: str) -> None:
        header = _Header("flask-byok-export-1", "scrypt", *COST, os.urandom(_SALT_BYTES))
        self._file = file
        self._first_line = msgspec.json.encode(header) + b"\n"
        self._aead = header.aead(passphrase)
        self._waiting = bytearray()
        self._number = 0
        file.write(self._first_line)

    def write(self, plaintext: bytes) -> None:
        """Add to the plaintext."""
        self._waiting += plaintext
        while len(self._waiting) > CHUNK:
            self._seal(bytes(self._waiting[:CHUNK]), last=False)
            del self._waiting[:CHUNK]

    def close(self) -> None:
        """Write the last chunk; the file itself stays open."""
        self._seal(bytes(self._waiting), last=True)

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        nonce = _nonce(self._number, last)
        self._file.write(self._aead.encrypt(nonce, chunk, self._first_line))
        self._number += 1


class SealedReader:
    """Opens a sealed file. Each iteration yields its plaintext from the beginning, chunk by chunk.

    That it was cut off shows at its end only: whoever must not act on half a file iterates twice.

    :param file: one that can be read from any place.
    :raises SealedFileError: it is not ours, or asks for more memory than a file may; when iterating,
        the passphrase is wrong, or the file was altered.
    """

    def __init__(self, file: BinaryIO, passphrase: str) -> None:
        self._file = file
        self._first_line = file.readline(_LONGEST_HEADER)
        header = _read_header(self._first_line)
        try:
            self._aead = header.aead(passphrase)
        except (MemoryError, ValueError):  # too little memory, or numbers that do not go together
            raise SealedFileError(_TOO_MUCH) from None

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(len(self._first_line))
        number, chunk = 0, self._next()
        while following := self._next():
            yield self._open(number, chunk, last=False)
            number, chunk = number + 1, following
        yield self._open(number, chunk, last=True)

    def _next(self) -> bytes:
        return self._file.read(CHUNK + _TAG_BYTES)

    def _open(self, number: int, chunk: bytes, *, last: bool) -> bytes:
        try:
            return self._aead.decrypt(_nonce(number, last), chunk, self._first_line)
        except InvalidTag:
            raise SealedFileError(_LATER if number else _FIRST) from None


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big") + bytes([last])


def _read_header(line: bytes) -> _Header:
    try:
        header = msgspec.json.decode(line, type=_Header)
    except ValueError:
        raise SealedFileError(_NOT_OURS) from None
    memory = 128 * header.r * header.n
    if memory > MOST_MEMORY or header.r > MOST_BLOCKS or header.p > MOST_ROUNDS:
        raise SealedFileError(_TOO_MUCH)
    return header
