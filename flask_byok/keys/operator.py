"""The operator's own keys, in the app's config, environment variables and secret files.

They are read at each use, so a rotated key serves at once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..catalog.spec import ProviderSpec
from ..errors import EndpointNotAllowedError, MalformedApiKeyError, UnreadableCredentialError
from ..http import endpoint_for
from ..model.credential import Credential, Secret, clean_api_key, is_placeholder
from ..model.owner import Caller, Tier
from ..settings import Settings
from .lookup import Candidate, Found

#: Longest secret file that is read, in bytes.
MAX_SECRET_FILE = 64 * 1024

_PLACEHOLDER = "{} holds a placeholder, or a reference to a key: it counts as unset. Replace it by a key, or remove it."


class OperatorKey(NamedTuple):
    """A key of the operator, and the variable, entry of the config or file that held it, which only admins may see."""

    fields: Mapping[str, Secret]
    name: str


class OperatorKeys:
    """Reads the operator's keys, by the names of variables that the catalog gives.

    Docker and Kubernetes mount secrets as files: one in ``BYOK_SECRETS_DIR`` has the variable's name in lower case. A
    variable with ``_FILE`` at its end names a file in another place, which comes first.

    :param config: the host's, whose entries of these names come before the environment.
    """

    tiers = (Tier.SECRET, Tier.ENV)

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str] = os.environ,
        config: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._config = config

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return the operator's keys; they are the same for every caller."""
        places = product(self.tiers, specs)
        return {(tier, spec.id): self._candidates(tier, spec) for tier, spec in places}

    def _candidates(self, tier: Tier, spec: ProviderSpec) -> Iterator[Candidate]:
        try:
            key = self.key(tier, spec)
            if key is None:
                return
            endpoint = endpoint_for(spec, self._settings.base_urls)
        except (UnreadableCredentialError, EndpointNotAllowedError):
            yield Candidate(tier, "unreadable")
            return
        credential = Credential(
            provider=spec.id,
            source=tier,
            owner="system",
            fields=key.fields,
            base_url=endpoint.base_url,
            trust=endpoint.trust,
        )
        yield Candidate(tier, "active", credential, operator_name=key.name)

    def key(self, tier: Tier, spec: ProviderSpec) -> OperatorKey | None:
        """Return the key that a tier has for a provider: the first there is under the provider's variables.

        :raises UnreadableCredentialError: a variable or file cannot be read, or holds no possible key; or a
            ``_FILE`` variable names no file.
        """
        keys = (self.read(tier, spec, variable) for variable in variables(spec))
        return next((key for key in keys if key is not None), None)

    def read(self, tier: Tier, spec: ProviderSpec, variable: str) -> OperatorKey | None:
        """Return the key under one of the provider's variables; a blank value or placeholder counts as none.

        :raises UnreadableCredentialError: see ``key``.
        """
        try:
            for name, text in self._values(tier, variable):
                if not is_placeholder(text):
                    return OperatorKey({"api_key": Secret(clean_api_key(text))}, name)
        except (MalformedApiKeyError, OSError, ValueError):
            text = "The operator's API key for this provider cannot be used."
            raise UnreadableCredentialError(text, provider=spec.id, tier=tier) from None
        return None

    def faults(self, specs: Iterable[ProviderSpec]) -> Iterator[str]:
        """Yield a sentence with advice for each place that holds something other than a key."""
        tiers = [tier for tier in self.tiers if tier in self._settings.precedence]
        for tier, variable in product(tiers, chain.from_iterable(map(variables, specs))):
            name = f"The secret file of {variable}"
            try:
                for name, text in self._values(tier, variable):
                    if not is_placeholder(text):
                        clean_api_key(text)
                    elif text.strip():
                        yield _PLACEHOLDER.format(name)
            except MalformedApiKeyError:
                yield f"{name} holds no possible API key: copy the key alone, on one line, into it."
            except (OSError, ValueError):
                yield f"{name} cannot be read: mend its path ({variable}_FILE), its rights or its content."

    def _values(self, tier: Tier, variable: str) -> Iterator[tuple[str, str]]:
        """Yield the values that a tier has under a variable's name, each with the name of its place."""
        if tier is Tier.ENV:
            if isinstance(entry := self._config.get(variable), str):
                yield f"app.config[{variable!r}]", entry
            yield variable, self._environ.get(variable, "")
            return
        if named := self._environ.get(f"{variable}_FILE", "").strip():
            text = _read_secret(Path(named))
            if text is None:
                raise FileNotFoundError
            yield f"{variable}_FILE", text
        path = self._settings.secrets_dir / variable.lower()
        yield str(path), _read_secret(path) or ""


def variables(spec: ProviderSpec) -> tuple[str, ...]:
    """Return the variables that may hold a provider's key; none if it needs more than one secret."""
    required = [field.name for field in spec.fields if field.secret and field.required]
    return spec.env if required == ["api_key"] else ()


def _read_secret(path: Path) -> str | None:
    """Return the text of a file, or None if there is no file."""
    try:
        # O_NONBLOCK: a pipe of that name must not hang the app.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = file.read(MAX_SECRET_FILE + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    if len(content) > MAX_SECRET_FILE:
        raise ValueError("too long for a secret")
    return content.decode()
