"""What the fake server takes from a provider's row: where it is served, and where its key stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ..catalog import Auth, ProviderSpec

#: A field in a template.
PLACEHOLDER = re.compile(r"\{(\w+)\}")

#: The demo's provider, for tests without the demo's app.
DEMO = ProviderSpec(id="demo", name="Demo", prefixes=("demo-",), default_model="demo-small")

_SIGNATURE = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/")


def base_path(spec: ProviderSpec) -> str:
    """Return the path of the provider's base URL, its fields by their names.

    A row whose base URL each person gives has OpenAI's usual path.
    """
    base_url = PLACEHOLDER.sub(r"\1", spec.base_url)
    return urlsplit(base_url).path.rstrip("/") if base_url else "/v1"


def read_api_key(spec: ProviderSpec, headers: Mapping[str, str]) -> str | None:
    """Read the key where the provider looks for it; of a signature, the public part."""
    ways = [auth := _auth(spec)]
    if spec.adapter == "anthropic":
        # Its documents say x-api-key; its Python SDK sends a bearer token from version 2 on.
        ways.append(Auth())
    for auth in ways:
        if (value := headers.get(getattr(auth, "header", "Authorization").lower())) is not None:
            found = _pattern(auth).match(value)
            return found[1] if found else None
    return None


def _auth(spec: Any) -> Any:
    return getattr(spec, "auth", None) or getattr(spec.check, "auth", None) or Auth()


def _pattern(auth: Any) -> re.Pattern[str]:
    """Make the header's template an expression whose first group is the key."""
    template = getattr(auth, "template", None)
    if template is None:
        return _SIGNATURE
    parts = PLACEHOLDER.split(template)[::2]
    return re.compile("(.+)".join(map(re.escape, parts)) + "$", re.IGNORECASE | re.DOTALL)
