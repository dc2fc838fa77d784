"""What describes a provider, as plain data; the catalog of an app's; and what an answer says about a key.

The provider's rules come first, then what holds for every provider. One table serves the check of a key and the calls
that are made with it. They differ in how far an answer is believed: a check carries nothing but the key, whereas an
error in a call may quote the conversation.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, cast

import msgspec

from ..errors import ConfigurationError, UnknownProviderError
from ..model.credential import REFUSALS, Verdict

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
    """A free GET that tells whether a key is good. Paths are relative to the base URL.

    The first of the ``rules`` that fits an answer decides, before the general ones.
    ``models_path`` lists the models; it may be the same request.
    """

    path: str = "/models"
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
    :param fields: by default the API key, with the first of the ``prefixes`` as its placeholder.
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
            use = "use lower-case letters, digits and underscores, a letter first."
            raise ConfigurationError(f"Provider id {self.id!r}: {use}")
        if self.prefixes and self.fields == (Field(),):
            object.__setattr__(self, "fields", (Field(placeholder=f"{self.prefixes[0]}…"),))

    @property
    def personal_base_url(self) -> bool:
        """True if each person gives the base URL, as a field of the credential."""
        return any(f.name == "base_url" for f in self.fields)


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

        :raises ConfigurationError: its id or one of its aliases is taken.
        """
        names = (spec.id, *spec.aliases)
        for name in names:
            if name in self._specs:
                raise ConfigurationError(f"Provider id or alias {name!r} is registered twice.")
        self._specs.update(dict.fromkeys(names, spec))

    def only(self, ids: Sequence[str]) -> Catalog:
        """Return a catalog of these providers alone, in this order.

        :raises ConfigurationError: an id is unknown.
        """
        if (wrong := next((name for name in ids if name not in self), None)) is not None:
            near = difflib.get_close_matches(wrong, self._specs, n=1)
            guess = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(self._specs)}."
            raise ConfigurationError(f"BYOK_PROVIDERS: there is no provider {wrong!r}. {guess}")
        return Catalog(map(self.get, ids))

    def get(self, provider: str) -> ProviderSpec:
        """Return the provider of this id or alias.

        :raises UnknownProviderError: the catalog has none.
        """
        spec = self._specs.get(provider)
        if spec is None:
            # The message does not repeat the name: people paste keys into the wrong field.
            raise UnknownProviderError
        return spec

    def __iter__(self) -> Iterator[ProviderSpec]:
        return (spec for name, spec in self._specs.items() if name == spec.id)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, provider: object) -> bool:
        return provider in self._specs


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


#: The verdict on a key, and the reason in our own words.
Judgement = tuple[Verdict, str]


@dataclass(frozen=True, repr=False)
class Answer:
    """An answer as it came: its HTTP status, its body, and some of its headers, named in lower case.

    An error inside a stream, which began with 200, has the status 0.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def data(self) -> Any:
        """The body's JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


# In a call only these statuses mean the same in every answer. For any other, a rule must name a code or words:
# a 400 or 403 has many causes beside the key.
_PLAIN_STATUSES = frozenset({401, 402, 429})

# What an error inside a stream means: Anthropic's types, OpenAI's codes.
_NAMES_OF_STATUS = {
    401: {"authentication_error", "invalid_api_key"},
    403: {"permission_error"},
    404: {"not_found_error"},
    429: {"rate_limit_error", "rate_limit_exceeded", "insufficient_quota"},
    500: {"api_error", "overloaded_error", "server_error", "service_unavailable"},
}

_NOT_A_PROVIDER = "The answer was not that of a provider. Check the base URL."
_REDIRECT = "{name} sent a redirect, which is never followed with a key. Check the base URL."
_FAULT = "{name} has a fault of its own or too much to do. Try again in a moment."

_CHECK_REASONS = {429: "{name} takes no more checks for now. Try again in a moment."}
_CHECK_UNKNOWN = "{name}'s answer does not tell whether the key is good."

_CALL_REASONS = {
    400: "{name} did not accept this request. Check the model and the messages.",
    402: "The account at {name} has no credit left. Add credit there, or use another key.",
    403: "{name} does not allow this call. Check the key's permissions and your account.",
    404: "{name} does not know this model. Choose another one.",
    413: "The conversation is too long for {name}. Begin a new one.",
    429: "{name} is getting too many calls with this key. Try again in a moment.",
}
_CALL_UNKNOWN = "{name} did not finish its answer. Try again."
_CALL_VERDICTS = {
    **dict.fromkeys(REFUSALS, "{name} rejected this API key. Check it, or save another one."),
    Verdict.VALID_NO_CREDIT: _CALL_REASONS[402],
    Verdict.VALID_RATE_LIMITED: _CALL_REASONS[429],
    Verdict.VALID_RESTRICTED: "The key for {name} may not make this call. Widen its permissions.",
}


