"""The operator's own keys: environment variables and secret files.

Both are read at each use, so that a rotated key serves at once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..catalog.spec import ProviderSpec
from ..errors import MalformedApiKeyError, UnreadableCredentialError
from ..model.credential import Secret, clean_api_key
from ..model.owner import Tier

#: Longest secret file that is read, in bytes.
MAX_SECRET_FILE = 64 * 1024


@dataclass(frozen=True, slots=True)
class OperatorKey:
    """A key of the operator's.

    ``name`` is the variable or file that held it, which only admins may see.
    """

    fields: Mapping[str, Secret]
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))


class EnvironmentKeys:
    """Finds keys in environment variables under the names that the catalog gives."""

    tier = Tier.ENV

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ

    def find(self, spec: ProviderSpec) -> OperatorKey | None:
        """Return the operator's key for a provider, or None where no variable has one.

        :raises UnreadableCredentialError: a variable holds something that cannot be a key.
        """
        return _find(spec, self.tier, self._values)

    def _values(self, variable: str) -> Iterator[tuple[str, str]]:
        if variable in self._environ:
            yield variable, self._environ[variable]


class SecretFileKeys:
    """Finds keys in files, as Docker and Kubernetes mount them.

    A file is named as the variable in lower case and lies in ``directory``; another place is named
    by the variable with ``_FILE`` after it, which comes first.
    """

    tier = Tier.SECRET

    def __init__(self, directory: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._directory = directory
        self._environ = environ

    def find(self, spec: ProviderSpec) -> OperatorKey | None:
        """Return the operator's key for a provider, or None where there is no file with one.

        :raises UnreadableCredentialError: a file may not be read, is too long, or holds no possible
            key; or a ``_FILE`` variable names no file.
        """
        return _find(spec, self.tier, self._values)

    def _values(self, variable: str) -> Iterator[tuple[str, str]]:
        if named := self._environ.get(f"{variable}_FILE", "").strip():
            text = _read_secret(Path(named))
            if text is None:
                raise FileNotFoundError
            yield f"{variable}_FILE", text
        path = self._directory / variable.lower()
        if (text := _read_secret(path)) is not None:
            yield str(path), text


def _find(
    spec: ProviderSpec, tier: Tier, values: Callable[[str], Iterator[tuple[str, str]]]
) -> OperatorKey | None:
    """Return the first value under the provider's names; an empty one counts as none."""
    try:
        for field, variables in _variables(spec).items():
            for variable in variables:
                for name, text in values(variable):
                    if text.strip():
                        return OperatorKey({field: Secret(clean_api_key(text))}, name)
    except (MalformedApiKeyError, OSError, ValueError):
        raise UnreadableCredentialError(
            "The operator's API key for this provider cannot be used.", provider=spec.id, tier=tier
        ) from None
    return None


def _variables(spec: ProviderSpec) -> dict[str, tuple[str, ...]]:
    """Return the variables of each field; none for a provider that needs more than one secret."""
    required = [field.name for field in spec.fields if field.secret and field.required]
    return {"api_key": spec.env} if required == ["api_key"] else {}


def _read_secret(path: Path) -> str | None:
    """Return what a file holds, or None where there is no file."""
    try:
        # Without waiting: a pipe of that name must not hang the app.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = os.read(descriptor, MAX_SECRET_FILE + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_SECRET_FILE:
        raise ValueError("too long for a secret")
    return content.decode()
