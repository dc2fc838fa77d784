"""A browser made of sockets: what it receives is what went over the wire, byte for byte."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from flask import Flask
from werkzeug.serving import make_server

from tests.app import KEYS


@contextmanager
def served(app: Flask) -> Iterator[int]:
    """Serve the app on a free port, with an access log, and give the port."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Wire:
    """Sends requests and keeps every answer; ``token`` and the cookie are sent along."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""
        self.token = ""
        self.received = bytearray()
        self.statuses: list[int] = []

    def send(
        self, method: str, path: str, body: bytes | str | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Make one request; an answer that breaks off counts as far as it came."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {"X-CSRFToken": self.token, "Cookie": self.cookie}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body.encode() if isinstance(body, str) else body, sent)
        response = connection.getresponse()
        try:
            content = response.read()
        except http.client.IncompleteRead as error:
            content = error.partial
        connection.close()
        self._keep(response, content)
        return response.status, content

    def json(self, path: str, body: Any) -> tuple[int, bytes]:
        """Post a JSON body; a string is sent as it is."""
        text = body if isinstance(body, str) else json.dumps(body)
        return self.send("POST", path, text, Content_Type="application/json")

    def form(self, path: str, **fields: str) -> tuple[int, bytes]:
        """Post a form with the CSRF token in it."""
        text = urlencode({"csrf_token": self.token, **fields})
        return self.send("POST", path, text, Content_Type="application/x-www-form-urlencoded")

    def load(self) -> dict[str, Any]:
        """Load the list of keys and keep its CSRF token."""
        status, content = self.send("GET", KEYS)
        assert status == 200, content
        body: dict[str, Any] = json.loads(content)
        self.token = body["csrf_token"]
        return body

    def _keep(self, response: http.client.HTTPResponse, content: bytes) -> None:
        self.statuses.append(response.status)
        self.received += f"{response.status} {response.reason}\n{response.headers}\n".encode()
        self.received += content + b"\n"
        for cookie in response.headers.get_all("Set-Cookie", []):
            if match := re.match(r"session=([^;]*)", cookie):
                self.cookie = f"session={match[1]}"
