"""What the fake server takes from a provider's row: where it is served, and where its key stands."""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from urllib.parse import urlsplit

from ..catalog import Auth, ProviderSpec
from ..catalog.spec import BEARER

#: A field in a template.
PLACEHOLDER = re.compile(r"\{(\w+)\}")

#: The demo's provider, for tests without the demo's app.
DEMO = ProviderSpec(id="demo", name="Demo", prefixes=("demo-",), default_model="demo-small")

_SIGNATURE = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/")
_TOKEN = re.compile(r"Bearer [\w-]+\.([\w-]+)\.[\w-]+")


def base_path(spec: ProviderSpec) -> str:
    """Return the path of the provider's base URL, its fields by their names.

    A row whose base URL each person gives has OpenAI's usual path.
    """
    base_url = PLACEHOLDER.sub(r"\1", spec.base_url)
    return urlsplit(base_url).path.rstrip("/") if base_url else "/v1"


def read_api_key(spec: ProviderSpec, headers: Mapping[str, str]) -> str | None:
    """Read the key where the provider looks for it; of a signature or a signed token, who signed."""
    ways = [spec.auth]
    if spec.adapter == "anthropic":
        # Its documents say x-api-key; its Python SDK sends a bearer token from version 2 on.
        ways.append(BEARER)
    for auth in ways:
        name = auth.header.lower() if isinstance(auth, Auth) else "authorization"
        if (value := headers.get(name)) is not None:
            return _match(auth, value) if isinstance(auth, Auth) else _signer(value)
    return None


def _match(auth: Auth, value: str) -> str | None:
    """Read the key out of a header as its template says."""
    parts = PLACEHOLDER.split(auth.template)[::2]
    text = "(.+)".join(map(re.escape, parts))
    found = re.fullmatch(text, value, re.IGNORECASE | re.DOTALL)
    return found[1] if found else None


def _signer(value: str) -> str | None:
    """Read the access key of an AWS signature, or the issuer of a JSON web token (RFC 7519)."""
    if found := _SIGNATURE.match(value):
        return found[1]
    if found := _TOKEN.fullmatch(value):
        claims = json.loads(urlsafe_b64decode(found[1] + "=="))
        return str(claims.get("iss"))
    return None
