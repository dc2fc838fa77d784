"""Sealing, with vectors and a second implementation beside it."""

from __future__ import annotations

import base64
import itertools
import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok.errors import ConfigurationError, UnreadableCredentialError
from flask_byok.model.credential import CredentialRecord, Secret, utcnow
from flask_byok.sealing.keyring import (
    Context,
    Keyring,
    Sealed,
    UnknownKeyIdError,
    generate_encryption_key,
    parse_encryption_key,
)
from flask_byok.settings import Cipher
from tests import sealing_reference as reference

CIPHERS: tuple[Cipher, ...] = ("fernet", "aes-256-gcm")
CONTEXT = Context("session", "session:4f1c", "openai")
VECTORS = Path(__file__).parent / "vectors"
GENERATE: list[dict[str, Any]] = json.loads((VECTORS / "generate.json").read_text())
VERIFY: list[dict[str, Any]] = json.loads((VECTORS / "verify.json").read_text())
INVALID: dict[str, Any] = json.loads((VECTORS / "invalid.json").read_text())

both_ciphers = pytest.mark.parametrize("cipher", CIPHERS)


def opens(keyring: Keyring, ciphertext: str, context: Context = CONTEXT) -> bool:
    """Say whether a ciphertext opens; any error but ours is a failure of the test."""
    try:
        keyring.open(ciphertext, context)
    except UnreadableCredentialError:
        return False
    return True


# vectors


@pytest.mark.parametrize("vector", GENERATE, ids=lambda v: f"{v['cipher']} {v['time']}")
def test_vectors_to_generate(vector: dict[str, Any]) -> None:
    """The second implementation makes the vector's ciphertext from its parts, and the keyring opens it."""
    context = Context(**vector["context"])
    ciphertext = reference.seal(
        vector["cipher"],
        parse_encryption_key(vector["encryption_key"], "it"),
        (context.scope, context.owner, context.provider, context.slot),
        vector["plaintext"].encode(),
        nonce=bytes.fromhex(vector["nonce"]),
        time=vector["time"],
    )
    assert ciphertext == vector["ciphertext"]
    opened = Keyring(vector["encryption_key"]).open(ciphertext, context)
    assert opened == vector["plaintext"].encode()


@pytest.mark.parametrize("vector", VERIFY, ids=lambda v: v["name"])
def test_vectors_to_verify(vector: dict[str, Any]) -> None:
    """What was sealed once opens for ever, while its key is the current one or a fallback."""
    keyring = Keyring(vector["encryption_key"], vector["fallbacks"])
    ciphertext = vector["ciphertext"]
    opened = keyring.open(ciphertext, Context(**vector["context"]))
    assert opened == vector["plaintext"].encode()
    assert keyring.needs_rotation(ciphertext) == vector["needs_rotation"]


@pytest.mark.parametrize("vector", INVALID["vectors"], ids=lambda v: v["name"])
def test_invalid_vectors(vector: dict[str, Any]) -> None:
    """What is not ours is refused, and only an unknown key id is told apart."""
    keyring = Keyring(INVALID["encryption_key"])
    with pytest.raises(UnreadableCredentialError) as caught:
        keyring.open(vector["ciphertext"], Context(**vector["context"]))
    assert isinstance(caught.value, UnknownKeyIdError) == vector["unknown_key_id"]
    assert caught.value.code == "key_unreadable"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# the format


@both_ciphers
def test_sealed_text_has_four_parts(cipher: Cipher) -> None:
    """A ciphertext names its format, its key and its cipher, and differs each time."""
    material = bytes(range(32))
    keyring = Keyring(material.hex(), cipher=cipher)
    first, second = (keyring.seal(b"api key", CONTEXT) for _ in range(2))
    form, key_id, code, payload = first.split(".")
    assert (form, key_id) == ("byok1", reference.key_id(material))
    assert code == {"fernet": "f", "aes-256-gcm": "g"}[cipher]
    assert base64.urlsafe_b64decode(payload)
    assert first != second
    assert keyring.open(first, CONTEXT) == keyring.open(second, CONTEXT) == b"api key"


@both_ciphers
def test_second_implementation_reads_what_is_sealed(cipher: Cipher) -> None:
    """Taking nonce and time from a new ciphertext, the second implementation makes the same one."""
    material = bytes(range(32))
    ciphertext = Keyring(material.hex(), cipher=cipher).seal(b"api key", CONTEXT)
    raw = base64.urlsafe_b64decode(ciphertext.split(".")[3])
    nonce, time = (
        (raw[9:25], int.from_bytes(raw[1:9], "big")) if cipher == "fernet" else (raw[:12], 0)
    )
    parts = ("session", "session:4f1c", "openai", "")
    assert reference.seal(cipher, material, parts, b"api key", nonce=nonce, time=time) == ciphertext


@both_ciphers
def test_length_tells_nothing(cipher: Cipher) -> None:
    """Keys of 20 to 400 characters give ciphertexts of one length."""
    keyring = Keyring(generate_encryption_key(), cipher=cipher)
    assert len({len(keyring.seal(b"k" * size, CONTEXT)) for size in range(20, 401, 10)}) == 1


