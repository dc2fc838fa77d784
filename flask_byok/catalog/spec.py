"""What describes a provider: plain data, so that another provider is another row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from ..errors import ConfigurationError
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
        return {
            "name": self.name,
            "label": self.label,
            "secret": self.secret,
            "required": self.required,
            "placeholder": self.placeholder,
        }


@dataclass(frozen=True, slots=True)
class Auth:
    """The header that carries the key. ``template`` names fields in braces."""

    header: str = "Authorization"
    template: str = "Bearer {api_key}"

    def headers(self, fields: Mapping[str, str]) -> dict[str, str]:
        """Return the header for these field values; none where the provider has no key to send."""
        if not fields.get("api_key"):
            return {}
        return {self.header: self.template.format_map(fields)}


@dataclass(frozen=True, slots=True)
class Rule:
    """Maps one kind of answer to a verdict.

    ``status`` lists HTTP status codes. ``contains`` must occur in the answer's body, which is compared in lower case
    and, where it is JSON, without white space: ``"code":"invalid_api_key"``. Empty fits any body.
    """

    status: tuple[int, ...]
    verdict: Verdict
    reason: str
    contains: str = ""

    def fits(self, status: int, text: str) -> bool:
        """Say whether this is the kind of answer: its status, and its text as :func:`comparable`."""
        return status in self.status and self.contains in text


def comparable(body: bytes, secrets: Iterable[str] = ()) -> str:
    """Return an answer's body as rules compare it, without the secrets that it may repeat."""
    text = body.decode(errors="replace")
    for secret in filter(None, secrets):
        text = text.replace(secret, "")
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).lower()
    except (ValueError, RecursionError):
        return text.lower()


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A free request that tells whether a key is good. Paths are relative to the base URL.

    ``rules`` are tried in order before the general ones; the first that fits decides.
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
    :param base_url: what the provider's own SDK calls its base URL; empty where each person gives one.
    :param adapter: which client speaks to it: ``openai`` (and all that is compatible), ``anthropic`` or ``google``.
    :param env: environment variables that may hold the operator's key, first one first; a Docker secret file has the
        same name in lower case.
    :param prefixes: public beginnings of its keys; a hint for people, never a gate.
    :param refused_prefixes: beginnings of admin keys, which can do far more than a call needs.
    :param provider_class: takes the adapter's place: a ``BaseProvider``, called with the spec, the credential, the
        app's ``Outbound``, ``report=`` and the options.
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
        """Say whether each person gives the base URL, as a field of the credential."""
        return any(f.name == "base_url" for f in self.fields)
