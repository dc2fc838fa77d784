"""Credentials: the person's secret, what is stored of it, and what a check said about it."""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple, NoReturn, TypedDict, cast, overload

import msgspec

from ..errors import MalformedApiKeyError
from .owner import Tier

#: Who chose an endpoint: our catalog, the operator (any address), or the person (public addresses only).
EndpointTrust = Literal["catalog", "operator", "personal"]
#: A time with a zone; what a store gives back without one does not decode.
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
State = Literal["active", "inactive", "expired", "rejected", "unreadable"]

#: What may be an API key has this many characters at least. Real keys have 20 to about 200.
SHORTEST_KEY = 8
_API_KEY = re.compile(r"[!-~]{1,4096}")

#: How long before it expires a key is said to expire soon.
EXPIRES_SOON = timedelta(days=7)

# Characters that pasting leaves around a key: white space, quotes, and marks that no screen shows.
_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))
_WRAPPING = _WHITE_SPACE + "\"'`“”‘’«»\u200b\u200c\u200d\u2060\ufeff\u00ad"

# Words that examples and templates put in the place of a key.
_PLACEHOLDER_WORDS = (
    "your my our the an a openai anthropic claude google gemini groq xai grok openrouter llm api apikey keys key token "
    "secret here goes insert replace enter put add paste fill set change update me this it in with real own actual "
    "valid value text string to do todo tbd fixme none null nil n/a undefined unset empty missing placeholder dummy "
    "example redacted hidden removed required needed used unused ollama vllm lmstudio lm-studio not no sk proj svcacct "
    "ant api03 or v1 gsk aizasy aiza"
)
_ONE_WORD = "|".join(sorted(_PLACEHOLDER_WORDS.split(), key=len, reverse=True))
# Those words alone, and fillers, in up to 60 characters: placeholders are short, most keys are longer. "++": no
# backtracking, which could take for ever. Then variables that were not filled in, and references not looked up.
_PLACEHOLDER = re.compile(
    rf"""
    (?= .{{,60}} \Z ) (?:
        (?: {_ONE_WORD} | x{{3,}} | [*\#]{{3,}} | [-_\s/.:!?=] )++
        | (?:[a-z0-9]{{1,8}}[-_])* your [-_\s] [a-z]{{1,20}} [-_\s] (?:api[-_\s]?)? key (?:[-_\s]?(?:here|\d))?
        | (?:[a-z0-9]{{1,8}}[-_])+ x{{3,}} | [a-z0-9_-]{{0,30}} (?:\.{{3,}}|…|[•●*]{{3,}}) [a-z0-9_-]{{0,8}}
        | \d{{1,7}} | \[.*\] | \#?\{{.*\}}\#? )
    | \{{ \s* "\w+" \s* : \s* "[^"]*" \s* \}} | \{{\{{.*\}}\}} | <.*>
    | \$\w*\{{.*\}} | \$\(.*\) | @[\w.]+\(.*\) | %\w+% | (?-i:\$[A-Z][A-Z0-9_]*)
    | (?: process\.env | os\.environ | os\.getenv | import\.meta\.env | [a-z][a-z0-9+.-]*:// | projects/.*/secrets/
        | enc[\[(] | (?: ~ | \.\.? | /(?:aws|etc|home|mnt|opt|run|secrets?|usr|var) )/
        | (?: arn | vault | secrets? | secretref | keyvaultref | ssm | (?:aws|azure|gcp)[\w-]* | akv | bws | gsm | op
            | doppler | infisical | k8s | keyring | keychain | env | file | encrypted ) : ) .*
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)

# By id. Not a WeakSet: that cannot be read in one thread while another adds to it.
_live: weakref.WeakValueDictionary[int, Secret] = weakref.WeakValueDictionary()


def _refuse_copy(self: object, *_: object) -> NoReturn:
    raise TypeError(f"a {type(self).__name__} cannot be pickled or copied")


class Secret:
    """A string that does not show itself: no repr, str, format, JSON or pickle of its value."""

    __slots__ = ("__weakref__", "_value", "written_forms")

    def __init__(self, value: str) -> None:
        self._value = value
        #: What the redactor looks for, made at first need and gone with the secret.
        self.written_forms: tuple[frozenset[str], frozenset[str]] | None = None
        _live[id(self)] = self

    def reveal(self) -> str:
        """Return the value; call it only where a client or a request is made."""
        return self._value

    def show(self) -> Secret:
        """Return this value after telling the redactor that it is none: of a region, say, logs may speak."""
        _live.pop(id(self), None)
        return self

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return secrets.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = object.__hash__

    __getstate__ = __reduce_ex__ = _refuse_copy


#: What a credential consists of, by the names of its fields.
Fields = Mapping[str, Secret]


def all_alive() -> Iterator[Secret]:
    """Yield all secrets that are alive in this process, for redaction only."""
    secrets = (reference() for reference in _live.valuerefs())
    return (secret for secret in secrets if secret is not None)


def clean_api_key(text: str, provider: str | None = None, *, shortest: int = SHORTEST_KEY) -> str:
    """Strip what pasting leaves around a key and return the key.

    :param shortest: how many characters it has at least.
    :raises MalformedApiKeyError: it is not printable ASCII of 8 to 4,096 characters. Nothing of it is repeated.
    """
    api_key = text.strip(_WRAPPING)
    if len(api_key) < shortest or not _API_KEY.fullmatch(api_key):
        raise MalformedApiKeyError(
            "An API key has 8 to 4,096 characters: letters, digits and ASCII punctuation, and no spaces or line breaks "
            "inside. Copy the key alone and paste it again.",
            provider=provider,
        )
    return api_key


def is_placeholder(text: str) -> bool:
    """Return True if a text stands in the place of a key: ``your_api_key_here``, ``op://…``; also if it is blank."""
    stripped = text.strip(_WRAPPING)
    return not stripped or _PLACEHOLDER.fullmatch(stripped) is not None


def make_hint(api_key: str, prefixes: tuple[str, ...] = ()) -> str:
    """Return what may be shown of a key: its public prefix and its last 4 characters.

    A key of under 12 characters gets no tail: 4 of so few would give too much away.
    """
    prefix = max((p for p in prefixes if api_key.startswith(p)), key=len, default="")
    tail = api_key[-4:] if len(api_key) >= 12 and len(api_key) >= len(prefix) + 8 else ""
    return f"{prefix}…{tail}"


class Verdict(StrEnum):
    """The outcome of a check."""

    VALID = "valid"
    VALID_RESTRICTED = "valid_restricted"
    VALID_NO_CREDIT = "valid_no_credit"
    VALID_RATE_LIMITED = "valid_rate_limited"
    INVALID = "invalid"
    DISABLED = "disabled"
    WRONG_PROVIDER = "wrong_provider"
    ADMIN_KEY_REFUSED = "admin_key_refused"
    UNREACHABLE = "unreachable"
    UNCHECKED = "unchecked"

    @property
    def valid(self) -> bool | None:
        """True for a good key, False for a bad one, None if the answer does not tell."""
        if self in (Verdict.UNREACHABLE, Verdict.UNCHECKED):
            return None
        return self.value.startswith("valid")


#: The verdicts on bad keys. A check that learnt nothing takes none of them back.
REFUSALS = tuple(verdict for verdict in Verdict if verdict.valid is False)


#: A time in JSON: UTC, ISO 8601 with ``Z``.
Timestamp = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]


