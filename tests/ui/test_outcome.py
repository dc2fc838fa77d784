"""How a form's outcome reaches the next page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok.model.credential import Verdict
from flask_byok.web.forms import Kind, Notice, local_path, notice, with_outcome
from flask_byok.web.text import OUTCOMES, VERDICTS

NAMES = {"openai": "OpenAI"}
NAMED = ("byok", "byok_provider", "byok_verdict", "byok_reason")


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        " /evil",
        "javascript:alert(1)",
        "evil",
        "",
        None,
    ],
)
def test_other_sites_are_no_local_path(url: str | None) -> None:
    """An address that a browser could read as another site is not followed."""
    assert local_path(url) is None


def test_local_path_keeps_its_query() -> None:
    """A path of this site comes back as it is."""
    assert local_path("/chat?provider=groq&q=%2F") == "/chat?provider=groq&q=%2F"


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


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (("saved", "", "valid"), ("success", "Key saved")),
        (("saved",), ("success", "Key saved")),
        (("saved", "", "unchecked"), ("success", "Key saved. The key could not be checked.")),
        (("clear_failed", "", "", "unheard_of"), ("error", "Failed to remove key")),
        (
            ("validated", "openai", "unchecked"),
            ("warning", "OpenAI: The key could not be checked."),
        ),
        (("validated", "gone", "valid"), ("success", "The key works.")),
    ],
)
def test_outcome_in_words(outcome: tuple[str, ...], shown: tuple[Kind, str]) -> None:
    """Each kind of outcome has its words and its colour."""
    assert notice(dict(zip(NAMED, outcome, strict=False)), NAMES) == Notice(*shown)


def test_every_verdict_has_words() -> None:
    """No verdict is without a sentence."""
    assert set(VERDICTS) == set(Verdict)
