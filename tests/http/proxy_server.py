"""An HTTP proxy that notes what it is asked for, and connects to one place whatever that is."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class ProxyServer:
    """Runs on a free port until it is closed.

    :param port: of this machine, where every request is taken.
    :param refuses: answer each request with 403.
    :param tls: speak https.
    """

    def __init__(self, port: int, *, refuses: bool, tls: ssl.SSLContext | None) -> None:
        self._port = port
        self._refuses = refuses
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        #: The first line of each request.
        self.asked: list[str] = []
        self.heads: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more requests."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError), plain:
            client = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
            with client:
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (more := client.recv(65_536)):
                        return
                    head += more
                self._answer(client, head)

    def _answer(self, client: socket.socket, head: bytes) -> None:
        text = head.decode()
        self.heads.append(text)
        self.asked.append(text.partition(" HTTP/1.1\r\n")[0])
        if self._refuses:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            if head.startswith(b"CONNECT "):
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(head)
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def proxy_to(
    port: int, *, refuses: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[ProxyServer]:
    """Run a proxy for this block."""
    server = ProxyServer(port, refuses=refuses, tls=tls)
    try:
        yield server
    finally:
        server.close()
