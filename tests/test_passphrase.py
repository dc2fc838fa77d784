"""Files that are sealed with a passphrase."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flask_byok.accounts import export_file as passphrase
from flask_byok.accounts.export_file import CHUNK, SealedFileError, SealedReader, SealedWriter

WORDS = "correct horse battery staple"
SEALED = CHUNK + 16


@pytest.fixture
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in no time."""
    monkeypatch.setattr(passphrase, "COST", (2, 8, 1))


def sealed(plaintext: bytes, words: str = WORDS) -> bytes:
    """Return a sealed file, written in odd pieces."""
    file = io.BytesIO()
    writer = SealedWriter(file, words)
    for start in range(0, len(plaintext), 10_007):
        writer.write(plaintext[start : start + 10_007])
    writer.close()
    return file.getvalue()


def opened(content: bytes, words: str = WORDS) -> bytes:
    """Return what a sealed file holds."""
    return b"".join(SealedReader(io.BytesIO(content), words))


def parts(content: bytes) -> tuple[bytes, list[bytes]]:
    """Split a file into its first line and its chunks."""
    end = content.index(b"\n") + 1
    body = content[end:]
    return content[:end], [body[at : at + SEALED] for at in range(0, len(body), SEALED)]


def header_with(content: bytes, **changes: Any) -> bytes:
    """Return a file with other words in its first line."""
    first, chunks = parts(content)
    return json.dumps(json.loads(first) | changes).encode() + b"\n" + b"".join(chunks)


@pytest.mark.usefixtures("_cheap")
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 200_001])
def test_what_was_sealed_opens(size: int) -> None:
    """A file of any length opens to what was written, again and again."""
    plaintext = bytes(number % 251 for number in range(size))
    reader = SealedReader(io.BytesIO(sealed(plaintext)), WORDS)
    assert b"".join(reader) == plaintext
    assert b"".join(reader) == plaintext


def test_cost_is_as_owasp_asks() -> None:
    """A guess costs what OWASP's Password Storage Cheat Sheet asks for at least, and the file says so."""
    content = sealed(b"x")
    header = json.loads(parts(content)[0])
    assert (header["kdf"], header["n"], header["r"], header["p"]) == ("scrypt", 2**17, 8, 1)
    assert opened(content) == b"x"


@pytest.mark.usefixtures("_cheap")
def test_two_files_differ() -> None:
    """The same passphrase and text make another file each time, with another salt."""
    one, other = parts(sealed(b"same")), parts(sealed(b"same"))
    assert json.loads(one[0])["salt"] != json.loads(other[0])["salt"]
    assert one[1] != other[1]


@pytest.mark.usefixtures("_cheap")
def test_another_passphrase() -> None:
    """Another passphrase is told as such."""
    with pytest.raises(SealedFileError, match="passphrase is wrong"):
        opened(sealed(b"text"), WORDS + " ")


@pytest.mark.usefixtures("_cheap")
def test_passphrase_typed_on_another_system() -> None:
    """It is the same passphrase with an accent composed or apart."""
    assert opened(sealed(b"text", "caf\u00e9 am see und so"), "cafe\u0301 am see und so") == b"text"


@pytest.mark.usefixtures("_cheap")
def test_cut_off_anywhere() -> None:
    """A file without its end does not open, also where it ends with a whole chunk."""
    content = sealed(bytes(3 * CHUNK))
    start = len(parts(content)[0])
    ends = [start, start + 1, start + 16, *(start + number * SEALED for number in (1, 2))]
    for end in [*ends, len(content) - 1, *range(start, len(content), 9_973)]:
        with pytest.raises(SealedFileError):
            opened(content[:end])


@pytest.mark.usefixtures("_cheap")
def test_altered_anywhere() -> None:
    """One bit that is not as written is found, wherever it is, and so is anything added."""
    content = sealed(bytes(2 * CHUNK + 100))
    for at in [*range(0, 110), *range(110, len(content), 4_999), len(content) - 1]:
        changed = bytearray(content)
        changed[at] ^= 1
        with pytest.raises(SealedFileError):
            opened(bytes(changed))
    with pytest.raises(SealedFileError, match="altered or cut off"):
        opened(content + b"\0")


@pytest.mark.usefixtures("_cheap")
@pytest.mark.parametrize(
    "order", [(1, 0, 2), (0, 2, 1), (0, 0, 1, 2), (0, 2), (1, 2), (0, 1, 1, 2)]
)
def test_chunks_moved(order: tuple[int, ...]) -> None:
    """Chunks that change places, are missing or come twice are found."""
    first, chunks = parts(sealed(bytes(2 * CHUNK + 100)))
    with pytest.raises(SealedFileError):
        opened(first + b"".join(chunks[number] for number in order))


@pytest.mark.usefixtures("_cheap")
def test_first_line_is_sealed_too() -> None:
    """A first line that says the same in other words is found."""
    with pytest.raises(SealedFileError, match="passphrase is wrong"):
        opened(header_with(sealed(b"text")))


@pytest.mark.usefixtures("_cheap")
@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2**19},
        {"n": 2**40},
        {"n": 2, "r": 2**25},
        {"n": 2, "r": 2**20, "p": 4},
        {"n": 2, "r": 33},
        {"p": 5},
    ],
)
def test_hostile_cost(changes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that asks for much memory or time is refused before any is spent."""
    content = sealed(b"text")
    monkeypatch.delattr(passphrase, "Scrypt")
    with pytest.raises(SealedFileError, match="more memory or time"):
        SealedReader(io.BytesIO(header_with(content, **changes)), WORDS)


@pytest.mark.usefixtures("_cheap")
@pytest.mark.parametrize("changes", [{"n": 1000}, {"n": 2**16, "r": 1}, {"n": 2**17, "r": 1}])
def test_cost_that_cannot_be(changes: dict[str, int]) -> None:
    """Numbers that scrypt does not take are one of our errors."""
    with pytest.raises(SealedFileError, match="more memory or time"):
        SealedReader(io.BytesIO(header_with(sealed(b"text"), **changes)), WORDS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"sk-proj-1234567890",
        b"{}\n",
        b'{"format":"flask-byok-export-1"}\n',
        b'{"format":"other","kdf":"scrypt","n":2,"r":8,"p":1,"salt":"AAAA"}\n',
        b'{"format":"flask-byok-export-1","kdf":"scrypt","n":0,"r":8,"p":1,"salt":"AAAA"}\n',
        b'{"format":"flask-byok-export-1","kdf":"scrypt","n":2,"r":-8,"p":1,"salt":"AAAA"}\n',
        b"\xff" * 1000,
    ],
)
def test_other_files(content: bytes) -> None:
    """What is no sealed file is told as such, and nothing of it is repeated."""
    with pytest.raises(SealedFileError, match="not a file that 'flask byok export'") as caught:
        SealedReader(io.BytesIO(content), WORDS)
    assert "1234567890" not in str(caught.value)


@pytest.mark.usefixtures("_cheap")
def test_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is AES-256-GCM under its number, the mark of the last, and the first line."""
    monkeypatch.setattr(passphrase.os, "urandom", lambda size: b"s" * size)
    first, chunks = parts(sealed(b"a" * CHUNK + b"b"))
    header = passphrase._read_header(first)
    cipher: AESGCM = header.aead(WORDS)
    assert header.salt == b"s" * 16
    assert cipher.decrypt(bytes(12), chunks[0], first) == b"a" * CHUNK
    assert cipher.decrypt(bytes(10) + b"\x01\x01", chunks[1], first) == b"b"
