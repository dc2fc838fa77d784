"""Find a secret in whatever was written down, however it was encoded."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

#: Shortest piece of base64 that tells a secret from chance.
SHORTEST = 12


def forms(secret: str) -> dict[str, bytes]:
    """Return the secret as it may be written, by the name of the writing."""
    raw = secret.encode()
    found = {
        "raw": raw,
        "URL": quote(secret, safe="").encode(),
        "URL, slashes kept": quote(secret).encode(),
        "URL in a form": quote_plus(secret).encode(),
        "URL, lower case": _lower_escapes(quote(secret, safe="")).encode(),
        "JSON": json.dumps(secret)[1:-1].encode(),
        "JSON in JSON": json.dumps(json.dumps(secret)[1:-1])[1:-1].encode(),
        "repr": repr(secret)[1:-1].encode(),
        "HTML": html.escape(secret).encode(),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "backwards": raw[::-1],
    }
    for before in range(3):
        found[f"base64 at {before}"] = _base64_core(raw, before)
        found[f"URL-safe base64 at {before}"] = _base64_core(raw, before).translate(_URL_SAFE)
    return found


def leaks(secrets: Iterable[str], places: Mapping[str, bytes]) -> list[str]:
    """Return "<writing> in <place>" for every secret that is found; never the secret."""
    return sorted(
        f"{form} in {place}"
        for secret in secrets
        for form, written in forms(secret).items()
        for place, content in places.items()
        if written in content
    )


def files_below(directory: Path) -> dict[str, bytes]:
    """Return the content, and the name, of every file below a directory."""
    return {
        f"the file {path.name}": path.name.encode() + b"\n" + path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def _base64_core(raw: bytes, before: int) -> bytes:
    """Return the part of the base64 that stays the same whatever stands around the secret."""
    whole = base64.b64encode(b"\xff" * before + raw + b"\xff" * 3)
    other = base64.b64encode(b"\x00" * before + raw + b"\x00" * 3)
    same = bytes(a if a == b else 0 for a, b in zip(whole, other, strict=True))
    core = max(same.split(b"\0"), key=len)
    assert len(core) >= SHORTEST
    return core


def _lower_escapes(text: str) -> str:
    parts = text.split("%")
    return parts[0] + "".join(f"%{part[:2].lower()}{part[2:]}" for part in parts[1:])
