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
        "langchain-core": "1.6.10",
        "langchain-openai": "1.5",
        "langchain-anthropic": "1.7.7",
    },
}


def require_sdk(extra: str, provider: str, *others: str) -> None:
    """Return if the packages of an extra are installed, in releases that work.

    :param others: packages of the extra that this provider does without.
    :raises ConfigurationError: one is missing or too old; the message has the line to run.
    """
    packages = [package for package in NEEDED.get(extra, ()) if package not in others]
    if fault := next(filter(None, map(_fault, packages)), None):
        raise ConfigurationError(f"{fault}: pip install 'flask-byok[{extra}]'.", provider=provider)


def sdk_states() -> Iterator[tuple[str, str | None, str, str | None]]:
    """Yield each package, its installed release or None, the lowest that works, and what is wrong with it or None."""
    for packages in NEEDED.values():
        for package, needed in packages.items():
            yield package, _installed(package), needed, _fault(package)


def _fault(package: str) -> str | None:
    installed = _installed(package)
    needed = next(packages[package] for packages in NEEDED.values() if package in packages)
    if installed is None:
        return f"{package} is not installed"
    if _numbers(installed) < _numbers(needed):
        return f"{package} {installed} is installed, and flask-byok needs {needed} or newer"
    return None


@cache  # 0.3 ms otherwise, for each client
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)[:3]]
