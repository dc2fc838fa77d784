"""The app whose streams are measured, for gunicorn: one answer through flask-byok, and one of the host's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flask import Flask, Response

from flask_byok import BYOK, get_provider_with_api_key
from flask_byok.sealing.keyring import generate_encryption_key

folder = os.environ["BENCH_FOLDER"]
app = Flask("host", instance_path=folder)
app.config.update(
    SECRET_KEY="bench" * 8,
    BYOK_ENCRYPTION_KEY=generate_encryption_key(),
    BYOK_DATABASE_URL=f"sqlite:///{Path(folder) / 'byok.sqlite'}",
    BYOK_PRECEDENCE=["user", "env"],
    BYOK_BASE_URLS={"openai": os.environ["BENCH_UPSTREAM"]},
)
byok = BYOK(app)
byok.owner_loader(lambda: None)
PIECES = int(os.environ["BENCH_PIECES"])


@app.get("/byok")
def through_byok() -> Response:
    """Stream a provider's answer."""
    messages = [{"role": "user", "content": "Count to ten."}]
    return byok.stream_response(get_provider_with_api_key("openai"), messages)


@app.get("/bare")
def bare() -> Response:
    """Stream as many pieces that nobody was asked for."""

    def pieces() -> Iterator[bytes]:
        for _ in range(PIECES):
            yield b'event: delta\ndata: {"text":"word "}\n\n'

    return Response(pieces(), mimetype="text/event-stream")
