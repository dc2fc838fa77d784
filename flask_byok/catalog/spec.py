"""What describes a provider: plain data, so that another provider is another row; and the catalog of an app's."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypedDict, cast

import msgspec

from ..errors import ConfigurationError, UnknownProviderError
from ..model.credential import Verdict

_ID = re.compile(r"[a-z][a-z0-9_]{0,39}")


class FieldFacts(TypedDict):
    """A field that people fill in."""

    name: str
    label: str
    secret: bool
    required: bool
    placeholder: str


@dataclass(frozen=True, slots=True)
class Field:
    """One part of a credential, as the person types it."""

    name: str = "api_key"
    label: str = "API key"
    secret: bool = True
    required: bool = True
    placeholder: str = ""

    def to_dict(self) -> FieldFacts:
        """Return the JSON form that status shows."""
        return cast(FieldFacts, msgspec.to_builtins(self))


@dataclass(frozen=True, slots=True)
class Auth:
    """The header that carries the key. ``template`` names fields in braces."""

    header: str = "Authorization"
    template: str = "Bearer {api_key}"

    def headers(self, fields: Mapping[str, str]) -> dict[str, str]:
        """Return the header for these field values; none without a key."""
        if not fields.get("api_key"):
            return {}
        return {self.header: self.template.format_map(fields)}


@dataclass(frozen=True, slots=True)
class Rule:
    """Map one kind of answer to a verdict.

    ``status`` lists HTTP status codes. ``contains``, in lower case, must occur in the answer; an empty text fits any.
    In the answer to a check it may occur anywhere in the body, whose JSON is compared without white space
    (``"code":"invalid_api_key"``). In a call's it must occur in a code, or begin the message.
    """

    status: tuple[int, ...]
    verdict: Verdict
    reason: str
    contains: str = ""


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A free request that tells whether a key is good. Paths are relative to the base URL.

    The first of the ``rules`` that fits an answer decides, before the general ones.
    ``models_path`` lists the models; it may be the same request.
    """

    path: str = "/models"
    method: Literal["GET", "POST"] = "GET"
    auth: Auth = Auth()
    headers: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    models_path: str | None = "/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSpec:
    """A remote service that people bring a key for.

    :param id: lower-case letters, digits and underscores.
    :param base_url: what the provider's own SDK calls its base URL; empty if each person gives one.
    :param adapter: the client that speaks to it: ``openai`` (and all that is compatible), ``anthropic`` or ``google``.
    :param env: environment variables that may hold the operator's key, first one first; a Docker secret file has the
        same name in lower case.
    :param prefixes: public beginnings of its keys; a hint for people, never a gate.
    :param refused_prefixes: beginnings of admin keys, which can do far more than a call needs.
    :param provider_class: replaces the adapter: a ``BaseProvider``, called with the spec, the credential, the app's
        ``Outbound``, ``report=``, ``count=`` and the options.
    """

    id: str
    name: str
    base_url: str = ""
    adapter: Literal["openai", "anthropic", "google"] = "openai"
    fields: tuple[Field, ...] = (Field(),)
    env: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    refused_prefixes: tuple[str, ...] = ()
    get_key_url: str | None = None
    default_model: str = ""
    check: CheckSpec = CheckSpec()
    standalone: bool = False
    provider_class: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ConfigurationError(
                f"Provider id {self.id!r}: use lower-case letters, digits and underscores, a letter first."
            )

    @property
    def personal_base_url(self) -> bool:
        """True if each person gives the base URL, as a field of the credential."""
        return any(f.name == "base_url" for f in self.fields)

    def is_admin_key(self, api_key: str) -> bool:
        """Return True if a key's beginning is that of the provider's admin keys."""
        return api_key.startswith(self.refused_prefixes)


class Catalog:
    """Provider specs by id and alias, in the order in which they are shown.

    :param specs: the providers; by default those that ship with the package.
    """

    #: The providers that ship with the package; :mod:`.rows` sets them.
    shipped: ClassVar[tuple[ProviderSpec, ...]] = ()

    def __init__(self, specs: Iterable[ProviderSpec] | None = None) -> None:
        self._specs: dict[str, ProviderSpec] = {}
        self._names: dict[str, str] = {}
        for spec in self.shipped if specs is None else specs:
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

        :raises UnknownProviderError: the catalog has none.
        """
        spec = self._specs.get(self._names.get(provider, ""))
        if spec is None:
            # The message does not repeat the name: people paste keys into the wrong field.
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


# OpenAI's old keys begin like those of DeepSeek and of many compatible servers.
_SHARED_PREFIXES = frozenset({"sk-"})


def looks_like(api_key: str, spec: ProviderSpec) -> ProviderSpec | None:
    """Return the other provider whose key this clearly is by its beginning, if any."""
    owners = {prefix: other for other in Catalog.shipped for prefix in other.prefixes}
    owners.update(dict.fromkeys(spec.prefixes, spec))
    prefix = max((p for p in owners if api_key.startswith(p)), key=len, default="")
    if not prefix or prefix in _SHARED_PREFIXES or owners[prefix] is spec:
        return None
    return owners[prefix]
