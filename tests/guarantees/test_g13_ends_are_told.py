"""G13 at real servers: what is said leaves at once, silence is filled, and whoever leaves costs nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.services import free_port, wait_until

from .quiet_provider import SILENT, QuietProvider, leave

GUNICORN = ("gunicorn", "--keep-alive", "30", "tests.guarantees.streams_host:app")
#: How each server is started, before its address.
SERVERS = {
    "gunicorn, threads": (*GUNICORN, "--threads", "500", "--bind"),
    "gunicorn, gevent": (*GUNICORN, "--worker-class", "gevent", "--bind"),
    "werkzeug": ("tests.guarantees.streams_host", "werkzeug"),
    "no socket": ("tests.guarantees.streams_host", "plain"),
}


class Host:
    """A server, and the provider that it asks."""

    def __init__(self, kind: str, provider: QuietProvider, folder: Path, **environ: str) -> None:
        self.kind, self.provider, self.port = kind, provider, free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        bound = f"127.0.0.1:{self.port}" if "gunicorn" in kind else str(self.port)
        command = [sys.executable, "-m", *SERVERS[kind], bound]
        given = {"PROVIDER": provider.url, "HOME": str(folder), "HEARTBEAT": "0.5"}
        with (folder / "log").open("wb") as log:
            environ = os.environ | given | environ
            self.process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        wait_until(self.state, kind)

    def state(self) -> dict[str, int]:
        """Return what the process holds."""
        found: dict[str, int] = httpx2.get(f"{self.origin}/state").json()
        return found

    def ask(self, message: str, protocol: str = "byok", owner: str = "1") -> socket.socket:
        """Ask for an answer, and return the connection."""
        body = json.dumps({"message": message, "protocol": protocol}).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), 20)
        connection.sendall(
            b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"X-Own-Key: sk-proj-streams-%b\r\nContent-Length: %d\r\n\r\n%b"
            % (owner.encode(), len(body), body)
        )
        return connection

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Read until a mark has come; everything that came is returned."""
    found = b""
    while mark not in found:
        piece = connection.recv(65_536)
        assert piece, found
        found += piece
    return found


@pytest.fixture(scope="module")
def provider() -> Iterator[QuietProvider]:
    """Run the provider."""
    with QuietProvider() as provider:
        yield provider


@pytest.fixture(scope="module", params=SERVERS)
def host(
    request: pytest.FixtureRequest,
    provider: QuietProvider,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Host]:
    """Run each server."""
    host = Host(request.param, provider, tmp_path_factory.mktemp("host"))
    yield host
    host.stop()


def test_silence(host: Host) -> None:
    """Head and start leave at once, comments follow, and the provider is left soon after the browser has left."""
    tabs = {message: host.ask(message) for message in SILENT}
    for tab in tabs.values():
        said = read_until(tab, b":\n\n")
        assert said.startswith(b"HTTP/1.")
        assert b"event: start\n" in said
    wait_until(lambda: sorted(host.provider.open) == sorted(SILENT), "the calls")
    left = {message: leave(tab) for message, tab in tabs.items()}
    wait_until(lambda: not host.provider.open, "the end of the calls")
    wait_until(lambda: host.state()["calls"] == 0, "the end of their threads")
    # A busy machine is no failure; on a quiet one it takes a second, or two where only writing shows it.
    assert all(host.provider.left[message] - when < 60 for message, when in left.items())


def test_plain_text_that_nobody_waits_for(host: Host) -> None:
    """Before the first text nothing is written, and still whoever leaves is noticed, if the server shows its socket."""
    if host.kind == "no socket":
        return
    tab = host.ask("before the head", "text")
    wait_until(lambda: host.provider.open, "the call")
    leave(tab)
    wait_until(lambda: not host.provider.open, "the end of the call")


def test_closed_tabs(host: Host) -> None:
    """Twenty tabs that were closed while the provider is silent hold no thread."""
    tabs = [host.ask("before the head") for _ in range(20)]
    wait_until(lambda: len(host.provider.open) == 20, "the calls")
    for tab in tabs:
        leave(tab)
    wait_until(lambda: not host.provider.open and host.state()["calls"] == 0, "their end")


def test_a_limit_is_told_not_waited_for(host: Host) -> None:
    """After a 429 with a Retry-After of 90 seconds the error comes at once, and the next call is made at once."""
    begun = time.monotonic()
    tab = host.ask("limited")
    told = read_until(tab, b'"retry_after":90')
    assert b"event: error\n" in told
    tab.close()
    tab = host.ask("3 pieces")
    assert b"piece 2" in read_until(tab, b"event: done\n")
    tab.close()
    assert time.monotonic() - begun < 80


@pytest.mark.parametrize("number", [40, pytest.param(500, marks=pytest.mark.stress)])
def test_many_streams(host: Host, number: int) -> None:
    """Streams that are open at once, each on a key of its own, all complete; none gets another's key, or a cookie."""

    def round_of_streams() -> dict[str, int]:
        tabs = [host.ask(f"20 pieces of {owner}", owner=str(owner)) for owner in range(number)]
        for tab in tabs:
            assert b"piece 19" in read_until(tab, b"event: done\n")
            tab.close()
        wait_until(lambda: host.state()["calls"] == 0, "the end of the calls")
        return host.state()

    idle = host.state()
    before, after = round_of_streams(), round_of_streams()
    assert host.provider.mixed == []
    # What is left are connections that serve again, of which the pool keeps 100.
    assert after["descriptors"] <= idle["descriptors"] + min(number, 100) + 10
    assert after["memory"] <= before["memory"] + 32 * 1024 * 1024
