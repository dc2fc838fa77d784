"""Settings of a host that put keys at risk."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flask_byok.settings import Settings
from flask_byok.web.host import WIDE_SESSION, unsafe_choices, unsafe_settings

SAFE = {
    "SESSION_COOKIE_SECURE": True,
    "SESSION_COOKIE_HTTPONLY": True,
    "SESSION_COOKIE_SAMESITE": "Lax",
    "WTF_CSRF_ENABLED": True,
}


def test_safe_settings_are_silent() -> None:
    """There is nothing to say about safe settings."""
    assert unsafe_settings(SAFE, debug=False) == []
    assert unsafe_settings({**SAFE, "SESSION_COOKIE_SAMESITE": "Strict"}, debug=False) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SESSION_COOKIE_SECURE", False),
        ("SESSION_COOKIE_HTTPONLY", False),
        ("SESSION_COOKIE_SAMESITE", None),
        ("SESSION_COOKIE_SAMESITE", "None"),
        ("WTF_CSRF_ENABLED", False),
    ],
)
def test_each_unsafe_setting_is_named(name: str, value: Any) -> None:
    """Each unsafe setting is named once, with what to do."""
    (sentence,) = unsafe_settings({**SAFE, name: value}, debug=False)
    assert name in sentence
    assert "et it to" in sentence


def test_debug_mode_is_named() -> None:
    """Debug mode is unsafe, since its error pages show local variables."""
    (sentence,) = unsafe_settings(SAFE, debug=True)
    assert "Debug mode" in sentence
    assert len(unsafe_settings({}, debug=True)) == 3


def test_safe_choices_are_silent() -> None:
    """There is nothing to say about the defaults, nor about the longest session that is not wide."""
    assert unsafe_choices(Settings(encryption_key="00" * 32)) == []
    assert unsafe_choices(Settings(encryption_key="00" * 32, session_ttl=WIDE_SESSION)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encryption_key", None),
        ("session_ttl", WIDE_SESSION + timedelta(days=1)),
        ("allow_reveal", True),
        ("allow_private_endpoints", True),
    ],
)
def test_each_unsafe_choice_is_named(name: str, value: Any) -> None:
    """Each of our own settings that puts keys at risk is named once, with what to do."""
    (sentence,) = unsafe_choices(Settings(**{"encryption_key": "00" * 32, name: value}))
    assert sentence.startswith(f"BYOK_{name.upper()}")
    assert "Set it to" in sentence or "generate-key" in sentence
