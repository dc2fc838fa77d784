"""Files that are encrypted with a passphrase, in the format of age."""

from __future__ import annotations

import base64
import os

import pytest

from flask_byok.accounts import export_file
from flask_byok.accounts.export_file import SealedFileError, decrypt, encrypt

WORDS = "correct horse battery staple"
CHUNK, SEALED = 65_536, 65_552
#: Made by rage 0.12.1 (https://github.com/str4d/rage), another implementation of the format, with these values.
FROM_RAGE = base64.b64decode(
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCA3Z2lLZUo0b01raHVUZVdQWkN1Ry9BIDEyCndpcXdYZENpMzNzT1FNY3RG"
    "U014MVZlRnVJc1JPbHVOd1VmSnVuTHNydTAKLS0tIGVCMnRBbjlyTGp2Wis2RHFIbHp3OUtzNXVPbWIvL0RmZW1uSjB5Q0wzdXcK"
    "FzJny64l9kxpnUkox22f69DsSYjsk+gEkrPMBa7jIRxuH47v"
)
FILE_KEY, SALT = "bcc4c70adf819240ddb72d0f78608250", "ee088a789e2832486e4de58f642b86fc"
NONCE = "173267cbae25f64c699d4928c76d9feb"


@pytest.fixture
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in no time."""
    monkeypatch.setattr(export_file, "WORK_FACTOR", 1)


def start_of(content: bytes) -> int:
    """Return where the chunks begin: after the header and a nonce."""
    return content.index(b"\n", content.index(b"\n---") + 1) + 1 + 16


def test_format_is_that_of_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another implementation's file opens, and is what we write with the same random values."""
    assert decrypt(FROM_RAGE, WORDS) == b"sk-\n"
    drawn = iter(map(bytes.fromhex, (FILE_KEY, SALT, NONCE)))
    monkeypatch.setattr(os, "urandom", lambda size: next(drawn))
    monkeypatch.setattr(export_file, "WORK_FACTOR", 12)
    assert encrypt(b"sk-\n", WORDS) == FROM_RAGE


@pytest.mark.usefixtures("_cheap")
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 200_001])
def test_what_was_encrypted_opens(size: int) -> None:
    """A text of any length comes back, and each file of it differs."""
    plaintext = bytes(number % 251 for number in range(size))
    content = encrypt(plaintext, WORDS)
    assert decrypt(content, WORDS) == plaintext
    assert encrypt(plaintext, WORDS) != content


def test_cost_is_as_owasp_asks() -> None:
    """A guess costs what OWASP's Password Storage Cheat Sheet asks for at least (N = 2**17)."""
    content = encrypt(b"x", WORDS)
    assert content.split(b"\n")[1].endswith(b" 17")
    assert decrypt(content, WORDS) == b"x"


@pytest.mark.usefixtures("_cheap")
def test_passphrases() -> None:
    """A wrong passphrase is named as such; an accent may be composed or apart."""
    with pytest.raises(SealedFileError, match="passphrase is wrong"):
        decrypt(encrypt(b"text", WORDS), WORDS + " ")
    content = encrypt(b"text", "caf\u00e9 am see und so")
    assert decrypt(content, "cafe\u0301 am see und so") == b"text"


@pytest.mark.usefixtures("_cheap")
def test_damaged_files() -> None:
    """A file that was cut off, altered, added to, or whose chunks moved does not open."""
    content = encrypt(bytes(2 * CHUNK + 100), WORDS)
    start, factor = start_of(content), content.index(b" 1\n")
    chunks = [content[at : at + SEALED] for at in range(start, len(content), SEALED)]
    ends = [*range(0, start, 7), start, start + SEALED, start + 2 * SEALED, len(content) - 1]
    orders = [(1, 0, 2), (0, 2, 1), (0, 0, 1, 2), (0, 2), (1, 2), (0, 1, 1, 2)]
    damaged = [content[:end] for end in ends]
    damaged += [content[:start] + b"".join(chunks[n] for n in order) for order in orders]
    # Other work factors would cost time.
    for at in [*range(factor), *range(factor + 2, start), *range(start, len(content), 4_999)]:
        changed = bytearray(content)
        changed[at] ^= 1
        damaged.append(bytes(changed))
    for each in [*damaged, content + b"\0"]:
        with pytest.raises(SealedFileError):
            decrypt(each, WORDS)


@pytest.mark.parametrize("factor", [b"19", b"99"])
def test_hostile_work_factor(factor: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that asks for much memory is refused before any is used."""
    monkeypatch.delattr(export_file, "Scrypt")
    with pytest.raises(SealedFileError, match="too much memory"):
        decrypt(FROM_RAGE.replace(b" 12\n", b" %b\n" % factor), WORDS)


@pytest.mark.usefixtures("_cheap")
def test_large_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file over the limit is neither written nor opened."""
    content = encrypt(bytes(1_000), WORDS)
    monkeypatch.setattr(export_file, "LARGEST_FILE", 1_000)
    with pytest.raises(SealedFileError, match="one file for each --owner"):
        encrypt(bytes(1_000), WORDS)
    with pytest.raises(SealedFileError, match="too much memory"):
        decrypt(content, WORDS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"sk-proj-1234567890",
        b"age-encryption.org/v1\n-> X25519 " + b"A" * 43 + b"\n" + b"A" * 43 + b"\n---",
        FROM_RAGE.replace(b" 12\n", b" 012\n"),
        FROM_RAGE.replace(b" 12\n", b" 0\n"),
        FROM_RAGE.replace(b"\n", b"\r\n"),
        base64.b64encode(FROM_RAGE),
        b"\xff" * 1000,
    ],
)
def test_other_files(content: bytes) -> None:
    """A file of another kind is named as such, and nothing of it is repeated."""
    with pytest.raises(SealedFileError, match="not a file that 'flask byok export'") as caught:
        decrypt(content, WORDS)
    assert "1234567890" not in str(caught.value)
