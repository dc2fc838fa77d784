"""What is public, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import flask_byok

HEAVY = (
    "alembic",
    "anthropic",
    "cryptography",
    "flask",
    "google.genai",
    "httpx",
    "httpx2",
    "langchain_core",
    "limits",
    "openai",
    "psycopg",
    "redis",
    "sqlalchemy",
)
#: What the extension itself is made of.
OF_THE_EXTENSION = {"cryptography", "flask", "limits"}


def loaded_after(code: str) -> set[str]:
    """Return the names of the heavy libraries that a fresh interpreter has loaded after some code."""
    report = f"import sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_all_is_what_can_be_imported() -> None:
    """Every name of __all__ can be imported, and every lazy name is in __all__."""
    assert sorted(flask_byok.__all__) == sorted(flask_byok._HOME_OF)
    for name in flask_byok.__all__:
        assert (
            getattr(flask_byok, name).__name__ if name[0].isupper() else getattr(flask_byok, name)
        )
    assert set(flask_byok.__all__) <= set(dir(flask_byok))


def test_all_is_sorted_and_without_doubles() -> None:
    """No name of __all__ occurs twice."""
    assert len(set(flask_byok.__all__)) == len(flask_byok.__all__)


def test_unknown_name() -> None:
    """A name that does not exist is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="'flask_byok' has no attribute 'Byok'"):
        _ = flask_byok.Byok


def test_import_is_light() -> None:
    """Importing the package loads no SDK, no SQLAlchemy, no Redis and no HTTP client; nothing heavy at all."""
    assert loaded_after("import flask_byok") == set()


def test_extension_is_light() -> None:
    """The extension itself loads no SDK, no SQLAlchemy, no Redis and no HTTP client either."""
    assert loaded_after("from flask_byok import BYOK; BYOK()") <= OF_THE_EXTENSION


@pytest.mark.parametrize(
    "module", ["keys.service", "keys.lookup", "keys.checks", "providers", "http", "catalog"]
)
def test_parts_are_light(module: str) -> None:
    """A part of the core loads no SDK and no HTTP client before it is used."""
    assert loaded_after(f"import flask_byok.{module}") <= {"cryptography"}
