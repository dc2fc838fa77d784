"""Reading lists of models."""

from __future__ import annotations

import json

import pytest

from flask_byok.checking.models import MAX_MODELS, read_models
from flask_byok.http import Answer


def read(body: object) -> tuple[str, ...]:
    """Read a list from a good answer."""
    return read_models(Answer(200, json.dumps(body).encode()))


def test_openais_shape() -> None:
    """`data[].id`, each name once and in order."""
    assert read({"data": [{"id": "b"}, {"id": "a"}, {"id": "b"}]}) == ("b", "a")


def test_googles_shape() -> None:
    """`models[].name` without its `models/`."""
    assert read({"models": [{"name": "models/gemini-2.5-pro"}]}) == ("gemini-2.5-pro",)


@pytest.mark.parametrize(
    "body",
    [None, [], "x", {}, {"data": None}, {"data": "x"}, {"data": {"id": "x"}}, {"data": ["x", 1]}]
    + [{"data": [{"id": value}]} for value in (None, 1, "", "x" * 201, "a\nb", ["x"], {"x": 1})],
)
def test_anything_else_is_no_model(body: object) -> None:
    """What is not a printable name of 1 to 200 characters is left out."""
    assert read(body) == ()


def test_at_most_200_are_kept() -> None:
    """A long list is cut."""
    assert len(read({"data": [{"id": f"m{number}"} for number in range(500)]})) == MAX_MODELS


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, b'{"data": [{"id": "x"}]}'),
        Answer(200, b"<html>"),
        Answer(200, b"[" * 100_000),
        Answer(200, b"", complete=False),
    ],
)
def test_a_bad_answer_has_no_models(answer: Answer) -> None:
    """An error, a web page, a bomb of brackets and a body that was cut have none."""
    assert read_models(answer) == ()