@both_ciphers
@given(plaintext=st.binary(max_size=1100))
def test_what_goes_in_comes_out(cipher: Cipher, plaintext: bytes) -> None:
    """Any bytes come back as they were, with any padding."""
    keyring = Keyring("ab" * 32, cipher=cipher)
    assert keyring.open(keyring.seal(plaintext, CONTEXT), CONTEXT) == plaintext


# nothing but the untouched ciphertext opens


@both_ciphers
def test_every_bit_flip_and_cut_is_refused(cipher: Cipher) -> None:
    """No bit of the text can be turned over, wherever it is, and no beginning and no end of it opens."""
    keyring = Keyring(generate_encryption_key(), cipher=cipher)
    ciphertext = keyring.seal(b"sk-proj-" + b"k" * 120, CONTEXT)
    flipped = (
        ciphertext[:place] + chr(ord(char) ^ 1 << bit) + ciphertext[place + 1 :]
        for place, char in enumerate(ciphertext)
        for bit in range(8)
    )
    assert [text for text in flipped if opens(keyring, text)] == []
    cut = [text for n in range(1, len(ciphertext)) for text in (ciphertext[:n], ciphertext[n:])]
    assert [text for text in cut if opens(keyring, text)] == []
    assert opens(keyring, ciphertext)


@both_ciphers
def test_spare_bits_are_refused(cipher: Cipher) -> None:
    """The last letter of base64 can be spelt in more than one way; only one of them opens."""
    keyring = Keyring(generate_encryption_key(), cipher=cipher)
    ciphertext = keyring.seal(b"k" * 600, CONTEXT)
    assert ciphertext.endswith("=")
    alphabet = string.ascii_letters + string.digits + "+/-_="
    spelt = [ciphertext[:-2] + one + other for one in alphabet for other in alphabet]
    assert [text for text in spelt if opens(keyring, text)] == [ciphertext]


@both_ciphers
@given(text=st.text(max_size=60) | st.text("byok1.fgA=_-", max_size=60))
def test_any_text_is_refused(cipher: Cipher, text: str) -> None:
    """Any text that lies in the store fails to open with our error and no other."""
    keyring = Keyring("ab" * 32, cipher=cipher)
    assert not opens(keyring, text)
    assert not opens(keyring, f"byok1.{keyring.key_ids[0]}.f.{text}")
    assert not opens(keyring, f"byok1.{keyring.key_ids[0]}.g.{text}")


OWNERS = ("session:1", "session:1/user:1", "user:1", "team:1")
PROVIDERS = ("openai", "groq", "anthropic")
SCOPES = ("session", "user", "team")
CONTEXTS = [
    Context(scope, owner, provider, slot)
    for scope, owner, provider, slot in itertools.product(SCOPES, OWNERS, PROVIDERS, ("", "work"))
]


@both_ciphers
def test_every_swap_is_refused(cipher: Cipher) -> None:
    """A ciphertext moved to any other owner, provider, scope or slot does not open."""
    keyring = Keyring(generate_encryption_key(), cipher=cipher)
    sealed = {context: keyring.seal(b"api key", context) for context in CONTEXTS}
    pairs = list(itertools.permutations(CONTEXTS, 2))
    assert len(pairs) == 72 * 71
    assert [pair for pair in pairs if opens(keyring, sealed[pair[0]], pair[1])] == []
    assert all(opens(keyring, sealed[context], context) for context in CONTEXTS)


few_letters = st.text("ab:/\0é", max_size=5)
contexts = st.builds(Context, few_letters, few_letters, few_letters, few_letters)


@given(one=contexts, other=contexts)
def test_encoding_is_injective(one: Context, other: Context) -> None:
    """Two contexts have one encoding only if they are equal."""
    assert (one.encode() == other.encode()) == (one == other)


# encryption keys


def test_current_key_seals_and_fallbacks_open() -> None:
    """After a rotation new texts carry the new key's id, old ones still open and ask to be sealed again."""
    old, new = generate_encryption_key(), generate_encryption_key()
    before, after = Keyring(old), Keyring(new, [old])
    ciphertext = before.seal(b"api key", CONTEXT)
    assert after.open(ciphertext, CONTEXT) == b"api key"
    assert after.needs_rotation(ciphertext)
    assert not before.needs_rotation(ciphertext)
    again = after.seal(b"api key", CONTEXT)
    assert not after.needs_rotation(again)
    assert Keyring(new).open(again, CONTEXT) == b"api key"
    assert after.key_ids == (again.split(".")[1], ciphertext.split(".")[1])
    with pytest.raises(UnknownKeyIdError):
        before.open(again, CONTEXT)


