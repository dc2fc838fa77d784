"""Read what a person typed: the key's fields, its address, the texts beside it and its expiry.

Everything is cleaned and checked here, before a provider is asked or anything is stored.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from ..catalog import Catalog, ProviderSpec
from ..catalog.endpoints import base_of, shown, slug_of
from ..catalog.paste import SHORTEST_REAL_KEY, clean_pasted
from ..errors import EndpointNotAllowedError, InvalidFieldError
from ..http import Endpoint, check_personal_base_url, endpoint_for
from ..model.credential import (
    SHORTEST_KEY,
    Credential,
    Fields,
    Secret,
    utcnow,
)
from ..settings import Settings, ValidateOnSet

_LONGEST_TEXT = {"label": 100, "description": 500, "name": 100, "model": 200}
# Fields that are no secret of anybody's: other texts may contain them.
_IN_TEXTS = {"base_url", "name", "model"}
# Control characters, characters that change the direction of text or have no width, lone surrogates, line separators.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Emoji and some scripts are written with these.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to store. ``fields`` holds the secrets as typed, by field name.

    ``imported``: it was stored elsewhere before, so its provider is not asked and its expiry may be past.
    """

    fields: Fields
    base_url: str | None = None
    label: str | None = None
    description: str | None = None
    expires_at: datetime | None = None
    active: bool = True
    validate: ValidateOnSet | None = None
    persist: bool = False
    imported: bool = False


@dataclass(frozen=True, slots=True)
class Typed:
    """A cleaned credential and the endpoint it may be sent to.

    ``secrets`` are the fields that must never be shown; ``base_url`` is the person's own, or None.
    """

    fields: Fields
    secrets: Fields
    base_url: str | None
    endpoint: Endpoint

    @classmethod
    def of(cls, credential: Credential) -> Typed:
        """Return a resolved credential as it would be typed again."""
        endpoint = Endpoint(credential.base_url, credential.trust)
        return cls(credential.fields, credential.fields, None, endpoint)

    def revealed(self) -> dict[str, str]:
        """Return the plain values, for the one request that carries them."""
        return {name: secret.reveal() for name, secret in self.fields.items()}


def require_word(word: object, name: str, words: Collection[str]) -> None:
    """Refuse a value that is none of these words.

    :raises InvalidFieldError: naming the field and the words.
    """
    if word not in words:
        raise InvalidFieldError(f"The field {name!r} is one of {', '.join(map(repr, words))}.")


# the key


def read_typed(
    spec: ProviderSpec, fields: Fields, base_url: str | None, settings: Settings
) -> Typed:
    """Clean a typed credential.

    :param base_url: the person's own, if it is not among the fields.
    :raises InvalidFieldError: the provider has no such field, or a plain field is missing or malformed.
    :raises MalformedApiKeyError: a secret is missing or cannot be a key.
    :raises EndpointNotAllowedError: keys may not be sent to that base URL.
    """
    if base_url and "base_url" in fields:
        raise InvalidFieldError("Send the base URL once.", provider=spec.id)
    if base_url and spec.personal_base_url:
        fields = {"base_url": Secret(base_url), **fields}
    elif base_url:
        text = f"Keys for {spec.name} go to its own address only: leave out the base URL."
        raise EndpointNotAllowedError(text, provider=spec.id)
    if not fields.keys() <= {f.name for f in spec.fields}:
        raise InvalidFieldError(f"{spec.name} has no such field.", provider=spec.id)
    cleaned = {f.name: clean_pasted(spec, f, fields.get(f.name)) for f in spec.fields}
    given = {name: secret for name, secret in cleaned.items() if secret is not None}
    own = given.pop("base_url", None)
    personal = None if own is None else _personal(spec, own.reveal(), settings)
    secrets = {f.name: given[f.name] for f in spec.fields if f.secret and f.name in given}
    given |= _read_shown(spec, given, secrets)
    endpoint = endpoint_for(spec, settings.base_urls, personal, given)
    return Typed(given, secrets, personal, endpoint)


def _read_shown(spec: ProviderSpec, given: Fields, secrets: Fields) -> dict[str, Secret]:
    """Clean the name and the model of a person's own server."""
    texts: dict[str, Secret] = {}
    for name in given.keys() & shown(spec):
        text = clean_text(given[name].reveal(), name, secrets, Catalog.shipped)
        texts[name] = Secret(text or "")
        if name == "name" and spec.id.partition("/")[2] != slug_of(text or ""):
            said = "An endpoint keeps its name. Save another one under the other name."
            raise InvalidFieldError(said, provider=spec.id)
    return texts