def judge_check(spec: ProviderSpec, answer: Answer, secrets: Iterable[str] = ()) -> Judgement:
    """Judge the answer to a check.

    :param secrets: what was sent; the answer is judged without them, so that no key decides its own verdict.
    """
    if rules := [rule for rule in spec.check.rules if answer.status in rule.status]:
        text = _comparable(answer.body, secrets)
        for rule in rules:
            if rule.contains in text:
                return rule.verdict, rule.reason
    if answer.status != 200:
        return _in_general(spec, answer.status, _CHECK_REASONS, _CHECK_UNKNOWN)
    if isinstance(answer.data, dict | list):
        return Verdict.VALID, "The key works."
    return Verdict.UNCHECKED, _NOT_A_PROVIDER


def judge_call(
    spec: ProviderSpec, answer: Answer, secrets: Iterable[str] = (), *, elsewhere: bool = False
) -> Judgement:
    """Judge an error that a call brought: the refusal that came in place of an answer, or an error inside a stream.

    :param secrets: see :func:`judge_check`.
    :param elsewhere: the call may want another kind of key: the status alone says nothing about this one.
    """
    error = _Error.read(answer, secrets)
    general = _in_general(spec, error.status, _CALL_REASONS, _CALL_UNKNOWN)
    for rule in spec.check.rules:
        if error.status in (0, *rule.status) and error.fits(rule, elsewhere):
            known = _CALL_VERDICTS.get(rule.verdict)
            reason = known.format(name=spec.name) if known else general[1]
            return rule.verdict, reason
    return general


def _in_general(spec: ProviderSpec, status: int, reasons: dict[int, str], other: str) -> Judgement:
    reason, verdict = reasons.get(status, other), Verdict.UNCHECKED
    if 300 <= status < 400:
        reason, verdict = _REDIRECT, Verdict.UNREACHABLE
    if status >= 500:
        reason, verdict = _FAULT, Verdict.UNREACHABLE
    return verdict, reason.format(name=spec.name)


def _comparable(body: bytes, secrets: Iterable[str]) -> str:
    """Return a body as rules compare it: in lower case, JSON without white space, without the secrets."""
    text = _without(secrets, body.decode(errors="replace"))
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    return text.lower()


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in filter(None, secrets):
        text = text.replace(secret, "")
    return text


# The fields of an error that are meant for machines: OpenAI's and Anthropic's errors, google.rpc.
_MACHINE_FIELDS = ("code", "type", "status", "reason")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class _Error(NamedTuple):
    """An error as a call brings it: codes for machines, and a message for people, which may quote the conversation."""

    status: int
    codes: list[str]
    message: str

    @classmethod
    def read(cls, answer: Answer, secrets: Iterable[str]) -> _Error:
        body = answer.data if answer.data is not None else answer.body.decode(errors="replace")
        if isinstance(body, list) and body:
            body = body[0]  # Google's, of streams
        if isinstance(body, dict) and isinstance(body.get("error"), dict):
            body = body["error"]
        facts = body if isinstance(body, dict) else {}
        # The sentence for people: the body itself, or what it calls message or, as xAI does, error.
        texts = (facts.get("message"), facts.get("error")) if facts else (body,)
        message = next((text for text in texts if isinstance(text, str)), "").lower()
        message = _without(map(str.lower, secrets), message)
        codes = list(_codes(facts))
        return cls(answer.status or _meant_status(facts.get("code"), codes), codes, message)

    def fits(self, rule: Rule, elsewhere: bool) -> bool:
        if not rule.contains:
            return self.status in _PLAIN_STATUSES and not elsewhere
        if any(rule.contains in code for code in self.codes):
            return True
        # Further on in a message the words may be the conversation's: no reason to reject a key.
        found = self.message.find(rule.contains)
        return found == 0 or (found > 0 and rule.verdict.valid is not False)


def _codes(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the values that are meant for machines, from an error and from the details that Google adds."""
    details = facts.get("details")
    for part in (facts, *(details if isinstance(details, list) else ())):
        values = map(part.get, _MACHINE_FIELDS) if isinstance(part, dict) else ()
        yield from (v.lower() for v in values if isinstance(v, str) and _IDENTIFIER.fullmatch(v))


def _meant_status(code: object, names: Sequence[str]) -> int:
    """Return the HTTP status that an error inside a stream means, or 0."""
    if isinstance(code, int) and 300 <= code < 600:
        return code
    meant = (status for status, known in _NAMES_OF_STATUS.items() if not known.isdisjoint(names))
    return next(meant, 0)