class ValidityFacts(TypedDict):
    """The last verdict on a stored key."""

    verdict: Verdict
    checked_at: Timestamp


class ValidationFacts(ValidityFacts):
    """The result of a check."""

    provider: str
    valid: bool | None
    reason: Annotated[str, msgspec.Meta(description="Our own sentence, never the provider's text.")]
    models_available: list[str]
    latency_ms: Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Validation:
    """What a check of a key found. ``reason`` is our own sentence; ``latency_ms`` is in milliseconds."""

    provider: str
    verdict: Verdict
    reason: str
    checked_at: datetime
    latency_ms: int = 0
    models_available: tuple[str, ...] = ()

    @property
    def valid(self) -> bool | None:
        """True, False, or None if the answer does not tell."""
        return self.verdict.valid

    def to_dict(self) -> ValidationFacts:
        """Return the JSON form."""
        facts = dataclasses.asdict(self) | {"valid": self.valid}
        facts["checked_at"] = isoformat(self.checked_at)
        facts["models_available"] = list(self.models_available)
        return cast(ValidationFacts, facts)


@dataclass(frozen=True, slots=True)
class RecordedVerdict:
    """A verdict as stored, with the version of the credential that it is about."""

    verdict: Verdict
    checked_at: Moment
    version: str

    def to_dict(self) -> ValidityFacts:
        """Return the JSON form, as status shows it."""
        return {"verdict": self.verdict, "checked_at": isoformat(self.checked_at)}


