"""What a provider is: a row of data."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypedDict, cast

from ..errors import ConfigurationError, EndpointNotAllowedError, UnknownProviderError
from ..model.credential import Fields, Secret, Verdict, make_hint
from .auth import Auth, Authentication, names_in
from .checked import checked
from .endpoints import endpoint, find_endpoint, is_named, slug_of, takes_names

_ID = re.compile(r"[a-z][a-z0-9_]{0,39}(/([a-z0-9-]+|\*))?")
# What a field may put into an address: nothing that ends a host name or leaves a path.
_IN_URL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")

#: How most providers take a key.
BEARER = Auth()

#: ``secret`` is hidden and may travel in a header, ``json`` is a secret file's content, the others are shown.
Kind = Literal["secret", "text", "choice", "json"]
#: The format in which a provider speaks; ``http`` has no conversations.
Adapter = Literal["openai", "anthropic", "google", "http"]


class FieldFacts(TypedDict):
    """A field that people fill in. ``choices`` is empty but for ``kind`` ``choice``."""

    name: str
    label: str
    kind: Kind
    secret: bool
    required: bool
    placeholder: str
    choices: list[str]
    default: str


@dataclass(frozen=True, slots=True)
class Field:
    """One part of a credential, as the person types it.

    :param secret: it must never be shown.
    :param kind: by default ``secret`` or ``text``; it decides what is ``secret``.
    :param pattern: a regular expression that a text fits as a whole. If it has a group, the group's text is the value:
        of a pasted URL, say, the name in it.
    :param choices: the values of the kind ``choice``; or a mapping of them to what stands in an address for each, such
        as a region's host.
    :param default: the value if none is given.
    :param env: environment variables that may hold the operator's value, beside those of the provider's key.
    """

    name: str = "api_key"
    label: str = "API key"
    secret: bool = True
    required: bool = True
    placeholder: str = ""
    kind: Kind | None = None
    pattern: str = ""
    choices: tuple[str, ...] | Mapping[str, str] = ()
    default: str = ""
    env: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind = self.kind or ("secret" if self.secret else "text")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "secret", kind in ("secret", "json"))

    def read(self, text: str) -> str | None:
        """Return the value in a text; None if it is not among the choices or does not fit the pattern."""
        match = re.fullmatch(self.pattern or "(?s:.*)", text)
        if match is None or (self.choices and text not in self.choices):
            return None
        return match[1] if match.re.groups else text

    def to_dict(self) -> FieldFacts:
        """Return the JSON form that status shows."""
        facts = {name: getattr(self, name) for name in FieldFacts.__annotations__}
        return cast(FieldFacts, facts | {"choices": list(self.choices)})


@dataclass(frozen=True, slots=True)
class Rule:
    """Say what one kind of answer means for the key, and for the call that brought it.

    :param status: HTTP status codes.
    :param reason: our own sentence, in which ``{name}`` is the provider's; by default the verdict's or the kind's.
    :param contains: a text in lower case that must occur; an empty one fits any. In the answer to a check it may occur
        anywhere in the body, whose JSON is compared without white space (``"code":"invalid_api_key"``). In a call's it
        must occur in a code or in the message for people; there it rejects a key only at the message's beginning, or
        with a 401 that alone does.
    :param kind: the code of the call's error; by default the verdict's.
    :param path: names a value in the answer's JSON (``data.limit_remaining``), which must equal ``equals``; for 0 it
        may be less.
    :param place: where the rule holds: in a ``check``, in a ``call``, or in ``both``.
    :param source: the document that says so.
    """

    status: tuple[int, ...]
    verdict: Verdict = Verdict.UNCHECKED
    reason: str = ""
    contains: str = ""
    kind: str = ""
    path: str = ""
    equals: bool | float | str = True
    place: Literal["both", "check", "call"] = "both"
    source: str = ""


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A free request that tells whether a key is good.

    The first of the ``rules`` that fits an answer decides, before those of the wire.

    :param path: begins with a slash and is below the base URL; or it is a whole https URL, of another host perhaps. It
        may name fields in braces, but no secret.
    :param method: by which the path is asked for.
    :param body: what is sent with a POST, as it is.
    :param headers: sent with the check, and with the list of models, beside the provider's own.
    :param answer: ``text`` for one that is no JSON.
    :param good: the path of a value that the documented success has, or several with ``|`` between them; ``[]`` is a
        list. Empty: any JSON without an error. Of an answer that is a ``text``: words that it contains.
    :param models_path: lists the models; it may be the same request.
    :param ask: a function in place of the request, where no secret need be sent: it is called with the fields and a
        function that makes a plain GET, and returns a verdict and a reason, which is empty for the verdict's usual one.
    """

    path: str = "/models"
    method: Literal["GET", "POST"] = "GET"
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    answer: Literal["json", "text"] = "json"
    good: str = "data"
    rules: tuple[Rule, ...] = ()
    models_path: str | None = "/models"
    ask: Callable[..., tuple[Verdict, str]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSpec:
    """A remote service that people bring a key for.

    :param id: lower-case letters, digits and underscores.
    :param base_url: what the provider's own SDK calls its base URL. It may name fields in braces. Empty if each person
        gives one, or else the operator.
    :param adapter: the format in which it speaks: ``openai`` (and all that is compatible), ``anthropic``, ``google``;
        or ``http`` for services without conversations, whose client is a plain one with the key in it.
    :param fields: by default the API key, with the first of the ``prefixes`` as its placeholder.
    :param auth: how the key travels, in checks and calls alike.
    :param headers: sent with each request.
    :param env: environment variables that may hold the operator's key, first one first; a Docker secret file has the
        same name in lower case. Providers of one company may name the same variable: its value is then the key of each.
    :param prefixes: public beginnings of its keys; a hint for people, never a gate.
    :param refused_prefixes: beginnings of admin keys, which can do far more than a call needs.
    :param other_kinds: beginnings of its secrets that are no API keys, each with what it is ("an OAuth token").
    :param shape: a regular expression that only its keys match, from beginning to end; a hint, never a gate.
    :param docs: the document that these facts come from.
    :param limit_name: what it calls the longest answer, in OpenAI's format.
    :param asks_usage: it understands OpenAI's ``stream_options``, by which a stream tells the tokens used.
    :param provider_class: replaces the adapter: a ``BaseProvider``, called with the spec, the credential, the app's
        ``Outbound``, ``report=``, ``count=`` and the options.
    """

    id: str
    name: str
    base_url: str = ""
    adapter: Adapter = "openai"
    fields: tuple[Field, ...] = (Field(),)
    auth: Authentication = BEARER
    headers: Mapping[str, str] = field(default_factory=dict)
    env: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    refused_prefixes: tuple[str, ...] = ()
    other_kinds: Mapping[str, str] = field(default_factory=dict)
    shape: str = ""
    get_key_url: str | None = None
    default_model: str = ""
    check: CheckSpec = CheckSpec()
    standalone: bool = False
    docs: str = ""
    limit_name: str = "max_tokens"
    asks_usage: bool = True
    provider_class: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            use = "use lower-case letters, digits and underscores, a letter first."
            raise ConfigurationError(f"Provider id {self.id!r}: {use}")
        if self.prefixes and self.fields == (Field(),):
            object.__setattr__(self, "fields", (Field(placeholder=f"{self.prefixes[0]}…"),))

    @property
    def personal_base_url(self) -> bool:
        """True if each person gives the base URL, as a field of the credential."""
        return any(f.name == "base_url" for f in self.fields)

    @property
    def main_field(self) -> Field:
        """The field that the hint is made of: the API key, else the first secret, else the first field."""
        secret = (each for each in self.fields if each.secret)
        named = (each for each in self.fields if each.name == "api_key")
        return next(named, None) or next(secret, self.fields[0])

    @property
    def variables(self) -> dict[str, tuple[str, ...]]:
        """The environment variables that may hold the operator's value of each field."""
        main = self.main_field.name
        return {f.name: (f.env or (self.env if f.name == main else ())) for f in self.fields}

    def hint(self, fields: Mapping[str, Secret]) -> str:
        """Return what may be shown of a credential: the beginning and the end of its main field."""
        main = self.main_field
        text = fields[main.name].reveal() if main.name in fields else ""
        if main.kind == "json":
            text = str(json.loads(text or "{}").get("private_key_id", ""))
        return make_hint(text, self.prefixes) if text else ""

    def url(self, template: str, fields: Mapping[str, str]) -> str:
        """Return an address with the fields in it that it names in braces.

        :raises EndpointNotAllowedError: one is missing, or would lead elsewhere.
        """
        named, values = set(names_in(template)), dict(fields)
        for each in self.fields:
            if each.name in named:
                value = fields.get(each.name) or each.default
                if not _IN_URL.fullmatch(value) or ".." in value or each.read(value) != value:
                    text = f"{each.label} is missing or malformed."
                    raise EndpointNotAllowedError(text, provider=self.id)
                values[each.name] = (
                    each.choices[value] if isinstance(each.choices, Mapping) else value
                )
        return template.format_map(values)


class Catalog:
    """Provider specs by id and alias, in the order in which they are shown.

    :param specs: the providers; by default those that ship with the package.
    """

    #: The providers that ship with the package; :mod:`.rows` sets them.
    shipped: ClassVar[tuple[ProviderSpec, ...]] = ()

    def __init__(self, specs: Iterable[ProviderSpec] | None = None) -> None:
        #: By id and alias.
        self._specs: dict[str, ProviderSpec] = {}
        for spec in self.shipped if specs is None else specs:
            self.register(spec)

    def register(self, spec: ProviderSpec) -> None:
        """Add a provider.

        :raises ConfigurationError: its id or one of its aliases is taken, or its description cannot be used.
        """
        spec = checked(spec)
        names = (spec.id, *spec.aliases)
        for name in names:
            if is_named(name):
                raise ConfigurationError(f"Provider id {name!r}: people name their own endpoints.")
            if name in self._specs:
                raise ConfigurationError(f"Provider id or alias {name!r} is registered twice.")
        self._specs.update(dict.fromkeys(names, spec))

    def only(self, ids: Sequence[str]) -> Catalog:
        """Return a catalog of these providers alone, in this order.

        :raises ConfigurationError: an id is unknown.
        """
        return Catalog(self.named(name, "BYOK_PROVIDERS") for name in ids)

    def named(self, name: str, setting: str) -> ProviderSpec:
        """Return the provider that a setting names.

        :raises ConfigurationError: there is none of that id or alias; the nearest one is named.
        """
        if name in self and not is_named(name):
            return self.get(name)
        near = difflib.get_close_matches(_plain(name), self._specs, n=1)
        guess = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(self._specs)}."
        raise ConfigurationError(f"{setting}: there is no provider {name!r}. {guess}")

    def get(self, provider: str) -> ProviderSpec:
        """Return the provider of this id or alias, in any case; ``custom/…`` with any slug is one.

        :raises UnknownProviderError: the catalog has none.
        """
        spec = self._specs.get(provider) or self._find(provider)
        if spec is None:
            # The message does not repeat the name: people paste keys into the wrong field.
            name = _plain(provider[:_LONGEST_TYPO])
            near = difflib.get_close_matches(name, self._specs, n=1, cutoff=0.8)
            raise UnknownProviderError(_MEANT.format(near[0]) if near else None)
        return spec

    def get_typed(self, provider: str, fields: Fields) -> ProviderSpec:
        """Return the provider that typed fields are for: with a ``name`` among them a named endpoint.

        :raises UnknownProviderError: the catalog has none.
        :raises InvalidFieldError: the name makes no id.
        """
        spec, name = self.get(provider), fields.get("name")
        if name is None or not name.reveal().strip() or not takes_names(spec):
            return spec
        return endpoint(spec, slug_of(name.reveal()))

    @property
    def patterns(self) -> list[ProviderSpec]:
        """What stands for all named endpoints that a person has."""
        return [endpoint(spec, "*") for spec in self if takes_names(spec)]

    def _find(self, provider: str) -> ProviderSpec | None:
        parent, slash, slug = provider.strip().lower().partition("/")
        spec = self._specs.get(_plain(parent))
        return find_endpoint(spec, slug) if slash else spec

    def __iter__(self) -> Iterator[ProviderSpec]:
        return (spec for name, spec in self._specs.items() if name == spec.id)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, provider: object) -> bool:
        return isinstance(provider, str) and self._find(provider) is not None


_LONGEST_TYPO = 40
_MEANT = UnknownProviderError.title + ". Did you mean {!r}?"


def _plain(name: str) -> str:
    """Return an id as the catalog writes it: ``Azure-OpenAI`` is ``azure_openai``."""
    return name.strip().lower().replace("-", "_")
