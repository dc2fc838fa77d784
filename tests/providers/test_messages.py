"""Chat messages taken apart."""

from __future__ import annotations

from typing import Any

import pytest

from flask_byok.errors import InvalidFieldError
from flask_byok.providers.base import Turn, split_system


def test_system_text_is_taken_out() -> None:
    """Every instruction is kept, in order, apart from the conversation."""
    system, turns = split_system(
        [
            {"role": "system", "content": "A"},
            {"role": "user", "content": "B"},
            {"role": "developer", "content": "C"},
        ]
    )
    assert (system, turns) == ("A\n\nC", [Turn("user", "B")])


def test_text_parts_are_joined() -> None:
    """OpenAI's list of text parts is one text."""
    parts = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    assert split_system([{"role": "user", "content": parts}]) == ("", [Turn("user", "AB")])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "A"},
        {"content": "A"},
        {"role": "user"},
        {"role": "user", "content": 1},
        {"role": "user", "content": [{"type": "image_url"}]},
        {"role": "user", "content": ["A"]},
    ],
)
def test_other_messages_are_refused(message: dict[str, Any]) -> None:
    """What cannot be translated is not sent in part."""
    with pytest.raises(InvalidFieldError):
        split_system([message])
