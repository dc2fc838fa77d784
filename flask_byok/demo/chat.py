"""The chat: one page, and one endpoint that streams."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app, render_template, request
from werkzeug.exceptions import BadRequest

from flask_byok import get_provider_with_api_key

from .extensions import byok

bp = Blueprint("chat", __name__)

MAX_MESSAGES = 100
MAX_CHARACTERS = 20_000

#: What to expect of the keys to try, by what they do.
EXPECTATIONS = {
    "good": "Works.",
    "restricted": "Works, and the check says that its permissions are narrow.",
    "broke": "Is saved, but its account has no credit left.",
    "rate_limited": "Is saved, but over its rate limit.",
    "disabled": "Is rejected: the provider has blocked it.",
    "bad": "Is rejected: the provider does not know it.",
}


@bp.get("/")
def index() -> str:
    """Show the chat."""
    return render_template(
        "chat.html", providers=byok.list_keys(), api_keys=current_app.config["DEMO_API_KEYS"]
    )


@bp.post("/chat")
def answer() -> Response:
    """Stream the answer to a conversation; without a key this is 409 ``key_missing``."""
    body = request.get_json()
    messages = _messages(body)
    provider = get_provider_with_api_key(_text(body.get("provider")))
    return byok.stream_response(provider, messages)


@bp.get("/keys-to-try")
def keys_to_try() -> str:
    """Show keys for the demo provider, and what each is good for."""
    return render_template(
        "keys_to_try.html", api_keys=current_app.config["DEMO_API_KEYS"], expectations=EXPECTATIONS
    )


def _messages(body: Any) -> list[dict[str, str]]:
    """Return the conversation that the page sent.

    :raises BadRequest: it is something else, or too long.
    """
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"Send 1 to {MAX_MESSAGES} messages.")
    return [_message(message) for message in messages]


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise BadRequest("A message has a role, user or assistant, and a content.")
    return {"role": message["role"], "content": _text(message.get("content"))}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_CHARACTERS:
        raise BadRequest(f"Texts have 1 to {MAX_CHARACTERS} characters.")
    return value
