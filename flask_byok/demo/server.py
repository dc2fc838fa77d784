"""Serve the app on this machine only, and stop it cleanly."""

from __future__ import annotations

import errno
import logging
import signal
import socket
from collections.abc import Mapping
from typing import Any

from flask import Flask
from werkzeug.serving import BaseWSGIServer, make_server

from .failure import UnusableSettingError

HOST = "127.0.0.1"
#: Not 5000, which macOS takes for AirPlay.
DEFAULT_PORT = 8000


def open_socket(environ: Mapping[str, str]) -> tuple[socket.socket, str]:
    """Take the port and return it with a remark, empty if it is the expected one.

    :raises UnusableSettingError: the port in PORT cannot be had.
    """
    wanted = environ.get("PORT")
    try:
        return _bind(DEFAULT_PORT if wanted is None else int(wanted)), ""
    except (OSError, OverflowError, ValueError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        if wanted is None:
            return _bind(0), f"Port {DEFAULT_PORT} is taken, so this is a free one."
        problem = "is taken by another program" if taken else "cannot be used"
        raise UnusableSettingError(
            f"PORT={wanted} {problem}. Choose another one, or unset PORT for a free one."
        ) from None


def make_http_server(app: Flask, listening: socket.socket) -> BaseWSGIServer:
    """Return a server with a thread for each request, so that streams do not hold up others."""
    # One line a request would push the address out of sight.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    host, port = listening.getsockname()
    return make_server(host, port, app, threaded=True, fd=listening.fileno())


def serve(server: BaseWSGIServer) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, _interrupt)
    server.serve_forever()  # returns at KeyboardInterrupt, with the server closed


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _bind(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening
