"""Take in what a person typed: clean it, check where it may go, before anything else sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import get_args

from ..catalog import Field, ProviderSpec
from ..errors import EndpointNotAllowedError, InvalidFieldError, MalformedApiKeyError
from ..http import Endpoint, check_personal_base_url, endpoint_for
from ..model.credential import Secret, clean_api_key, utcnow
from ..settings import Settings, ValidateOnSet
from .notes import clean_note

_LONGEST_PLAIN = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What a person wants to save. ``fields`` holds the secrets as typed, by field name."""

    fields: Mapping[str, Secret]
    base_url: str | None = None
    label: str | None = None
    description: str | None = None
    expires_at: datetime | None = None
    validate: ValidateOnSet | None = None
    persist: bool = False

    def __post_init__(self) -> None:
        _require_mode(self.validate)

    def with_clean_notes(
        self, fields: Mapping[str, Secret], specs: Iterable[ProviderSpec]
    ) -> NewKey:
        """Return it with its label and description as they are kept; for the errors see ``clean_note``."""
        label = clean_note(self.label, "label", fields, specs)
        description = clean_note(self.description, "description", fields, specs)
        return replace(self, label=label, description=description)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """What was typed in the place of a stored key: blank fields keep what they have."""

    fields: Mapping[str, Secret]
    base_url: str | None = None
    validate: ValidateOnSet | None = None

    def __post_init__(self) -> None:
        _require_mode(self.validate)

    @property
    def given(self) -> dict[str, Secret]:
        """The fields that are not blank."""
        return {name: text for name, text in self.fields.items() if text.reveal().strip()}

    @property
    def moves(self) -> bool:
        """Say whether the key is to go to another address."""
        return bool(self.base_url) or "base_url" in self.given

    @property
    def is_typed(self) -> bool:
        """Say whether anything is to be replaced."""
        return self.moves or bool(self.given)


@dataclass(frozen=True, slots=True)
class Typed:
    """A cleaned credential, and the endpoint that it goes to.

    ``secrets`` are those of the fields that nobody may see; ``base_url`` is the person's own, or None.
    """

    fields: Mapping[str, Secret]
    secrets: Mapping[str, Secret]
    base_url: str | None
    endpoint: Endpoint

    def revealed(self) -> dict[str, str]:
        """Return the plain values, for the one request that carries them."""
        return {name: secret.reveal() for name, secret in self.fields.items()}


def require_word(word: object, name: str, words: Collection[str]) -> None:
    """Refuse what is none of these words.

    :raises InvalidFieldError: it is none; the message names the field and the words.
    """
    if word not in words:
        raise InvalidFieldError(f"The field {name!r} is one of {', '.join(map(repr, words))}.")


def read_typed(
    spec: ProviderSpec, fields: Mapping[str, Secret], base_url: str | None, settings: Settings
) -> Typed:
    """Return what was typed, cleaned.

    :param base_url: the person's own, where it is not among the fields.
    :raises InvalidFieldError: the provider has no such field, or a field that is no secret is missing or odd.
    :raises MalformedApiKeyError: a secret is missing or cannot be a key.
    :raises EndpointNotAllowedError: keys may not be sent to that base URL.
    """
    if base_url and "base_url" in fields:
        raise InvalidFieldError("Send the base URL once.", provider=spec.id)
    if base_url and spec.personal_base_url:
        fields = {"base_url": Secret(base_url), **fields}
    elif base_url:
        raise EndpointNotAllowedError(
            f"Keys for {spec.name} go to its own address only: leave out the base URL.",
            provider=spec.id,
        )
    if not fields.keys() <= {f.name for f in spec.fields}:
        raise InvalidFieldError(f"{spec.name} has no such field.", provider=spec.id)
    cleaned = {f.name: _clean(spec, f, fields.get(f.name)) for f in spec.fields}
    given = {name: secret for name, secret in cleaned.items() if secret is not None}
    own = given.pop("base_url", None)
    personal = None if own is None else _personal(spec, own.reveal(), settings)
    secrets = {f.name: given[f.name] for f in spec.fields if f.secret and f.name in given}
    return Typed(given, secrets, personal, endpoint_for(spec, settings.base_urls, personal))


def read_replacement(
    spec: ProviderSpec,
    secret: NewSecret,
    stored: Callable[[], tuple[Mapping[str, Secret], str | None]],
    settings: Settings,
) -> tuple[Typed, bool]:
    """Return what was typed, with what is kept of the stored key, and whether anything is.

    :param stored: opens the stored key, where something of it may be kept.
    :raises MalformedApiKeyError: a stored key is used only with the address, and with whatever else is no secret,
        that it was saved with: it has to be typed too.
    """
    given, names = secret.given, {f.name for f in spec.fields} - {"base_url"}
    if secret.moves:
        if not names & given.keys():
            raise _retype("A key goes only to the address that it was saved with", spec)
        return read_typed(spec, given, secret.base_url, settings), False
    if names <= given.keys() and not spec.personal_base_url:
        return read_typed(spec, given, None, settings), False
    fields, base_url = stored()
    kept = {name: fields[name] for name in names & fields.keys() - given.keys()}
    own = base_url if spec.personal_base_url else None
    typed = read_typed(spec, {**kept, **given}, own, settings)
    if typed.secrets.keys() & kept.keys() and _plain(spec, typed.fields) != _plain(spec, fields):
        # One of them may say where the key is sent to, and who types it need not know the key.
        raise _retype("A key is used only with what it was saved with", spec)
    return typed, True