@dataclass(frozen=True, slots=True)
class CredentialRecord:
    """A stored credential. Never plaintext.

    ``owner`` is part of what the ciphertext is bound to. ``version`` is new with each change of the key.
    ``id`` names it in the database; what a session keeps has none.
    ``leaving`` marks a session's record that is on its way to the account or out: it counts only while the
    account does not say that it is over.
    ``set_at`` is when the key itself was last saved, None where that is ``created_at``.
    All times are UTC.
    """

    provider: str
    owner: str
    ciphertext: str
    hint: str
    version: str
    created_at: Moment
    updated_at: Moment
    expires_at: Moment | None = None
    label: str | None = None
    description: str | None = None
    slot: str = ""
    active: bool = True
    last_used_at: Moment | None = None
    usage_count: int = 0
    validity: RecordedVerdict | None = None
    id: str = ""
    leaving: bool = False
    set_at: Moment | None = None

    @property
    def saved_at(self) -> datetime:
        """When the key itself was last saved."""
        return self.set_at or self.created_at

    def current_validity(self) -> RecordedVerdict | None:
        """Return the verdict, if it is about this very version."""
        if self.validity is None or self.validity.version != self.version:
            return None
        return self.validity

    def state(self, now: datetime) -> State:
        """Return the state that can be told without opening the ciphertext."""
        if not self.active:
            return "inactive"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        validity = self.current_validity()
        if validity is not None and validity.verdict.valid is False:
            return "rejected"
        return "active"

    def expires_soon(self, now: datetime) -> bool:
        """Return True if it still works, but only for a few days."""
        return self.expires_at is not None and now < self.expires_at <= now + EXPIRES_SOON

    def may_move(self, base_url: str | None, *, asked: bool) -> bool:
        """Return True if it may be promoted: it works, and unless the user asked, it has no address of its own.

        A stranger may have prepared the session, to read at that address what the user sends.
        """
        return self.state(utcnow()) == "active" and (asked or base_url is None)


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """A resolved, opened credential, alive for one use.

    ``fields`` holds the secrets by name; a provider with one key has the field ``api_key``.
    ``base_url`` is the endpoint that it may be sent to and no other; ``trust`` says who chose it.
    ``version`` is None for the operator's environment and secret files.
    """

    provider: str
    source: Tier | Literal["argument"]
    owner: str
    fields: Fields
    base_url: str
    trust: EndpointTrust = "catalog"
    hint: str = ""
    version: str | None = None
    #: Of its row in the database; empty for what is kept elsewhere.
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))

    @property
    def api_key(self) -> str:
        """Return the API key itself; empty for a provider that needs none."""
        return self.reveal("api_key")

    def reveal(self, field: str) -> str:
        """Return the value of one field; an empty string where it is not set."""
        secret = self.fields.get(field)
        return "" if secret is None else secret.reveal()

    def __repr__(self) -> str:
        return f"Credential(provider={self.provider!r}, source={str(self.source)!r}, hint={self.hint!r})"

    __reduce_ex__ = _refuse_copy


#: How a call with a key ended: the provider answered, rejected the key, or did neither.
Outcome = Literal["used", "rejected", "failed"]


class Tokens(NamedTuple):
    """How many tokens a call took, as its provider says."""

    input: int
    output: int


@dataclass(slots=True)
class Use:
    """How often an owner used a key on one day (ISO 8601, UTC) with one outcome, and the tokens that took.

    ``last_used_at`` is in milliseconds since 1970. ``credential_id`` is empty for keys that are not in the database.
    """

    owner: str
    provider: str
    credential_id: str
    day: str
    outcome: Outcome
    uses: int
    last_used_at: int
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class SessionUse:
    """How often the key of one ``version`` was used, in the session that ``ref`` names."""

    ref: str
    provider: str
    version: str
    uses: int
    last_used_at: int


def new_version() -> str:
    """Return a fresh, unguessable version of a stored credential."""
    return secrets.token_hex(8)


def utcnow() -> datetime:
    """Return the present time in UTC, in whole milliseconds."""
    return datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)


def to_milliseconds(moment: datetime) -> int:
    """Return a time in whole milliseconds since 1970, as databases keep it."""
    return round(moment.timestamp() * 1000)


def from_milliseconds(stored: int) -> datetime:
    """Return the UTC time of a number of milliseconds since 1970."""
    return datetime.fromtimestamp(stored / 1000, UTC)


@overload
def isoformat(moment: datetime) -> str: ...
@overload
def isoformat(moment: datetime | None) -> str | None: ...
def isoformat(moment: datetime | None) -> str | None:
    """Return a time as UTC ISO 8601 with ``Z``, or None."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
