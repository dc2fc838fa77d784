"""What is said of a provider's key."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flask_byok.catalog import Catalog
from flask_byok.keys.lookup import Candidate, Lookup
from flask_byok.keys.status import Status, build_status, storage_sentence
from flask_byok.model.credential import (
    Credential,
    Secret,
)
from flask_byok.model.owner import OPERATOR_TIERS, Caller, Tier
from flask_byok.sealing.keyring import Keyring
from flask_byok.settings import Settings

KEYRING = Keyring("00" * 32)
OPENAI = Catalog().get("openai")


def status_of(tier: Tier, caller: Caller) -> Status:
    """Build the status of a provider with a key of the operator."""
    fields = {"api_key": Secret("sk-CANARY-operator")}
    credential = Credential("openai", tier, "system", fields, "https://x", hint="sk-…ator")
    found = [Candidate(tier, "active", credential, operator_name="OPENAI_API_KEY")]
    lookup = Lookup([], Settings())
    return build_status(OPENAI, found, caller=caller, lookup=lookup, keyring=KEYRING)


@pytest.mark.parametrize("tier", sorted(OPERATOR_TIERS))
def test_operators_key(tier: Tier) -> None:
    """Of an operator's key members see that it exists: no hint, no name of a variable; admins see the name."""
    status = status_of(tier, Caller(user="1"))
    assert (status["source"], status["has_key"], status["hint"]) == (tier, True, None)
    assert "OPENAI_API_KEY" not in f"{status}"
    admin = status_of(tier, Caller(user="1", admin=True))
    assert admin["operator_names"] == ["OPENAI_API_KEY"]


@pytest.mark.parametrize(
    ("ttl", "words"),
    [
        (timedelta(hours=24), "24 hours"),
        (timedelta(days=30), "30 days"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(minutes=90), "90 minutes"),
        (timedelta(seconds=45), "45 seconds"),
        (timedelta(seconds=1), "1 second"),
    ],
)
def test_storage_sentence(ttl: timedelta, words: str) -> None:
    """The storage sentence follows from the settings."""
    sentence = storage_sentence(Settings(session_ttl=ttl), Caller(), "Redis")
    assert "kept in Redis for this session: deleted when you sign out" in sentence
    assert f"after {words} without use" in sentence
    assert "account" not in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "account stay in the database until you remove them. Keys for this session"),
        ({"max_key_lifetime": timedelta(days=90)}, "remove them, for 90 days at most."),
        ({"precedence": (Tier.USER,)}, "They stay in the database until you remove them."),
        ({"precedence": (Tier.SYSTEM, Tier.ENV)}, "It stores no keys of yours."),
        ({"precedence": (Tier.SESSION, Tier.ENV)}, "Redis for this session"),
        ({"allow_custom_providers": True}, "or the address set for it"),
    ],
)
def test_storage_sentence_with_an_account(changes: dict[str, Any], words: str) -> None:
    """A signed-in user reads what happens to keys in the account, if there are any."""
    settings = Settings(**changes)
    sentence = storage_sentence(settings, Caller(user="ann"), "Redis")
    assert words in sentence
    assert ("Keys in your account" in sentence) is {Tier.USER, Tier.SESSION}.issubset(
        settings.precedence
    )
