"""A host that streams, for servers of each kind: gunicorn loads ``app``, the others are started by name and port."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

from flask import Response, request

from flask_byok import BYOK, get_provider_with_api_key
from flask_byok.web import protocols
from tests.app import bare

protocols.HEARTBEAT = float(os.environ.get("HEARTBEAT", "9"))

_folder = Path(os.environ["HOME"])
app = bare(
    _folder,
    BYOK_DATABASE_URL=f"sqlite:///{_folder / 'byok.sqlite'}",
    BYOK_PRECEDENCE=["user", "env"],  # needs no sessions
    BYOK_BASE_URLS={"openai": os.environ["PROVIDER"]},
)
byok = BYOK(app)


@app.post("/chat")
def chat() -> Response:
    """Stream the answer to a message, on the key of the request's header."""
    body = request.get_json()
    provider = get_provider_with_api_key("openai", request.headers["X-Own-Key"])
    asked = [{"role": "user", "content": body.pop("message")}]
    return byok.stream_response(provider, asked, "m", **body)


@app.get("/state")
def state() -> dict[str, Any]:
    """Tell what this process holds."""
    threads = [thread.name for thread in threading.enumerate()]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "calls": threads.count("flask-byok-call"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
    }


class PlainServer(ThreadingMixIn, WSGIServer):
    """A server that hands over no socket."""

    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    _, kind, port = sys.argv
    if kind == "werkzeug":
        app.run("127.0.0.1", int(port), threaded=True)
    make_server("127.0.0.1", int(port), app, PlainServer).serve_forever()
