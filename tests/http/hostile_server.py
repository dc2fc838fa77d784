"""A server that answers every request with given bytes, at its own pace."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: Makes the bytes of an answer, status line included; may never end.
Script = Callable[[], Iterator[bytes]]


class HostileServer:
    """Runs on a free port until it is closed; counts the bytes that were taken."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.origin = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
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
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = connection.recv(65_536)
            self.heads.append(head.decode(errors="replace"))
            for piece in self._script():
                connection.sendall(piece)
                self.sent += len(piece)
            connection.shutdown(socket.SHUT_WR)
            # Closing with something unread would reset the connection before the answer is read.
            while connection.recv(65_536):
                pass


@contextmanager
def hostile(script: Script) -> Iterator[HostileServer]:
    """Run a server for this block."""
    server = HostileServer(script)
    try:
        yield server
    finally:
        server.close()


def head(status: int, *headers: str) -> bytes:
    """Write the beginning of an answer whose end is the connection's."""
    lines = (f"HTTP/1.1 {status} X", *headers, "Connection: close", "", "")
    return "\r\n".join(lines).encode()


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
