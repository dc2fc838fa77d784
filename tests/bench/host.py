"""The apps that the bench compares: a host with flask-byok, the same host without, and one that keeps keys by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis
from cachelib import SimpleCache
from cryptography.fernet import Fernet
from flask import Flask, Response, request, session
from flask_session import Session
from openai import OpenAI

from flask_byok import BYOK, get_provider_with_api_key
from flask_byok.sealing.keyring import generate_encryption_key
from flask_byok.testing import FakeProviders


def asked() -> str:
    """Return what the present request asks for."""
    return request.args.get("message", "Count to ten.")


def plain_host() -> Flask:
    """Return a host with server-side sessions and one route that needs none of it."""
    app = Flask("host")
    app.config.update(SECRET_KEY="bench" * 8, SESSION_TYPE="cachelib", WTF_CSRF_ENABLED=False)
    app.config["SESSION_CACHELIB"] = SimpleCache()
    Session(app)
    app.add_url_rule("/plain", view_func=lambda: "plain", endpoint="plain")
    return app


def byok_host(fake: FakeProviders, redis_url: str) -> tuple[Flask, BYOK]:
    """Return the same host with flask-byok on Redis, all calls going to the fake providers."""
    app = plain_host()
    app.config.update(
        BYOK_ENCRYPTION_KEY=generate_encryption_key(),
        BYOK_REDIS=redis_url,
        # In the instance folder it would be there still, under another encryption key, at the next run.
        BYOK_DATABASE_URL="sqlite://",
        BYOK_BASE_URLS={"openai": fake.base_url("openai")},
        BYOK_SET_RATE="1000000/minute",
    )
    byok = BYOK(app)

    @app.get("/chat")
    def chat() -> Response:
        return byok.stream_response(get_provider_with_api_key("openai"), messages(asked()))

    return app, byok


class NaiveHost:
    """What is usually written by hand: the key, encrypted, in the session, and a new SDK client for each call."""

    def __init__(self, fake: FakeProviders, client: redis.Redis) -> None:
        self._fernet = Fernet(generate_encryption_key())
        self._base_url = fake.base_url("openai")
        self.app = Flask("naive")
        self.app.config.update(SECRET_KEY="bench" * 8, SESSION_TYPE="redis", SESSION_REDIS=client)
        Session(self.app)
        self.app.add_url_rule("/set/<api_key>", view_func=self._set, endpoint="set")
        self.app.add_url_rule("/chat", view_func=self._chat, endpoint="chat")

    def _set(self, api_key: str) -> str:
        session["openai"] = self._fernet.encrypt(api_key.encode())
        return "ok"

    def _chat(self) -> Response:
        api_key = self._fernet.decrypt(session["openai"]).decode()
        client = OpenAI(api_key=api_key, base_url=self._base_url)
        events = (f"event: delta\ndata: {text}\n\n" for text in stream(client, asked()))
        return Response(events, mimetype="text/event-stream")


def messages(text: str) -> list[Any]:
    """Return a conversation of one message."""
    return [{"role": "user", "content": text}]


def stream(client: OpenAI, text: str) -> Iterator[str]:
    """Yield the pieces of an answer, with the SDK alone."""
    answer: Any = client.chat.completions.create(
        model="gpt-4o-mini", messages=messages(text), stream=True
    )
    for chunk in answer:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content
