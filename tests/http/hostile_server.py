"""A server that answers every request with given bytes, at its own pace."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: Makes the bytes of an answer, status line included; may never end.
Script = Callable[[], Iterator[bytes]]


class HostileServer:
    """Runs on a free port until it is closed; counts the connections, and the bytes that were taken.

    :param keep: leave the connection open after an answer, for the next request.
    :param tls: speak https.
    """

    def __init__(
        self, script: Script, *, keep: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        self._script = script
        self._keep = keep
        self._tls = tls
        self.connections = 0
        #: Set once a client has closed a connection.
        self.left = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.origin = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self.heads: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more requests."""
        # A thread that waits in accept() keeps a socket that is only closed.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                self.connections += 1
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            served = (
                self._tls.wrap_socket(connection, server_side=True) if self._tls else connection
            )
            with served:
                while self._answer_one(served):
                    pass
        self.left.set()

    def _answer_one(self, connection: socket.socket) -> bool:
        head = connection.recv(65_536)
        length = re.search(rb"(?i)content-length: (\d+)", head) if self._keep else None
        while length and len(head.partition(b"\r\n\r\n")[2]) < int(length[1]):
            head += connection.recv(65_536)
        if not head and self._keep:
            return False
        self.heads.append(head.decode(errors="replace"))
        for piece in self._script():
            connection.sendall(piece)
            self.sent += len(piece)
        if self._keep:
            return True
        connection.shutdown(socket.SHUT_WR)
        # Closing with something unread would reset the connection before the answer is read.
        while connection.recv(65_536):
            pass
        return False


@contextmanager
def hostile(
    script: Script, *, keep: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[HostileServer]:
    """Run a server for this block."""
    server = HostileServer(script, keep=keep, tls=tls)
    try:
        yield server
    finally:
        server.close()


def head(status: int, *headers: str) -> bytes:
    """Write the beginning of an answer whose end is the connection's."""
    lines = (f"HTTP/1.1 {status} X", *headers, "Connection: close", "", "")
    return "\r\n".join(lines).encode()


#: The header of a stream of events.
EVENTS = "Content-Type: text/event-stream"


def chunked() -> bytes:
    """Write the beginning of a stream of events in chunks."""
    return f"HTTP/1.1 200 OK\r\n{EVENTS}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    """Write one chunk."""
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def endless(first: bytes, block: bytes = b"x" * 65_536) -> Iterator[bytes]:
    """Go on for ever."""
    yield first
    while True:
        yield block


def drip(first: bytes, piece: bytes) -> Iterator[bytes]:
    """Send a little now and then, for ever."""
    for block in endless(first, piece):
        yield block
        time.sleep(0.05)
