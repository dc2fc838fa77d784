"""A provider in OpenAI's format that says nothing for as long as the caller waits, and sees when he leaves."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Lock, Thread
from types import TracebackType
from typing import Any


def event(**delta: Any) -> bytes:
    """Return an event with a piece of an answer."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST = HEAD + chunked(event(content="Hi"))
#: Says nothing but comments, several a second.
COMMENTS = "comments alone"
#: What is sent before the silence, by what the message says.
SILENT = {
    "before the head": b"",
    "within the head": HEAD[:30],
    "between pieces": FIRST,
    "within a piece": FIRST + b"ff\r\ndata: {",
    COMMENTS: FIRST,
}
WAIT = b'{"error": {"message": "Slow down.", "type": "requests", "code": "rate_limit_exceeded"}}'
LIMITED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 90\r\nContent-Length: %d\r\n\r\n" % len(
    WAIT
)
END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


class QuietProvider(ThreadingTCPServer):
    """The server. ``open`` counts the calls that wait, by their messages; ``left`` has when callers left.

    A message ``n pieces`` gets a whole answer; ``limited`` the status 429.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.lock = Lock()
        self.open: list[str] = []
        self.left: dict[str, float] = {}
        #: (message, key) of each call that had a cookie or not its own key.
        self.mixed: list[tuple[str, str]] = []
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of callers that leave."""


class _Handler(StreamRequestHandler):
    server: QuietProvider
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while message := self._read_message():
            if message == "limited":
                self.wfile.write(LIMITED + WAIT)
            elif message in SILENT:
                self._be_silent(message)
                return
            else:
                self._answer(int(message.split()[0]))

    def _read_message(self) -> str:
        """Return what is asked; nothing if the connection ends."""
        headers: dict[str, str] = {}
        self.rfile.readline()
        while (line := self.rfile.readline()) not in (b"", b"\r\n"):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        if not headers:
            return ""
        body = json.loads(self.rfile.read(int(headers["content-length"])))
        message = str(body["messages"][-1]["content"])
        _, _, owner = message.partition(" of ")
        api_key = headers["authorization"].removeprefix("Bearer ")
        if "cookie" in headers or (owner and not api_key.endswith(f"-{owner}")):
            self.server.mixed.append((message, api_key))
        return message

    def _be_silent(self, message: str) -> None:
        server = self.server
        self.wfile.write(SILENT[message])
        with server.lock:
            server.open.append(message)
        self.connection.settimeout(0.2 if message == COMMENTS else None)
        with suppress(OSError):
            while self._is_there():
                self.wfile.write(chunked(b": a comment\n\n"))
        with server.lock:
            server.left[message] = time.monotonic()
            server.open.remove(message)

    def _is_there(self) -> bool:
        """Wait for the caller to leave, and return False; True if he is still there when the time is over."""
        try:
            return bool(self.connection.recv(1024))
        except TimeoutError:
            return True

    def _answer(self, pieces: int) -> None:
        said = [event(content=f"piece {number} ") for number in range(pieces)]
        self.wfile.write(HEAD + chunked(*said[:1]))
        time.sleep(0.01)
        self.wfile.write(chunked(*said[1:], END) + b"0\r\n\r\n")


def leave(connection: socket.socket) -> float:
    """Close a connection as a browser's closed tab does, and return when."""
    connection.close()
    return time.monotonic()
