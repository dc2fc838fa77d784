"""A look at every connection that is opened, and certificates for made-up names."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from flask_byok.http import transport
from flask_byok.http.outbound import Slots
from flask_byok.testing import FakeProviders

from .certificates import make_certificate


class Dialled:
    """Where connections were attempted; none is made."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def connect(self, address: tuple[str, int], *args: object, **options: object) -> socket.socket:
        self.addresses.append(address[0])
        raise ConnectionRefusedError

    def internal(self) -> list[str]:
        """Return what was dialled and is a name or no public address."""
        return [address for address in self.addresses if not _is_global(address)]


def _is_global(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> Dialled:
    """Record each address that a TCP connection is asked for, and refuse to connect."""
    seen = Dialled()
    monkeypatch.setattr(socket, "create_connection", seen.connect)
    return seen


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for `provider.test`, which is its own authority, with its private key."""
    path = tmp_path_factory.mktemp("tls") / "provider.pem"
    make_certificate(path, x509.DNSName("provider.test"))
    return path


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    """Be `provider.test`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def fake_tls(server_tls: ssl.SSLContext) -> Iterator[FakeProviders]:
    """Run the fake providers over https, as `provider.test`."""
    with FakeProviders(server_tls) as server:
        yield server


@pytest.fixture
def client_tls(certificate: Path) -> ssl.SSLContext:
    """Trust `provider.test` alone."""
    return ssl.create_default_context(cafile=certificate)


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Slots:
    """Give the process fresh slots."""
    fresh = Slots(4, 2, "calls")
    monkeypatch.setattr("flask_byok.http.outbound.personal_slots", fresh)
    return fresh


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give readers control back twenty times a second."""
    monkeypatch.setattr(transport, "TICK", 0.05)
