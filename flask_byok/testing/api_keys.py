"""Keys for the fake providers: right in shape, worthless, the same on every run."""

from __future__ import annotations

import hashlib
import json
from threading import Lock
from uuid import UUID

from ..catalog import Field
from .wire import BEHAVIOURS

#: Shape of a provider's key as (prefix, characters after it), where the first prefix of its row does not say enough.
SHAPES = {
    "openai": ("sk-proj-", 148),
    "anthropic": ("sk-ant-api03-", 95),
    "google": ("AIza", 35),
    "groq": ("gsk_", 52),
    "xai": ("xai-", 80),
    "openrouter": ("sk-or-v1-", 64),
    "custom": ("custom-", 32),
    "demo": ("demo-", 24),
    "aws": ("AKIA", 16),
}

_USUAL_LENGTH = 40
# The letters of AWS's keys have no 0, 1, 8 and 9.
_BASE32 = str.maketrans("0189", "GHJK")


def make_api_key(
    provider: str, behaviour: str = "good", owner: object = None, prefix: str = ""
) -> str:
    """Make a key of the provider's shape; equal arguments give an equal key.

    :param prefix: begins the key of a provider that is not in `SHAPES`.
    """
    prefix, length = SHAPES.get(provider, (prefix, _USUAL_LENGTH))
    tail = _letters(f"{provider}/{behaviour}/{owner}", length)
    if provider == "demo":
        return f"{prefix}{behaviour.replace('_', '-')}-{tail}"
    if provider == "openai":
        return f"{prefix}{tail[:72]}T3BlbkFJ{tail[80:]}"
    if provider == "aws":
        tail = tail.upper().translate(_BASE32)
    return prefix + tail


def name_in(api_key: str) -> str:
    """Return by what a key's requests name it: of a service account's file the email, else the key itself."""
    return str(json.loads(api_key)["client_email"]) if api_key.startswith("{") else api_key


def sample(field: Field) -> str:
    """Return a value for a field beside the key: its default, its first choice, its example, or what fits its pattern.

    :raises ValueError: nothing that is known here fits.
    """
    letters = _letters(field.name, _USUAL_LENGTH)
    shown = [] if field.secret else [field.default, *field.choices, field.placeholder, field.name]
    usual = (letters, letters[:8], "sample", "1234567890", "https://fake.example", str(UUID(int=0)))
    fitting = (text for text in (*shown, *usual) if text and field.read(text) == text)
    if not (value := next(fitting, "")):
        raise ValueError(f"Give the field {field.name!r} a default that fits its pattern.")
    return value


class ApiKeyBook:
    """Which key does what, for every provider. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._behaviours: dict[tuple[str, str], str] = {}

    def add(self, provider: str, api_key: str, behaviour: str, *, replace: bool = True) -> None:
        """Register a key; `replace=False` leaves a known key, also a revoked one, as it is."""
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"No behaviour {behaviour!r}; there are {', '.join(BEHAVIOURS)}.")
        with self._lock:
            if replace or (provider, api_key) not in self._behaviours:
                self._behaviours[provider, api_key] = behaviour

    def behaviour(self, provider: str, api_key: str | None) -> str:
        """Say how the provider treats this key."""
        with self._lock:
            return self._behaviours.get((provider, api_key or ""), "bad")


def _letters(seed: str, length: int) -> str:
    """Stretch a seed to lower-case hexadecimal digits, which every provider's alphabet has."""
    return hashlib.shake_256(seed.encode()).hexdigest((length + 1) // 2)[:length]
