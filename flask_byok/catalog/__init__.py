"""The providers that an app offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from ..errors import ConfigurationError, UnknownProviderError
from .rows import PROVIDERS
from .spec import Auth, CheckSpec, Field, ProviderSpec, Rule, comparable

__all__ = [
    "PROVIDERS",
    "Auth",
    "Catalog",
    "CheckSpec",
    "Field",
    "ProviderSpec",
    "Rule",
    "comparable",
]


class Catalog:
    """Provider specs by id and alias, in the order in which they are shown."""

    def __init__(self, specs: Iterable[ProviderSpec] = PROVIDERS) -> None:
        self._specs: dict[str, ProviderSpec] = {}
        self._names: dict[str, str] = {}
        for spec in specs:
            self.register(spec)

    def register(self, spec: ProviderSpec) -> None:
        """Add a provider.

        :raises ConfigurationError: its id or one of its aliases is taken.
        """
        for name in (spec.id, *spec.aliases):
            if name in self._names:
                raise ConfigurationError(f"Provider id or alias {name!r} is registered twice.")
        self._specs[spec.id] = spec
        self._names.update(dict.fromkeys((spec.id, *spec.aliases), spec.id))

    def only(self, ids: Iterable[str]) -> Catalog:
        """Return a catalog of these providers alone, in this order.

        :raises ConfigurationError: an id is unknown.
        """
        return Catalog(self._known(name) for name in ids)

    def get(self, provider: str) -> ProviderSpec:
        """Return the provider of this id or alias.

        :raises UnknownProviderError: there is none.
        """
        spec = self._specs.get(self._names.get(provider, ""))
        if spec is None:
            # What was asked for is not repeated: people paste keys into the wrong field.
            raise UnknownProviderError
        return spec

    def __iter__(self) -> Iterator[ProviderSpec]:
        return iter(self._specs.values())

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, provider: object) -> bool:
        return provider in self._names

    def _known(self, name: str) -> ProviderSpec:
        try:
            return self.get(name)
        except UnknownProviderError:
            near = difflib.get_close_matches(name, self._names, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(
                f"BYOK_PROVIDERS: there is no provider {name!r}.{guess}"
            ) from None
