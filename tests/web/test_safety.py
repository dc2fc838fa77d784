"""Settings of a host that put keys at risk."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flask_byok.settings import Settings
from flask_byok.web.host_setup import WIDE_SESSION, unsafe_choices, unsafe_settings


def test_each_unsafe_setting_is_named() -> None:
    """Each unsafe setting of Flask's is named once, with what to do; safe ones are not."""
    safe = {
        "SESSION_COOKIE_SECURE": True,
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "WTF_CSRF_ENABLED": True,
    }
    unsafe = [(name, False) for name in safe] + [("SESSION_COOKIE_SAMESITE", "None")]
    for name, value in unsafe:
        (sentence,) = unsafe_settings({**safe, name: value}, debug=False)
        assert name in sentence
        assert "et it to" in sentence
    (sentence,) = unsafe_settings(safe, debug=True)
    assert "Debug mode" in sentence
    assert list(unsafe_settings(safe, debug=False)) == []
    assert not list(unsafe_settings({**safe, "SESSION_COOKIE_SAMESITE": "Strict"}, debug=False))
    assert len(list(unsafe_settings({}, debug=True))) == 3


def test_each_unsafe_choice_is_named() -> None:
    """Each of our own settings that puts keys at risk is named once, with what to do; the defaults are not."""
    key = {"encryption_key": "00" * 32}
    unsafe: dict[str, Any] = {
        "encryption_key": None,
        "session_ttl": WIDE_SESSION + timedelta(days=1),
        "allow_reveal": True,
        "allow_private_endpoints": True,
    }
    for name, value in unsafe.items():
        (sentence,) = unsafe_choices(Settings(**{**key, name: value}))
        assert sentence.startswith(f"BYOK_{name.upper()}")
        assert "Set it to" in sentence or "generate-key" in sentence
    assert list(unsafe_choices(Settings(**key))) == []
    assert list(unsafe_choices(Settings(**key, session_ttl=WIDE_SESSION))) == []
