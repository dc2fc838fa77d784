"""Google's service accounts as the fakes have them: an account's key, and the list of its certificates."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ..catalog.google_account import CERTIFICATES
from .wire import Answer, json_answer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_PATH = urlsplit(CERTIFICATES).path
_KEY_ID = "0123456789abcdef0123456789abcdef01234567"


def email_of(name: str) -> str:
    """Return the address of the account of this name."""
    return f"{name}@fake-project.iam.gserviceaccount.com"


def account_json(email: str) -> str:
    """Return the file that Google gives to an account's owner. All accounts share one key, made in this process."""
    from cryptography.hazmat.primitives import serialization

    pem = _private_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    data = {"type": "service_account", "client_email": email, "private_key_id": _KEY_ID}
    return json.dumps({**data, "private_key": pem.decode()})


def account_in(path: str) -> str | None:
    """Return the account whose certificates a path asks for."""
    _, found, email = path.partition(_PATH)
    return unquote(email) if found else None


def certificates(kind: str) -> Answer:
    """List the certificates of an account that refuses calls in this way. Google lists them to everybody."""
    if kind in ("provider_overloaded", "provider_unavailable"):
        return json_answer(503, {"error": {"code": 503, "status": "UNAVAILABLE"}})
    if kind == "key_rejected":
        return json_answer(404, {"error": {"code": 404, "status": "NOT_FOUND"}})
    return json_answer(200, {"f" * 40 if kind == "disabled" else _KEY_ID: _certificate()})


@cache
def _private_key() -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(65537, 2048)


@cache
def _certificate() -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    key, start = _private_key(), datetime(2026, 1, 1, tzinfo=UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake")])
    end = start + timedelta(days=36_500)
    unsigned = x509.CertificateBuilder(name, name, key.public_key(), 1, start, end)
    signed = unsigned.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()
