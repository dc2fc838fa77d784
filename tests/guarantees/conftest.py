"""What an operator has."""

from __future__ import annotations

import pytest


@pytest.fixture
def operators_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operator have keys in the environment that could step in."""
    for name in ("OPENAI_API_KEY", "GROQ_API_KEY"):
        monkeypatch.setenv(name, "operators-0123456789")