def _retype(reason: str, spec: ProviderSpec) -> MalformedApiKeyError:
    return MalformedApiKeyError(f"{reason}: type the key too.", provider=spec.id)


def _plain(spec: ProviderSpec, fields: Mapping[str, Secret]) -> dict[str, str]:
    """Return the values of those fields that are no secret."""
    plain = {f.name for f in spec.fields if not f.secret}
    return {name: value.reveal() for name, value in fields.items() if name in plain}


def read_expiry(
    wanted: datetime | None, provider: str, settings: Settings, saved_at: datetime | None = None
) -> datetime | None:
    """Return when the key expires: as wanted, but no later than ``BYOK_MAX_KEY_LIFETIME`` after it was saved.

    :param saved_at: by default now.
    :raises InvalidFieldError: the time is past or has no zone, or the key has had all the time that keys may have.
    """
    now = utcnow()
    if wanted is not None:
        wanted = in_utc(wanted, "expires_at", provider)
    if wanted is not None and wanted <= now:
        raise InvalidFieldError("expires_at is in the past.", provider=provider)
    ends = cut_short(wanted, settings, saved_at)
    if ends is not None and ends <= now:
        raise InvalidFieldError(
            "This key has been kept for as long as keys may be. Save a new one.", provider=provider
        )
    return ends


def cut_short(
    wanted: datetime | None, settings: Settings, saved_at: datetime | None = None
) -> datetime | None:
    """Return when a key expires: as wanted, but no later than the operator allows.

    :param saved_at: when it was saved, by default now.
    """
    lifetime, now = settings.max_key_lifetime, utcnow()
    latest = None if lifetime is None else min(saved_at or now, now) + lifetime
    return min((moment for moment in (wanted, latest) if moment is not None), default=None)


def in_utc(moment: datetime, name: str, provider: str) -> datetime:
    """Return a time in UTC, in whole milliseconds, as it is stored.

    :raises InvalidFieldError: it is no time, has no zone, or there is no such time in UTC.
    """
    _require_time(moment, name, provider)
    if moment.tzinfo is None:
        raise InvalidFieldError(
            f"{name} needs a time zone, such as a Z at its end.", provider=provider
        )
    try:
        there = moment.astimezone(UTC)
    except OverflowError:
        raise InvalidFieldError(f"{name} is too far away.", provider=provider) from None
    return there.replace(microsecond=there.microsecond // 1000 * 1000)


def _require_mode(validate: object) -> None:
    if validate is not None:
        require_word(validate, "validate", get_args(ValidateOnSet))


def _require_time(moment: object, name: str, provider: str) -> None:
    if not isinstance(moment, datetime):
        raise InvalidFieldError(f"{name} is a datetime with a time zone.", provider=provider)


def _clean(spec: ProviderSpec, f: Field, value: Secret | None) -> Secret | None:
    text = value.reveal().strip() if value is not None else ""
    if not text:
        if f.required:
            kind = MalformedApiKeyError if f.secret else InvalidFieldError
            raise kind(f"{f.label} is missing.", provider=spec.id)
        return None
    if not f.secret:
        return Secret(_clean_plain(spec, f, text))
    try:
        return Secret(clean_api_key(text))
    except MalformedApiKeyError as error:
        raise MalformedApiKeyError(str(error), provider=spec.id) from None


def _clean_plain(spec: ProviderSpec, f: Field, text: str) -> str:
    # It may travel in a header; a base URL is checked by its own rules.
    if f.name != "base_url" and (
        len(text) > _LONGEST_PLAIN or not all(" " <= char <= "~" for char in text)
    ):
        raise InvalidFieldError(
            f"{f.label} has up to {_LONGEST_PLAIN} printable ASCII characters.", provider=spec.id
        )
    return text


def _personal(spec: ProviderSpec, base_url: str, settings: Settings) -> str:
    if not settings.allow_custom_providers:
        raise EndpointNotAllowedError(
            "A base URL of your own is not allowed here.", provider=spec.id
        )
    try:
        return check_personal_base_url(base_url, allow_private=settings.allow_private_endpoints)
    except EndpointNotAllowedError as error:
        raise EndpointNotAllowedError(str(error), provider=spec.id) from None
