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
#: What the extension itself is built on.
ALLOWED = {"cryptography", "flask", "limits"}


def loaded_after(code: str) -> set[str]:
    """Return the names of the heavy libraries that a fresh interpreter has loaded after some code."""
    report = f"import sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_all_names_can_be_imported_and_are_defined_here() -> None:
    """``__all__`` has every public name once: the classes, functions and signals, but no submodule."""
    assert {"BYOK", "ByokError", "Secret", "get_provider_with_api_key", "key_set"} <= set(
        flask_byok.__all__
    )
    assert len(set(flask_byok.__all__)) == len(flask_byok.__all__)
    for name in flask_byok.__all__:
        assert getattr(flask_byok, name).__module__.startswith(("flask_byok.", "blinker."))


def test_unknown_name() -> None:
    """A name that does not exist is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="'flask_byok' has no attribute 'Byok'"):
        _ = flask_byok.Byok


@pytest.mark.parametrize(
    "code",
    [
        "import flask_byok",
        "from flask_byok import BYOK; BYOK()",
        "import flask_byok.keys.service, flask_byok.keys.checks, flask_byok.http",
    ],
)
def test_import_is_light(code: str) -> None:
    """Importing the package loads no SDK, no SQLAlchemy, no Redis and no HTTP client."""
    assert loaded_after(code) <= ALLOWED
