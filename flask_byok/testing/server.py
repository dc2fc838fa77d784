"""The HTTP server below the fake providers: it reads requests and writes replies."""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .wire import Answer, ConnectionDropped, EventStream, RawStream, Reply

HOST = "127.0.0.1"
IDLE_SECONDS = 60
JOIN_SECONDS = 5


@dataclass(frozen=True, repr=False)
class Received:
    """A request as it came from the socket."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: object


class FakeServer(ThreadingHTTPServer):
    """A threading server that can be stopped in mid-answer and keeps its handlers' faults."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(
        self, handle: Callable[[Received], Reply], ssl_context: ssl.SSLContext | None = None
    ) -> None:
        super().__init__((HOST, 0), Handler)
        self.handle = handle
        self.stopping = Event()
        self.chunk_delay = 0.0
        self.faults: list[BaseException] = []
        self._connections: set[socket.socket] = set()
        self._lock = Lock()
        if ssl_context is not None:
            # The handshake belongs to the connection's thread, not to the one that accepts.
            self.socket = ssl_context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and cut every connection."""
        self.stopping.set()
        if self._thread.is_alive():  # without a loop to end, shutdown() would wait for ever
            self.shutdown()
            self._thread.join(JOIN_SECONDS)
        self.server_close()
        with self._lock:
            for connection in self._connections:
                _cut(connection)

    def pause(self, seconds: float) -> None:
        """Wait, unless the server stops meanwhile.

        :raises ConnectionDropped: when the server stops.
        """
        if seconds > 0 and self.stopping.wait(seconds):
            raise ConnectionDropped

    def server_bind(self) -> None:
        """Bind without http.server's look-up of the host's full name, which can be slow."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that went away; keep any other error for `FakeProviders.stop`."""
        error = sys.exception()
        if error is not None and not isinstance(error, (OSError, ConnectionDropped)):
            self.faults.append(error)


class Handler(BaseHTTPRequestHandler):
    """One connection, kept alive for several requests."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    wbufsize = -1  # buffered: one packet for head and body
    disable_nagle_algorithm = True
    server: FakeServer

    def do_GET(self) -> None:
        self._send(self.server.handle(self._receive()))

    def do_POST(self) -> None:
        self._send(self.server.handle(self._receive()))

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a line would hold the path, and a path could hold a key."""

    def _receive(self) -> Received:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        content = self.rfile.read(int(headers.get("content-length") or 0))
        return Received(
            self.command, url.path, dict(parse_qsl(url.query)), headers, _parse(content)
        )

    def _send(self, reply: Reply) -> None:
        if isinstance(reply, Answer):
            self._send_answer(reply)
        elif isinstance(reply, EventStream):
            self._send_stream(reply)
        else:
            self._send_raw(reply)

    def _send_head(self, reply: Answer | EventStream, **headers: str) -> None:
        self.send_response(reply.status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Type": reply.content_type, **named, **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_answer(self, answer: Answer) -> None:
        self._send_head(answer, Content_Length=str(len(answer.content)))
        self.wfile.write(answer.content)
        self.wfile.flush()

    def _send_stream(self, stream: EventStream) -> None:
        self._send_head(stream, Transfer_Encoding="chunked", Cache_Control="no-cache")
        for frame in filter(None, stream.frames):  # an empty chunk would end the stream
            self.wfile.write(b"%x\r\n%b\r\n" % (len(frame), frame))
            self.wfile.flush()
            self.server.pause(self.server.chunk_delay)
            self._stop_with_server()
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _send_raw(self, stream: RawStream) -> None:
        self.close_connection = True
        for block in stream.frames:
            self.wfile.write(block)
            self.wfile.flush()
            self._stop_with_server()

    def _stop_with_server(self) -> None:
        if self.server.stopping.is_set():
            raise ConnectionDropped


def _parse(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        connection.close()  # already gone at the other side