def _personal(spec: ProviderSpec, base_url: str, settings: Settings) -> str:
    if not settings.allow_custom_providers:
        raise EndpointNotAllowedError("A base URL of your own is not allowed.", provider=spec.id)
    try:
        return check_personal_base_url(
            base_of(base_url),
            allow_private=settings.allow_private_endpoints,
            ports=settings.endpoint_ports,
        )
    except EndpointNotAllowedError as error:
        raise EndpointNotAllowedError(str(error), provider=spec.id) from None


# the texts beside a key


def clean_text(
    value: str | None,
    name: str,
    fields: Fields,
    specs: Iterable[ProviderSpec],
) -> str | None:
    """Return a label, description, name or model as it is stored; None if it is blank.

    :param fields: the key beside it, which must not occur in it.
    :param specs: providers whose keys must not occur in it either, as far as their prefixes show.
    :raises InvalidFieldError: it is too long, has invisible characters, or seems to hold a key.
    """
    if value is not None and not isinstance(value, str):
        raise InvalidFieldError(f"The field {name!r} is text.")
    text, longest = (value or "").strip(), _LONGEST_TEXT[name]
    if len(text) > longest or has_invisible(text):
        raise InvalidFieldError(f"The field {name!r} has up to {longest} printable characters.")
    refuse_key(text, name, fields, specs)
    return text or None


def has_invisible(text: str) -> bool:
    """Return True if a text has characters that no screen shows."""
    return any(unicodedata.category(char) in _INVISIBLE and char not in _JOINERS for char in text)


def refuse_key(text: str, name: str, fields: Fields, specs: Iterable[ProviderSpec] = ()) -> None:
    """Refuse a text that is shown and holds the key beside it, or seems to hold one of these providers'.

    :raises InvalidFieldError: naming the field.
    """
    values = [secret.reveal() for field, secret in fields.items() if field not in _IN_TEXTS]
    # Shorter ones, a region say, are words.
    typed = any(len(value) >= SHORTEST_KEY and value in text for value in values)
    if typed or _looks_like_key(text, specs):
        raise InvalidFieldError(f"The field {name!r} seems to hold an API key, but it is shown.")


def _looks_like_key(text: str, specs: Iterable[ProviderSpec]) -> bool:
    """Return True if a known prefix starts a word that is long enough for a key."""
    known = {prefix for spec in specs for prefix in (*spec.prefixes, *spec.refused_prefixes)}
    prefixes = "|".join(map(re.escape, known))
    words = re.finditer(rf"(?<![A-Za-z0-9])(?:{prefixes})[\w.-]*", text) if known else ()
    return any(len(word[0]) >= SHORTEST_REAL_KEY for word in words)


# when it expires


def read_expiry(
    wanted: datetime | None,
    provider: str,
    settings: Settings,
    saved_at: datetime | None = None,
    *,
    past: bool = False,
) -> datetime | None:
    """Return when a key expires: as wanted, but at most ``BYOK_MAX_KEY_LIFETIME`` after it was saved.

    :param saved_at: by default now.
    :param past: a time that is past is no mistake.
    :raises InvalidFieldError: the time is past or has no zone, or the key's longest lifetime is over.
    """
    now = utcnow()
    if wanted is not None:
        wanted = in_utc(wanted, "expires_at", provider)
        if wanted <= now and not past:
            raise InvalidFieldError("expires_at is in the past.", provider=provider)
    ends = capped_expiry(wanted, settings, saved_at)
    if ends is not None and ends <= now and not past:
        text = "This key has been kept for as long as keys may be. Save a new one."
        raise InvalidFieldError(text, provider=provider)
    return ends


def capped_expiry(
    wanted: datetime | None, settings: Settings, saved_at: datetime | None = None
) -> datetime | None:
    """Return the earlier of a wanted expiry and the end of the longest lifetime; None if there is neither.

    :param saved_at: when the lifetime began, by default now.
    """
    lifetime, now = settings.max_key_lifetime, utcnow()
    latest = None if lifetime is None else min(saved_at or now, now) + lifetime
    return min((moment for moment in (wanted, latest) if moment is not None), default=None)


def in_utc(moment: object, name: str, provider: str) -> datetime:
    """Return a time in UTC, in whole milliseconds, as it is stored.

    :raises InvalidFieldError: it is no time, has no zone, or is out of range in UTC.
    """
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidFieldError(f"{name} needs a time zone, such as Z.", provider=provider)
    try:
        there = moment.astimezone(UTC)
    except OverflowError:
        raise InvalidFieldError(f"{name} is too far away.", provider=provider) from None
    return there.replace(microsecond=there.microsecond // 1000 * 1000)
