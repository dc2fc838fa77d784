"""What is inside a ciphertext."""

from __future__ import annotations

import dataclasses

import pytest

from flask_byok.errors import UnreadableCredentialError
from flask_byok.model.credential import CredentialRecord, Secret, utcnow
from flask_byok.sealing.keyring import Context, Keyring, Sealed

KEYRING = Keyring("ab" * 32)
OWNER = "session:4f1c"


def make_record(ciphertext: str, provider: str = "openai", slot: str = "") -> CredentialRecord:
    """Store a ciphertext as the service would."""
    now = utcnow()
    return CredentialRecord(
        provider=provider,
        owner=OWNER,
        ciphertext=ciphertext,
        hint="…",
        version="v1",
        created_at=now,
        updated_at=now,
        slot=slot,
    )


def seal_for(context: Context, base_url: str | None = None) -> str:
    """Seal two fields for a context."""
    fields = {"api_key": Secret("sk-CANARY-1234"), "region": Secret("eu")}
    return KEYRING.seal_fields(context, fields, base_url)


@pytest.mark.parametrize("base_url", [None, "https://llm.example/v1"])
def test_fields_and_address_come_back(base_url: str | None) -> None:
    """What was sealed comes back: every field, and the address that it was given with."""
    record = make_record(seal_for(Context("session", OWNER, "openai"), base_url))
    fields, opened_url = KEYRING.open_record("session", OWNER, record)
    assert {name: secret.reveal() for name, secret in fields.items()} == {
        "api_key": "sk-CANARY-1234",
        "region": "eu",
    }
    assert opened_url == base_url


def test_owner_is_the_reader_not_what_the_record_says() -> None:
    """A record is opened as its reader's, so one that names another owner gains nothing by it."""
    theirs = seal_for(Context("session", "session:other", "openai"))
    record = dataclasses.replace(make_record(theirs), owner="session:other")
    with pytest.raises(UnreadableCredentialError):
        KEYRING.open_record("session", OWNER, record)


@pytest.mark.parametrize(
    "context",
    [
        Context("user", OWNER, "openai"),
        Context("session", "session:other", "openai"),
        Context("session", OWNER, "groq"),
        Context("session", OWNER, "openai", "work"),
    ],
)
def test_record_from_elsewhere(context: Context) -> None:
    """A ciphertext from another scope, owner, provider or slot is unreadable here, and the error says no more."""
    with pytest.raises(UnreadableCredentialError) as caught:
        KEYRING.open_record("session", OWNER, make_record(seal_for(context)))
    assert caught.value.provider == "openai"


def test_address_cannot_be_swapped() -> None:
    """The address is inside the seal: who can write to the store cannot send a key elsewhere."""
    record = make_record(seal_for(Context("session", OWNER, "openai"), "https://llm.example/v1"))
    assert "llm.example" not in f"{record}"


@pytest.mark.parametrize(
    "plain", [b"", b"{}", b'{"fields": {"api_key": 7}}', b"\xff", b"sk-bare-key"]
)
def test_odd_contents(plain: bytes) -> None:
    """What opens but is not ours inside is unreadable, and nothing of it is repeated."""
    ciphertext = KEYRING.seal(plain, Context("session", OWNER, "openai"))
    with pytest.raises(UnreadableCredentialError) as caught:
        KEYRING.open_record("session", OWNER, make_record(ciphertext))
    assert "sk-bare-key" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_sealed_shows_no_key() -> None:
    """The plain form, alive for a moment, does not show its fields."""
    assert "CANARY" not in repr(Sealed({"api_key": "sk-CANARY-1234"}))