def test_other_cipher_needs_rotation() -> None:
    """Each cipher opens what the other sealed, and would seal it again."""
    encryption_key = generate_encryption_key()
    for mine, other in (CIPHERS, CIPHERS[::-1]):
        ciphertext = Keyring(encryption_key, cipher=other).seal(b"api key", CONTEXT)
        keyring = Keyring(encryption_key, cipher=mine)
        assert keyring.open(ciphertext, CONTEXT) == b"api key"
        assert keyring.needs_rotation(ciphertext)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda raw: base64.urlsafe_b64encode(raw).decode(), id="Fernet"),
        pytest.param(lambda raw: base64.urlsafe_b64encode(raw), id="Fernet bytes"),
        pytest.param(lambda raw: base64.b64encode(raw).decode() + "\n", id="base64 and line break"),
        pytest.param(lambda raw: raw.hex(), id="hex"),
        pytest.param(lambda raw: raw.hex().upper().encode(), id="HEX bytes"),
    ],
)
def test_forms_of_an_encryption_key(form: Any) -> None:
    """One key in any of its forms, as text or bytes, is one key."""
    raw = bytes(range(220, 252))
    assert parse_encryption_key(form(raw), "BYOK_ENCRYPTION_KEY") == raw
    assert Keyring(form(raw)).key_ids == (reference.key_id(raw),)


GOOD_KEY = base64.urlsafe_b64encode(bytes(range(100, 132))).decode()
MALFORMED = [
    "",
    " ",
    "hunter2-is-my-key",
    "ab" * 31,
    "ab" * 33,
    "zz" * 32,
    GOOD_KEY[:-2],
    GOOD_KEY + "AAAA",
    GOOD_KEY.replace("=", "é"),
    b"\xff" * 44,
    bytes(range(32)),
    1234567890,
    None,
]


@pytest.mark.parametrize("malformed", MALFORMED, ids=lambda value: repr(value)[:20])
def test_malformed_encryption_keys(malformed: Any) -> None:
    """A malformed key is refused with a sentence that names the setting, says what to do, and repeats nothing."""
    for setting, encryption_keys in (
        ("BYOK_ENCRYPTION_KEY", [malformed, []]),
        ("BYOK_ENCRYPTION_KEY_FALLBACKS", [GOOD_KEY, [malformed]]),
    ):
        with pytest.raises(ConfigurationError) as caught:
            Keyring(*encryption_keys)
        message = str(caught.value)
        assert message.startswith(f"{setting} ")
        assert "flask byok generate-key" in message
        shown = malformed.decode("latin1") if isinstance(malformed, bytes) else str(malformed)
        assert len(shown) < 5 or shown not in message
        assert caught.value.__cause__ is None


def test_generated_keys_differ() -> None:
    """Each generated encryption key is new and has 32 bytes."""
    made = {generate_encryption_key() for _ in range(50)}
    assert len(made) == 50
    assert {len(parse_encryption_key(key, "it")) for key in made} == {32}


def test_repr_shows_no_key() -> None:
    """A keyring shows the ids of its keys and nothing that opens anything."""
    old, new = generate_encryption_key(), generate_encryption_key()
    keyring = Keyring(new, [old])
    shown = f"{keyring!r} {keyring} {keyring._current!r} {keyring._keys}"
    for encryption_key in (old, new):
        raw = parse_encryption_key(encryption_key, "it")
        assert encryption_key not in shown
        assert raw.hex() not in shown
        assert repr(raw)[2:-1] not in shown
    assert all(key_id in repr(keyring) for key_id in keyring.key_ids)


# fields

KEYRING = Keyring("ab" * 32)


def open_record(ciphertext: str, owner: str = CONTEXT.owner) -> tuple[dict[str, str], str | None]:
    """Open a record with this ciphertext as its reader in the session does."""
    now = utcnow()
    facts = {"hint": "…", "version": "v1", "created_at": now, "updated_at": now}
    record = CredentialRecord("openai", owner, ciphertext, **facts)
    fields, base_url = KEYRING.open_record(CONTEXT.owner, record)
    return {name: secret.reveal() for name, secret in fields.items()}, base_url


@pytest.mark.parametrize("base_url", [None, "https://llm.example/v1"])
def test_fields_and_address_come_back(base_url: str | None) -> None:
    """What was sealed comes back: every field, and the address that it was given with."""
    fields = {"api_key": "sk-CANARY-1234", "region": "eu"}
    secrets = {name: Secret(value) for name, value in fields.items()}
    assert open_record(KEYRING.seal_fields(CONTEXT, secrets, base_url)) == (fields, base_url)


def test_owner_is_the_reader_not_what_the_record_says() -> None:
    """A record is opened as its reader's, so one that names another owner gains nothing by it."""
    other = "session:other"
    fields = {"api_key": Secret("sk-CANARY-1234")}
    theirs = KEYRING.seal_fields(Context("session", other, "openai"), fields, None)
    with pytest.raises(UnreadableCredentialError):
        open_record(theirs, other)


@pytest.mark.parametrize(
    "plain", [b"", b"{}", b'{"fields": {"api_key": 7}}', b"\xff", b"sk-bare-key"]
)
def test_odd_contents(plain: bytes) -> None:
    """What opens but is not ours inside is unreadable, and nothing of it is repeated."""
    with pytest.raises(UnreadableCredentialError) as caught:
        open_record(KEYRING.seal(plain, CONTEXT))
    assert "sk-bare-key" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_sealed_shows_no_key() -> None:
    """The plain form, alive for a moment, does not show its fields."""
    assert "CANARY" not in repr(Sealed({"api_key": "sk-CANARY-1234"}))
