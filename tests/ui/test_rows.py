"""What a row says, from its status alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from flask_byok.settings import Settings
from flask_byok.web.ui import build_row

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


FOUND = {"can_persist": True, "precedence": ["session", "user", "team", "system", "env"]}


PLAIN = Settings()


def row(
    *, settings: Settings = PLAIN, found: dict[str, Any] = FOUND, **changes: Any
) -> dict[str, Any]:
    """Build the row of a provider whose key is the one in the person's account, unless changed."""
    status: dict[str, Any] = {
        "provider": "openai",
        "source": "user",
        "tiers": ["user"],
        "state": "active",
        "can_override": True,
        "promotable": False,
        "promotable_hint": None,
        "promotable_in_account": False,
        "hint": "sk-…mine",
        "label": None,
        "validity": None,
        "expires_at": None,
        "expires_soon": False,
        "fields": [],
    }
    return build_row(status | changes, found, settings, NOW)


@pytest.mark.parametrize(
    ("source", "tiers", "hint", "words", "actions"),
    [
        (None, [], "sk-…wait", "before signing in", ["promote"]),
        ("team", ["team"], None, "before signing in", ["promote"]),
        ("user", ["user"], "sk-…mine", "Your account has another", ["promote", "confirm"]),
        ("session", ["session"], "sk-…mine", "another key for this session", ["promote"]),
        ("session", ["session", "user"], "sk-…mine", "another key for this session", ["promote"]),
        ("session", ["session"], "sk-…wait", "deleted when you sign out.", ["promote"]),
        ("session", ["session", "user"], "sk-…wait", "instead of your account", ["promote"]),
    ],
)
def test_question_about_a_key_to_keep(
    source: str | None, tiers: list[str], hint: str | None, words: str, actions: list[str]
) -> None:
    """The question depends on whose key it is and which keys are beside it."""
    offer = row(source=source, tiers=tiers, hint=hint, promotable=True, promotable_hint="sk-…wait")[
        "offer"
    ]
    question, answers = offer
    assert words in question
    assert [action for action, _, _ in answers] == actions


def test_question_about_the_very_key_of_the_account() -> None:
    """If the account has the waiting key, the row says so; the session's own copy is not asked about."""
    same: dict[str, Any] = {"promotable": True, "promotable_in_account": True}
    question, answers = row(promotable_hint="sk-…mine", **same)["offer"]
    assert "Your account already has it." in question
    assert [(action, value) for action, value, _ in answers] == [("promote", "keep")]
    both = {"source": "session", "tiers": ["session", "user"], "promotable_hint": "sk-…mine"}
    assert row(**both, **same)["offer"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"promotable": False},
        {"can_override": False},
        {"source": None, "tiers": ["session"], "state": "expired", "hint": "sk-…wait"},
        {"source": "session", "tiers": ["session"], "state": "rejected", "hint": "sk-…wait"},
    ],
)
def test_nothing_is_asked(changes: dict[str, Any]) -> None:
    """Nothing is asked where nothing can be kept, or what could be is of no use."""
    asked: dict[str, Any] = {"promotable": True, "promotable_hint": "sk-…wait"}
    assert row(**asked | changes)["offer"] is None


def test_waiting_key_is_not_shown_as_the_one_in_use() -> None:
    """If a key waits and no other is there, the hint is in the question alone."""
    shown = row(source=None, tiers=[], hint="sk-…wait", promotable=True, promotable_hint="sk-…wait")
    assert (shown["hint"], shown["promotable_hint"], shown["place"]) == (None, "sk-…wait", None)


@pytest.mark.parametrize(
    ("expires_at", "later"),
    [
        ("2026-05-01T23:59:59.000Z", True),
        ("2026-04-30T23:59:59.000Z", False),
        (None, False),
    ],
)
def test_expiry(expires_at: str | None, later: bool) -> None:
    """A day that has passed is not offered again."""
    assert row(expires_at=expires_at)["is_to_expire"] is later


@pytest.mark.parametrize("state", ["inactive", "expired"])
def test_chip_is_about_ones_own_key(state: str) -> None:
    """If no key is in use, a chip says why the person's own is not; it says nothing about a shared one."""
    words = {"inactive": "Inactive", "expired": "Expired"}[state]
    for tiers, chip in ((["user"], words), (["session", "system"], words), (["system"], None)):
        shown = row(source=None, tiers=tiers, state=state)
        assert (shown["badge"], shown["chip"]) == ("NOT SET", chip)
    assert row(source="system", tiers=["system"], state="rejected")["chip"] == "Rejected"


def test_key_that_expires_soon() -> None:
    """It says so instead of being just active, but not where something worse is to be said."""
    assert row(expires_soon=True)["chip"] == "Expires soon"
    assert row(expires_soon=True, state="rejected")["chip"] == "Rejected"


@pytest.mark.parametrize(
    ("source", "tiers", "tier"),
    [
        ("user", ["user"], "user"),
        (None, ["user"], "user"),
        ("session", ["session", "user"], "session"),
        ("team", ["user", "team"], "team"),
        (None, [], None),
    ],
)
def test_notes_are_changed_where_they_are_shown(
    source: str | None, tiers: list[str], tier: str | None
) -> None:
    """Label and day belong to the key in use, else to the first; the account's can be changed."""
    assert row(source=source, tiers=tiers)["described_tier"] == tier


@pytest.mark.parametrize(
    ("changes", "offered"),
    [
        ({}, True),
        ({"tiers": ["env"]}, True),
        ({"found": FOUND | {"can_persist": False}}, False),
        ({"found": FOUND | {"precedence": ["session", "env", "user"]}}, True),
        ({"found": FOUND | {"precedence": ["session", "env", "user"]}, "tiers": ["env"]}, False),
    ],
)
def test_account_is_offered_where_its_key_would_count(
    changes: dict[str, Any], offered: bool
) -> None:
    """No account is offered to a visitor, nor where an operator's key comes before it."""
    assert row(**changes)["can_persist"] is offered


def test_question_before_several_keys_go() -> None:
    """If an account may have several keys for a provider, Remove says that it removes all of them."""
    several = Settings(keys_per_provider=3)
    assert row(settings=several)["clears_several"]
    assert not row()["clears_several"]
    assert not row(settings=several, source="session", tiers=["session"])["clears_several"]


def test_badges_follow_the_labels() -> None:
    """BYOK_LABELS chooses the badges' vocabulary."""
    for labels, own, shared in (("default", "YOUR KEY", "SHARED"), ("env", "SET", "ENV")):
        settings = Settings(labels=labels)  # type: ignore[arg-type]
        assert row(settings=settings)["badge"] == own
        assert row(settings=settings, source="env", tiers=["env"])["badge"] == shared
