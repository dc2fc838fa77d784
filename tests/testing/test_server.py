"""The server under load, at its end, over TLS, and its hostile endpoints."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flask_byok.testing import FakeProviders
from tests.patience import soon


def chat(http: httpx2.Client, fake: FakeProviders, owner: int) -> str:
    """Stream one demo answer as this owner and return its raw events."""
    answer = http.post(
        fake.base_url("demo") + "/chat/completions",
        headers={"Authorization": f"Bearer {fake.api_key('demo', owner=owner)}"},
        json={
            "model": "m",
            "stream": True,
            "messages": [{"role": "user", "content": f"owner:{owner}"}],
        },
    )
    assert answer.status_code == 200
    return answer.text


def test_64_threads_stream_at_once(fake: FakeProviders, http: httpx2.Client) -> None:
    """64 threads stream at the same time, each its own answer, and all calls are recorded."""
    http.timeout = httpx2.Timeout(60)
    with ThreadPoolExecutor(64) as pool:
        texts = list(pool.map(lambda owner: chat(http, fake, owner), range(256)))
    assert all(f"owner:{owner}" in text.replace('"', "") for owner, text in enumerate(texts))
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert len(fake.calls_for("demo")) == 256


def test_a_connection_is_kept_alive(fake: FakeProviders, http: httpx2.Client) -> None:
    """Requests in a row use one connection, also after a stream."""
    before = threading.active_count()
    for _ in range(5):
        chat(http, fake, 1)
    assert threading.active_count() - before <= 1


def test_cookies_are_offered_and_recorded(fake: FakeProviders, http: httpx2.Client) -> None:
    """With `set_cookie` each answer sets a cookie, and one that comes back is recorded."""
    url = fake.base_url("openai") + "/models"
    http.get(url)
    assert not http.cookies
    fake.set_cookie = True
    http.get(url)
    http.get(url)
    assert dict(fake.calls[-1].cookies) == {"fake_session": "1"}


def test_stop_cuts_streams_and_frees_the_port(http: httpx2.Client) -> None:
    """Stopping ends open streams at once and closes the port."""
    fake = FakeProviders()
    fake.start()
    fake.chunk_delay = 30
    url = fake.base_url("demo") + "/chat/completions"
    headers = {"Authorization": f"Bearer {fake.api_key('demo')}"}
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with http.stream("POST", url, headers=headers, json=body) as answer:
        chunks = answer.iter_bytes()
        next(chunks)
        with soon():
            fake.stop()
            with pytest.raises(httpx2.TransportError):
                list(chunks)
    with pytest.raises(httpx2.ConnectError):
        http.get(url)


def test_stop_without_start() -> None:
    """A server that never started is stopped at once."""
    FakeProviders().stop()


def test_a_defect_of_the_server_is_not_silent(http: httpx2.Client) -> None:
    """An error in a handler is raised when the server stops."""
    fake = FakeProviders()
    fake.start()
    fake.latency = "soon"  # type: ignore[assignment]
    with pytest.raises(httpx2.TransportError):
        http.get(fake.base_url("demo") + "/models")
    with pytest.raises(RuntimeError, match="fake provider failed"):
        fake.stop()


def test_speaks_tls(tmp_path: Path) -> None:
    """With an SSL context it speaks https, and a client that trusts its certificate is served."""
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with FakeProviders(ssl_context=context) as fake:
        url = fake.base_url("openrouter") + "/models"
        assert url.startswith("https://127.0.0.1:")
        with httpx2.Client(verify=trusting, trust_env=False) as client:
            assert client.get(url).status_code == 200
        with httpx2.Client(trust_env=False) as client, pytest.raises(httpx2.ConnectError):
            client.get(url)


def self_signed(folder: Path) -> Path:
    """Write a certificate for 127.0.0.1 and its private key into one PEM file."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(private_key, hashes.SHA256())
    )
    key_pem = private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "server.pem"
    path.write_bytes(key_pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_hostile_redirect(fake: FakeProviders, http: httpx2.Client) -> None:
    """The redirect leads to where a key that came along would be recorded."""
    url = fake.hostile_url("redirect") + "/models"
    answer = http.get(url, headers={"Authorization": "Bearer secret-of-mine"})
    assert answer.status_code == 302
    assert answer.headers["location"] == fake.base_url("custom") + "/models"
    assert [call.provider for call in fake.calls] == ["hostile"]
    assert fake.calls[0].api_key == "secret-of-mine"
    fake.redirect_to = "http://169.254.169.254"
    assert http.get(url).headers["location"] == "http://169.254.169.254/models"


@pytest.mark.parametrize("kind", ["endless", "huge"])
def test_hostile_bodies_go_on(fake: FakeProviders, http: httpx2.Client, kind: str) -> None:
    """An endless or huge body sends more than any check should read."""
    with http.stream("GET", fake.hostile_url(kind) + "/models") as answer:
        read = sum(len(chunk) for chunk in islice(answer.iter_bytes(65_536), 100))
    assert read > 5_000_000


@pytest.mark.parametrize("kind", ["slow_headers", "slow_body"])
def test_hostile_drip(fake: FakeProviders, http: httpx2.Client, kind: str) -> None:
    """A dripping server keeps each read alive, so only a limit on the whole ends it."""
    finished = threading.Event()

    def fetch() -> None:
        with pytest.raises(httpx2.TransportError):
            http.get(fake.hostile_url(kind) + "/models", timeout=0.5)
        finished.set()

    thread = threading.Thread(target=fetch)
    thread.start()
    assert not finished.wait(1.5)
    fake.stop()
    thread.join(5)
    assert finished.is_set()


def test_unknown_paths(fake: FakeProviders, http: httpx2.Client) -> None:
    """Whatever is not there answers 404."""
    headers = {"Authorization": f"Bearer {fake.api_key('demo')}"}
    assert http.get(fake.base_url("demo") + "/nothing", headers=headers).status_code == 404
    assert http.get(fake.origin + "/nobody/v1/models").status_code == 404
    with pytest.raises(ValueError, match="hostile"):
        fake.hostile_url("friendly")
