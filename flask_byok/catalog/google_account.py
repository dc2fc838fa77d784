"""Google's service accounts: a token that the account's own key signs, and a check that sends nothing secret."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import MalformedApiKeyError
from ..model.credential import Verdict

if TYPE_CHECKING:
    from .verdicts import Answer

#: The public certificates of an account's keys, by the id of the key. Source: the ``client_x509_cert_url`` of each key.
CERTIFICATES = "https://www.googleapis.com/robot/v1/metadata/x509/"
_EMAIL = re.compile(r"[a-z0-9.-]{1,64}@[a-z0-9.-]{1,128}\.gserviceaccount\.com")
_TOKEN_SECONDS = 3600

_GOOD = "The key belongs to this service account. Its roles show in the first call."
_DAMAGED = "This is not the JSON of a service account's key. Download it again, whole."
_NO_ACCOUNT = "Google knows no such service account."
_REMOVED = "Google no longer accepts this key: it was deleted or switched off. Create a new one."
_OTHER_KEY = "The private key is not the one that Google knows by this id. Download it again."


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Signs a token for each request, as Google's own clients do; it is exchanged nowhere, and is good for an hour.

    Source: https://google.aip.dev/auth/4111 (self-signed JWT). The key's ``token_uri`` is not used.
    """

    scope: str
    field: str = "service_account_json"

    def headers(
        self, fields: Mapping[str, str], method: str = "", url: str = "", body: bytes = b""
    ) -> dict[str, str]:
        """Return the header with a token; none without a key.

        :raises MalformedApiKeyError: the JSON is not that of a service account's key.
        """
        if not (text := fields.get(self.field)):
            return {}
        account = _Account.read(text, proven=True)
        now = int(time.time())
        times = {"iat": now, "exp": now + _TOKEN_SECONDS}
        claims = {"iss": account.email, "sub": account.email, "scope": self.scope, **times}
        return {"Authorization": f"Bearer {account.sign(claims)}"}


def belongs(fields: Mapping[str, str], get: Callable[[str], Answer]) -> tuple[Verdict, str]:
    """Say whether a key belongs to its account: its public half must be among the account's certificates.

    :param get: makes a GET that carries nothing secret.
    :returns: the verdict, and the reason unless it is the usual one.
    """
    try:
        account = _Account.read(fields.get("service_account_json", ""))
    except MalformedApiKeyError as error:
        return Verdict.INVALID, str(error)
    answer = get(CERTIFICATES + quote(account.email, safe=""))
    if answer.status == 404:
        return Verdict.INVALID, _NO_ACCOUNT
    if answer.status >= 500 or 300 <= answer.status < 400:
        return Verdict.UNREACHABLE, ""
    if answer.status != 200 or not isinstance(answer.data, dict) or not answer.data:
        return Verdict.UNCHECKED, ""
    return account.judge(answer.data)


# Of a private key's PEM, in bytes: Google's have 2,048 bits and 1,704 bytes; 4,096 bits take 3,272. The proof that a
# key is one takes the longer the larger it is, and holds all threads up.
_LONGEST_KEY = 3_500


@dataclass(frozen=True, repr=False, slots=True)
class _Account:
    """What of the JSON is used: the rest of it is not trusted."""

    email: str
    key_id: str
    key: Any

    @classmethod
    def read(cls, text: str, *, proven: bool = False) -> _Account:
        """Read the JSON of a key.

        :param proven: skip the proof that the key's parts belong together, which takes 40 ms: the check gave it.
        :raises MalformedApiKeyError: it is none.
        """
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            data = json.loads(text)
            email, key_id = data["client_email"], data["private_key_id"]
            private = data["private_key"].encode()
            if len(private) > _LONGEST_KEY:
                raise ValueError
            key = load_pem_private_key(private, None, unsafe_skip_rsa_key_validation=proven)
            if (
                _EMAIL.fullmatch(email)
                and isinstance(key_id, str)
                and isinstance(key, RSAPrivateKey)
            ):
                return cls(email, key_id, key)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        # Not chained: the error may quote the key.
        raise MalformedApiKeyError(_DAMAGED) from None

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Return a JSON Web Token of these claims (RFC 7515, RS256)."""
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        header = {"alg": "RS256", "typ": "JWT", "kid": self.key_id}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        return f"{signed}.{_base64(self.key.sign(signed.encode(), PKCS1v15(), SHA256()))}"

    def judge(self, certificates: Mapping[str, Any]) -> tuple[Verdict, str]:
        """Compare the key with the certificate of its id."""
        from cryptography.x509 import load_pem_x509_certificate

        if self.key_id not in certificates:
            # Other JSON than certificates says nothing.
            listed = all("CERTIFICATE" in str(each) for each in certificates.values())
            return (Verdict.DISABLED, _REMOVED) if listed else (Verdict.UNCHECKED, "")
        try:
            certificate = load_pem_x509_certificate(str(certificates[self.key_id]).encode())
        except ValueError:
            return Verdict.UNCHECKED, ""
        if certificate.public_key() == self.key.public_key():
            return Verdict.VALID, _GOOD
        return Verdict.INVALID, _OTHER_KEY


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
