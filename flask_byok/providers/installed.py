"""The SDKs that are installed, and whether their releases are ones that people's keys can be used with.

Older releases need another HTTP client (httpx), which our guarded transport does not serve.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from ..errors import ConfigurationError

#: The lowest release of each package, by the extra that installs them; as in ``pyproject.toml``.
NEEDED: dict[str, dict[str, str]] = {
    "openai": {"openai": "3"},
    "anthropic": {"anthropic": "2.10"},
    "google": {"google-genai": "3.3"},
    "langchain": {
        "langchain-core": "1.7.5",
        "langchain-openai": "1.5",
        "langchain-anthropic": "1.7.7",
        "langchain-google-genai": "4.4.3",
    },
}


def require_sdk(extra: str, provider: str, *others: str) -> None:
    """Return if the packages of an extra are installed, in releases that work.

    :param others: packages of the extra that this provider does without.
    :raises ConfigurationError: one is missing or too old; the message has the line to run.
    """
    for fault in sdk_faults(extra, *others):
        raise ConfigurationError(fault, provider=provider)


def sdk_faults(extra: str, *others: str) -> Iterator[str]:
    """Yield a sentence, with the line to run, for each package of an extra that is missing or too old."""
    for package, needed in NEEDED.get(extra, {}).items():
        installed = _installed(package)
        if package in others or (installed and _numbers(installed) >= _numbers(needed)):
            continue
        is_old = f"{installed} is installed, and flask-byok needs {needed} or newer"
        fault = is_old if installed else "is not installed"
        yield f"{package} {fault}: pip install 'flask-byok[{extra}]'."


@cache  # 0.3 ms otherwise, for each client
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)[:3]]
