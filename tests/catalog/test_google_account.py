"""Service accounts of Google: the token that is signed here, and the check that sends nothing secret."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from flask_byok.catalog import Catalog
from flask_byok.catalog.google_account import CERTIFICATES, ServiceAccount, belongs
from flask_byok.catalog.verdicts import Answer
from flask_byok.errors import MalformedApiKeyError
from flask_byok.model.credential import Verdict
from flask_byok.testing.refusals import documented

EMAIL = "bot@my-project.iam.gserviceaccount.com"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@cache
def private_key(number: int) -> rsa.RSAPrivateKey:
    """Return the same key for the same number."""
    return rsa.generate_private_key(65537, 2048)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """Return a private key as Google writes it."""
    form = serialization.PrivateFormat.PKCS8
    none = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, none).decode()


def certificate(key: rsa.RSAPrivateKey) -> str:
    """Return a certificate of a key, as Google lists it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "1")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1).not_valid_before(start)
    signed = builder.not_valid_after(start + timedelta(days=3650)).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def account(**changes: Any) -> dict[str, str]:
    """Return the fields with the JSON of an account's key; its address for tokens is hostile."""
    data = {
        "type": "service_account",
        "private_key_id": "a1b2",
        "private_key": pem(private_key(1)),
        "client_email": EMAIL,
        "token_uri": "https://example.com/steal",
    }
    return {"service_account_json": json.dumps(data | changes)}


def ask(fields: Mapping[str, str], answer: Answer) -> tuple[tuple[Verdict, str], list[str]]:
    """Check an account whose certificates are answered so; return the outcome and the addresses called."""
    called: list[str] = []

    def get(url: str) -> Answer:
        called.append(url)
        return answer

    return belongs(fields, get), called


def test_a_token_is_signed_by_the_accounts_key_and_names_nobody_else() -> None:
    """The header has a JSON Web Token that the account's public key verifies, for our scope, good for an hour."""
    header = ServiceAccount(SCOPE).headers(account())["Authorization"]
    signed, _, signature = header.removeprefix("Bearer ").rpartition(".")
    public = private_key(1).public_key()
    public.verify(decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    head, claims = (json.loads(decoded(part)) for part in signed.split("."))
    assert head == {"alg": "RS256", "typ": "JWT", "kid": "a1b2"}
    assert claims["iss"] == claims["sub"] == EMAIL
    assert claims["scope"] == SCOPE
    assert claims["exp"] - claims["iat"] == 3600
    assert "example.com" not in str(claims)


def decoded(part: str) -> bytes:
    """Return what a part of a token says."""
    return base64.urlsafe_b64decode(part + "==")


def listed(**certificates: str) -> Answer:
    """Return Google's list of an account's certificates."""
    return Answer(200, json.dumps(certificates).encode())


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (lambda: listed(a1b2=certificate(private_key(1))), Verdict.VALID),
        (lambda: listed(a1b2=certificate(private_key(2))), Verdict.INVALID),
        (lambda: listed(c3d4=certificate(private_key(1))), Verdict.DISABLED),
        (lambda: listed(a1b2="-----BEGIN CERTIFICATE-----\nx"), Verdict.UNCHECKED),
        (lambda: listed(message="certificate service is moving"), Verdict.UNCHECKED),
        (lambda: Answer(404, b'{"error": {"code": 404}}'), Verdict.INVALID),
        (lambda: Answer(429, b""), Verdict.UNCHECKED),
        (lambda: Answer(503, b""), Verdict.UNREACHABLE),
    ],
)
def test_the_accounts_certificates_decide(answer: Any, verdict: Verdict) -> None:
    """A key is good if its public half is Google's certificate of its id; the one GET names the account alone."""
    (found, reason), called = ask(account(), answer())
    assert found is verdict
    assert reason.endswith(".") or (reason == "" and verdict.valid is None)
    assert called == [f"{CERTIFICATES}bot%40my-project.iam.gserviceaccount.com"]


@pytest.mark.parametrize(
    "fields",
    [
        {"service_account_json": " "},
        {"service_account_json": "[]"},
        {"service_account_json": "{"},
        account(private_key="-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"),
        # Of 8,000 bits: to prove that it is none would hold all threads up for seconds.
        account(
            private_key="-----BEGIN PRIVATE KEY-----\n"
            + "MIIS" * 1600
            + "\n-----END PRIVATE KEY-----\n"
        ),
        account(private_key=None),
        account(private_key=pem(ec.generate_private_key(ec.SECP256R1()))),
        account(private_key_id=7),
        account(client_email="bot@example.com"),
        account(client_email="../../x@a.gserviceaccount.com?y="),
        account(client_email=["bot"]),
    ],
)
def test_what_is_no_account_is_neither_sent_nor_signed(fields: dict[str, str]) -> None:
    """Damaged JSON is refused before any call, with a sentence that repeats nothing of it."""
    (verdict, reason), called = ask(fields, Answer(200, b"{}"))
    assert (verdict, called) == (Verdict.INVALID, [])
    assert "MII" not in reason
    with pytest.raises(MalformedApiKeyError) as caught:
        ServiceAccount(SCOPE).headers(fields)
    assert caught.value.__cause__ is None
    assert "PRIVATE" not in str(caught.value)


@pytest.mark.parametrize("provider", ["google_speech", "vertex"])
def test_other_answers_mean_what_the_table_says(provider: str) -> None:
    """Answers without certificates have the verdicts that the table of answers gives them."""
    for row in (row for row in documented(provider) if row["place"] == "check"):
        body = row["text"].encode() if "text" in row else json.dumps(row["body"]).encode()
        (verdict, _), _ = ask(account(), Answer(row["status"], body))
        assert verdict == row["verdict"], row["note"]


@pytest.mark.parametrize("provider", ["google_speech", "vertex"])
def test_both_rows_sign_and_ask_so(provider: str) -> None:
    """Speech and Vertex sign for Google Cloud's scope, and are checked by their certificates."""
    spec = Catalog().get(provider)
    assert spec.auth == ServiceAccount(SCOPE)
    assert spec.check.ask is belongs
