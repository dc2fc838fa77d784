"""How a form's outcome reaches the next page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok.model.credential import Verdict
from flask_byok.web.forms import Notice, Outcome, local_path, notice, without_outcome
from flask_byok.web.text import OUTCOMES, VERDICTS

NAMES = {"openai": "OpenAI"}


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
    earlier = Outcome(code="save_failed", provider="groq", reason="csrf").added_to(
        "/chat?provider=x"
    )
    later = Outcome(code="saved", provider="openai").added_to(earlier)
    assert later == "/chat?provider=x&byok=saved&byok_provider=openai"
    assert without_outcome(later) == "/chat?provider=x"


@given(st.builds(Outcome, code=st.text(), provider=st.text(), verdict=st.text(), reason=st.text()))
def test_free_text_says_nothing(outcome: Outcome) -> None:
    """No query of a link can make the page show other words than its own."""
    shown = notice(outcome, NAMES)
    assert shown is None or outcome.code in OUTCOMES or outcome.verdict in VERDICTS


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (Outcome(code="saved", verdict="valid"), Notice("success", "Key saved")),
        (Outcome(code="saved"), Notice("success", "Key saved")),
        (
            Outcome(code="saved", verdict="unchecked"),
            Notice("success", "Key saved. The key could not be checked."),
        ),
        (
            Outcome(code="clear_failed", reason="unheard_of"),
            Notice("error", "Failed to remove key"),
        ),
        (
            Outcome(code="validated", provider="openai", verdict="unchecked"),
            Notice("warning", "OpenAI: The key could not be checked."),
        ),
        (
            Outcome(code="validated", provider="gone", verdict="valid"),
            Notice("success", "The key works."),
        ),
    ],
)
def test_outcome_in_words(outcome: Outcome, shown: Notice) -> None:
    """Each kind of outcome has its words and its colour."""
    assert notice(outcome, NAMES) == shown


def test_every_verdict_has_words() -> None:
    """No verdict is without a sentence."""
    assert set(VERDICTS) == set(Verdict)
