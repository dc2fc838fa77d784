"""Hosts with the gateway, and a provider whose every byte a test decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask, Response, request
from flask_login import current_user

from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp, browser, make_app
from tests.guarantees.wire import served

GATEWAY = "/api/gateway"
#: A provider of each wire, and a path of a conversation.
CHATS = {
    "openai": "chat/completions",
    "anthropic": "v1/messages",
    "google": "v1beta/models/gemini-2.5-flash:generateContent",
}
#: A key of no real provider.
API_KEY = "sk-made-up/for+these-tests"


def chat_of(provider: str, message: str = "hello", **fields: Any) -> dict[str, Any]:
    """Return the body of a conversation as the provider's wire has it."""
    if provider == "google":
        return {"contents": [{"role": "user", "parts": [{"text": message}]}], **fields}
    messages = [{"role": "user", "content": message}]
    return {"model": "small", "max_tokens": 99, "messages": messages, **fields}


class Upstream:
    """Answers each request with what ``answer`` returns, and keeps what came.

    ``came`` has tuples of method, path with query, headers by names in lower case, and body.
    """

    def __init__(self) -> None:
        self.answer: Callable[[], Response] = lambda: Response("{}", mimetype="application/json")
        self.came: list[tuple[str, str, dict[str, str], bytes]] = []
        self.app = Flask("upstream")
        methods = ["GET", "POST", "PUT", "DELETE"]
        self.app.add_url_rule("/<path:path>", "answer", self._answer, methods=methods)

    def _answer(self, path: str) -> Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.came.append(
            (request.method, request.full_path.rstrip("?"), headers, request.get_data())
        )
        return self.answer()


@contextmanager
def upstream() -> Iterator[tuple[Upstream, dict[str, str]]]:
    """Serve such a provider, and give it with the base URLs that lead there."""
    provider = Upstream()
    with served(provider.app) as port:
        url = f"http://127.0.0.1:{port}"
        yield (
            provider,
            {"openai": f"{url}/v1", "anthropic": url, "google": url, "groq": f"{url}/v1"},
        )


def gateway_app(folder: Path, fake: FakeProviders | None = None, **config: Any) -> HostApp:
    """Return a host whose people may also name themselves by a token, as programs do: ``token-of-ann``."""
    app = make_app(folder, fake, BYOK_GATEWAY=True, **config)

    @app.byok.owner_loader
    def owner() -> str | None:
        return token_owner() or (current_user.get_id() if current_user else None)

    return app


def token_owner() -> str | None:
    """Return whose token an SDK sends as its API key."""
    sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
    sent = sent or request.headers.get("x-api-key") or request.headers.get("x-goog-api-key") or ""
    return sent.removeprefix("token-of-") if sent.startswith("token-of-") else None


def with_keys(app: HostApp, **keys: str) -> Browser:
    """Return a visitor with these keys in the session."""
    visitor = browser(app)
    for provider, api_key in keys.items():
        answer = visitor.save(api_key, provider, validate="off")
        assert answer.status_code == 200, answer.text
    return visitor


def code_of(answer: Any, provider: str = "openai") -> str:
    """Return our code in an error that has the shape of the provider's wire."""
    error = answer.get_json()["error"]
    if provider == "google":
        assert error["code"] == answer.status_code
        assert error["message"]
        assert error["status"].isupper()
        return str(error["details"][0]["reason"])
    if provider == "anthropic":
        assert answer.get_json()["type"] == "error"
        assert error["type"].endswith("_error") or error["type"] == "request_too_large"
    assert error["message"]
    return str(error["code"])
