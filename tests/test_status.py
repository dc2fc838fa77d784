"""What is said of a provider's key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flask_byok.catalog import Catalog
from flask_byok.keys.lookup import Candidate, Lookup
from flask_byok.keys.status import Status, build_status, storage_sentence
from flask_byok.model.credential import (
    Credential,
    CredentialRecord,
    RecordedVerdict,
    Secret,
    Verdict,
)
from flask_byok.model.owner import OPERATOR_TIERS, Caller, Tier
from flask_byok.settings import Settings

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
OPENAI = Catalog().get("openai")


def make_candidate(tier: Tier, state: Any = "active", **changes: Any) -> Candidate:
    """Make what a tier has."""
    if tier in OPERATOR_TIERS:
        fields = {"api_key": Secret("sk-CANARY-operator")}
        credential = Credential("openai", tier, "system", fields, "https://x", hint="sk-…ator")
        return Candidate(tier, state, credential, operator_name="OPENAI_API_KEY")
    facts: dict[str, Any] = {"created_at": NOW, "updated_at": NOW, "hint": "sk-…mine"} | changes
    return Candidate(
        tier, state, None, CredentialRecord("openai", "o", "CANARY", version="1", **facts)
    )


def status_of(
    *candidates: Candidate, caller: Caller | None = None, settings: Settings | None = None
) -> Status:
    """Build the status of one provider."""
    lookup = Lookup([], settings or Settings())
    caller = caller or Caller()
    return build_status(OPENAI, candidates, caller=caller, lookup=lookup, in_account=False)


def test_nothing_there() -> None:
    """Without any key the status says so, with all its fields."""
    assert status_of() == {
        "provider": "openai",
        "name": "OpenAI",
        "has_key": False,
        "source": None,
        "tiers": [],
        "can_override": True,
        "locked": False,
        "standalone": False,
        "hint": None,
        "label": None,
        "state": None,
        "validity": None,
        "created_at": None,
        "updated_at": None,
        "expires_at": None,
        "expires_soon": False,
        "last_used_at": None,
        "usage_count": 0,
        "promotable": False,
        "promotable_hint": None,
        "promotable_in_account": False,
        "fields": [OPENAI.fields[0].to_dict()],
        "get_key_url": "https://platform.openai.com/api-keys",
    }


def test_own_key() -> None:
    """A person's own key shows its hint, label, times and verdict, and no ciphertext."""
    status = status_of(
        make_candidate(
            Tier.SESSION,
            label="work",
            expires_at=NOW + timedelta(days=1),
            usage_count=3,
            validity=RecordedVerdict(Verdict.VALID, NOW, "1"),
        ),
        make_candidate(Tier.ENV),
    )
    assert (status["source"], status["tiers"]) == ("session", ["session", "env"])
    assert (status["hint"], status["label"], status["usage_count"]) == ("sk-…mine", "work", 3)
    assert status["expires_at"] == "2026-05-02T12:00:00.000Z"
    assert status["validity"] == {"verdict": "valid", "checked_at": "2026-05-01T12:00:00.000Z"}
    assert "CANARY" not in f"{status}"


def test_verdict_on_an_older_version() -> None:
    """A verdict on another version of the key is not shown."""
    validity = RecordedVerdict(Verdict.INVALID, NOW, "0")
    assert status_of(make_candidate(Tier.SESSION, validity=validity))["validity"] is None


@pytest.mark.parametrize("tier", sorted(OPERATOR_TIERS))
def test_operators_key(tier: Tier) -> None:
    """Of an operator's key members see that it exists: no hint, no name of a variable; admins see the name."""
    status = status_of(make_candidate(tier), caller=Caller(user="1"))
    assert (status["source"], status["has_key"], status["hint"]) == (tier, True, None)
    assert "OPENAI_API_KEY" not in f"{status}"
    admin = status_of(make_candidate(tier), caller=Caller(user="1", admin=True))
    assert admin["operator_names"] == ["OPENAI_API_KEY"]


def test_expired_key_alone() -> None:
    """An expired key is shown as such, and as no source."""
    status = status_of(make_candidate(Tier.SESSION, "expired"))
    assert (status["has_key"], status["source"], status["state"]) == (False, None, "expired")
    assert status["tiers"] == ["session"]
    assert status["hint"] == "sk-…mine"


@pytest.mark.parametrize("state", ["unreadable", "rejected"])
def test_key_that_stands_in_the_way(state: str) -> None:
    """An unreadable or refused key is shown as the source: it is what a call would meet."""
    status = status_of(make_candidate(Tier.SESSION, state), make_candidate(Tier.ENV))
    assert (status["source"], status["state"]) == ("session", state)


@pytest.mark.parametrize("others", [(), (Tier.SESSION,), (Tier.ENV,)])
def test_waiting_key(others: tuple[Tier, ...]) -> None:
    """A key that waits for its user is offered with its hint, whatever else there is, and is no source."""
    waiting = make_candidate(Tier.SESSION, "waiting", hint="sk-…wait")
    status = status_of(waiting, *map(make_candidate, others), caller=Caller(user="1"))
    assert (status["promotable"], status["promotable_hint"]) == (True, "sk-…wait")
    assert status["source"] == next(iter(others), None)
    assert status["tiers"] == list(others)


@pytest.mark.parametrize(
    ("settings", "can_override", "locked"),
    [
        (Settings(), True, False),
        (Settings(locked_providers=frozenset({"openai"})), False, True),
        (Settings(precedence=(Tier.ENV, Tier.SESSION)), False, True),
        (Settings(precedence=(Tier.ENV,)), False, True),
    ],
)
def test_locks(settings: Settings, can_override: bool, locked: bool) -> None:
    """Where only the operator's key counts, the status says that it cannot be changed."""
    status = status_of(make_candidate(Tier.ENV), settings=settings)
    assert (status["can_override"], status["locked"]) == (can_override, locked)


def test_personal_keys_off() -> None:
    """Without personal tiers nothing can be set, though no operator's key is there either."""
    status = status_of(settings=Settings(precedence=(Tier.ENV,)))
    assert (status["can_override"], status["locked"]) == (False, False)


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
