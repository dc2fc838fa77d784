"""What a row says, from its status alone, and how a form's outcome reaches the next page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flask_byok.model.credential import Verdict
from flask_byok.settings import Settings
from flask_byok.web.forms import Notice, local_path, notice, with_outcome
from flask_byok.web.text import OUTCOMES, VERDICTS
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
        "hint": "sk-…mine",
        "label": None,
        "validity": None,
        "expires_at": None,
        "expires_soon": False,
        "fields": [],
    }
    return build_row(status | changes, found, settings, NOW)


def test_question_about_a_key_to_keep() -> None:
    """The question depends on whose key it is and which keys are beside it."""
    for source, tiers, hint, words, actions in (
        (None, [], "sk-…wait", "before signing in", ["promote"]),
        ("team", ["team"], None, "before signing in", ["promote"]),
        ("user", ["user"], "sk-…mine", "Your account has a key already", ["promote", "confirm"]),
        ("session", ["session"], "sk-…mine", "another key for this session", ["promote"]),
        ("session", ["session", "user"], "sk-…mine", "another key for this session", ["promote"]),
        ("session", ["session"], "sk-…wait", "deleted when you sign out.", ["promote"]),
        ("session", ["session", "user"], "sk-…wait", "instead of your account", ["promote"]),
    ):
        waits = {"promotable": True, "promotable_hint": "sk-…wait"}
        question, answers = row(source=source, tiers=tiers, hint=hint, **waits)["offer"]
        assert words in question, (source, tiers, hint)
        assert [action for action, _, _ in answers] == actions, (source, tiers, hint)


def test_nothing_is_asked() -> None:
    """Nothing is asked where nothing can be kept, or what could be is of no use."""
    asked: dict[str, Any] = {"promotable": True, "promotable_hint": "sk-…wait"}
    for changes in (
        {"promotable": False},
        {"can_override": False},
        {"source": None, "tiers": ["session"], "state": "expired", "hint": "sk-…wait"},
        {"source": "session", "tiers": ["session"], "state": "rejected", "hint": "sk-…wait"},
    ):
        assert row(**asked | changes)["offer"] is None, changes


def test_waiting_key_is_not_shown_as_the_one_in_use() -> None:
    """If a key waits and no other is there, the hint is in the question alone."""
    shown = row(source=None, tiers=[], hint="sk-…wait", promotable=True, promotable_hint="sk-…wait")
    assert (shown["hint"], shown["promotable_hint"], shown["place"]) == (None, "sk-…wait", None)


def test_expiry() -> None:
    """A day that has passed is not offered again."""
    for expires_at, later in (
        ("2026-05-01T23:59:59.000Z", True),
        ("2026-04-30T23:59:59.000Z", False),
        (None, False),
    ):
        assert row(expires_at=expires_at)["is_to_expire"] is later


def test_chip_is_about_ones_own_key() -> None:
    """If no key is in use, a chip says why the person's own is not; it says nothing about a shared one."""
    for state, words in (("inactive", "Inactive"), ("expired", "Expired")):
        for tiers, chip in ((["user"], words), (["session", "system"], words), (["system"], None)):
            shown = row(source=None, tiers=tiers, state=state)
            assert (shown["badge"], shown["chip"]) == ("NOT SET", chip)
    assert row(source="system", tiers=["system"], state="rejected")["chip"] == "Rejected"


def test_key_that_expires_soon() -> None:
    """It says so instead of being just active, but not where something worse is to be said."""
    assert row(expires_soon=True)["chip"] == "Expires soon"
    assert row(expires_soon=True, state="rejected")["chip"] == "Rejected"


def test_details_are_those_of_the_key_that_is_shown() -> None:
    """Label and day belong to the key in use, else to the first; the account's can be changed."""
    for source, tiers, tier in (
        ("user", ["user"], "user"),
        (None, ["user"], "user"),
        ("session", ["session", "user"], "session"),
        ("team", ["user", "team"], "team"),
        (None, [], None),
    ):
        assert row(source=source, tiers=tiers)["described_tier"] == tier, (source, tiers)


def test_account_is_offered_where_its_key_would_count() -> None:
    """No account is offered to a visitor, nor where an operator's key comes before it."""
    for found, tiers, offered in (
        ({}, ["user"], True),
        ({}, ["env"], True),
        ({"can_persist": False}, ["user"], False),
        ({"precedence": ["session", "env", "user"]}, ["user"], True),
        ({"precedence": ["session", "env", "user"]}, ["env"], False),
    ):
        assert row(found=FOUND | found, tiers=tiers)["can_persist"] is offered, (found, tiers)


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


# outcomes of forms


NAMES = {"openai": "OpenAI"}
NAMED = ("byok", "byok_provider", "byok_verdict", "byok_reason")


def test_other_sites_are_no_local_path() -> None:
    """An address that a browser could read as another site is not followed; a path of this site is, as it is."""
    assert local_path("/chat?provider=groq&q=%2F") == "/chat?provider=groq&q=%2F"
    for url in (
        *("https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example"),
        *(
            "/\t/evil.example",
            "/\n/evil.example",
            " /evil",
            "javascript:alert(1)",
            "evil",
            "",
            None,
        ),
    ):
        assert local_path(url) is None, url


def test_outcome_replaces_an_earlier_one() -> None:
    """The host's own parameters stay, those of an earlier outcome go."""
    earlier = with_outcome("/chat?provider=x", "save_failed", "groq", "", "csrf")
    later = with_outcome(earlier, "saved", "openai")
    assert later == "/chat?provider=x&byok=saved&byok_provider=openai"
    assert with_outcome(later) == "/chat?provider=x"


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(NAMED, st.text())))
def test_free_text_says_nothing(query: dict[str, str]) -> None:
    """No query of a link can make the page show other words than its own."""
    shown = notice(query, NAMES)
    assert shown is None or query.get("byok") in OUTCOMES or query.get("byok_verdict") in VERDICTS


def test_outcome_in_words() -> None:
    """Each kind of outcome has its words and its colour, and no verdict is without a sentence."""
    assert set(VERDICTS) == set(Verdict)
    unsure = "The key could not be checked."
    for outcome, colour, words in (
        (("saved", "", "valid"), "success", "Key saved"),
        (("saved",), "success", "Key saved"),
        (("saved", "", "unchecked"), "success", f"Key saved. {unsure}"),
        (("clear_failed", "", "", "unheard_of"), "error", "Failed to remove key"),
        (("validated", "openai", "unchecked"), "warning", f"OpenAI: {unsure}"),
        (("validated", "gone", "valid"), "success", "The key works."),
    ):
        assert notice(dict(zip(NAMED, outcome, strict=False)), NAMES) == Notice(colour, words)
