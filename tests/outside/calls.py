"""Every public call that finds keys or changes them, and what comes of it where no request tells whose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask_byok import (
    BYOK,
    ByokError,
    get_chat_model_with_api_key,
    get_provider_with_api_key,
)

CALLS: dict[str, Callable[[BYOK], Any]] = {
    "resolve": lambda byok: byok.resolve("openai"),
    "get_api_key": lambda byok: byok.get_api_key("openai"),
    "get_api_keys": lambda byok: byok.get_api_keys(["openai"]),
    "get_service_config": lambda byok: byok.get_service_config("openai"),
    "missing_keys": lambda byok: byok.missing_keys(["openai"]),
    "list_keys": lambda byok: byok.list_keys(),
    "require_keys": lambda byok: byok.require_keys("openai")(lambda: "served")(),
    "get_provider_with_api_key": lambda byok: get_provider_with_api_key("openai"),
    "get_chat_model_with_api_key": lambda byok: get_chat_model_with_api_key("openai", "m"),
    "set": lambda byok: byok.set("openai", "sk-made-up-0123456789", validate="off"),
    "clear": lambda byok: byok.clear("openai"),
    "validate": lambda byok: byok.validate("openai"),
    "promote": lambda byok: byok.promote(),
    "report_rejected": lambda byok: byok.report_rejected("openai"),
}


def tried(byok: BYOK) -> dict[str, str]:
    """Make each call, and return the code of its error, or "served"."""
    return {name: _tried(call, byok) for name, call in CALLS.items()}


def _tried(call: Callable[[BYOK], Any], byok: BYOK) -> str:
    try:
        call(byok)
    except ByokError as error:
        return error.code
    return "served"
