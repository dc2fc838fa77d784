"""The operator's settings, read once from a mapping and the environment, and checked."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import idna
import msgspec

from .errors import ConfigurationError
from .metrics import Library
from .model.owner import Tier

Cipher = Literal["fernet", "aes-256-gcm"]
FallbackReason = Literal["rejected", "unreadable", "no_credit", "rate_limited", "unreachable"]
StoreFailure = Literal["fail", "skip"]
ValidateOnSet = Literal["off", "warn", "require"]
Promote = Literal["ask", "on_login", "never"]
Labels = Literal["default", "env"]

#: Named lookup orders for ``BYOK_PRECEDENCE``.
PRECEDENCES: dict[str, tuple[Tier, ...]] = {
    "user_first": (Tier.SESSION, Tier.USER, Tier.TEAM, Tier.SYSTEM, Tier.SECRET, Tier.ENV),
    "env_first": (Tier.SECRET, Tier.ENV, Tier.SESSION, Tier.USER, Tier.TEAM, Tier.SYSTEM),
}

#: A session in steady use still ends after this many lifetimes (OWASP ASVS asks for an absolute maximum).
MAX_SESSION_LIFETIMES = 30

#: Longest duration: now and 30 times that is before the year 10000, where dates end.
LONGEST = timedelta(days=36_500)

_FROM_ENVIRONMENT = ("encryption_key", "encryption_key_fallbacks")

_FLAGS = dict.fromkeys(("true", "yes", "on", "1"), True)
_FLAGS |= dict.fromkeys(("false", "no", "off", "0"), False)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN_TEXT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(ms|[smhd])")

# Scheme, host (of labels with dots between them, or an IPv6 address) and port.
_LABEL = r"[^\0-,./:-@\[-^`{-\x7f]+"
_ORIGIN = re.compile(rf"(https?)://({_LABEL}(?:\.{_LABEL})*\.?|\[[\da-f:.]+\])(?::(\d{{1,5}}))?/?")
_DEFAULT_PORTS = {"http": 80, "https": 443}

_logger = logging.getLogger("flask_byok")


def _within_limits(span: timedelta | None) -> timedelta | None:
    if span is not None and not timedelta(seconds=1) <= span <= LONGEST:
        raise ValueError
    return span


def _of_days(span: timedelta | None) -> timedelta | None:
    if span is not None and span < timedelta(days=1):
        raise ValueError
    return span


def _different(tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
    if not tiers or len(set(tiers)) != len(tiers):
        raise ValueError
    return tiers


def _http_urls(urls: Mapping[str, str]) -> Mapping[str, str]:
    for parts in map(urlsplit, urls.values()):
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
    return urls


def _proxy(url: str | None) -> str | None:
    if url in (None, "environment"):
        return url
    parts = urlsplit(url)
    whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    if not whole or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError
    return url


def _as_browsers_send(text: str) -> str:
    """Return an origin in the form of the header ``Origin``: in lower case and ASCII, without the default port."""
    match = _ORIGIN.fullmatch(text.strip().lower())
    if match is None or not 0 < (port := int(match[3] or _DEFAULT_PORTS[match[1]])) <= 65_535:
        raise ValueError
    # Python's own codec is of 2003: browsers write other names for some letters.
    host = match[2] if match[2].isascii() else idna.encode(match[2], uts46=True).decode()
    if host.startswith("["):
        host = f"[{IPv6Address(host[1:-1])}]"
    return f"{match[1]}://{host}" + ("" if port == _DEFAULT_PORTS[match[1]] else f":{port}")


_NAMES = "a sequence of names, or a text with commas"
# Who writes 90 means days, and would lose nearly everything.
_DAYS = "a timedelta of at least a day, or a text such as '90d'"
_SECONDS = "a number of seconds from 0.05 to 60, or a text such as '2s' or '500ms'"
_ORIGINS = "a sequence of origins such as 'https://app.example.org': scheme, host and port, no path, no pattern"
_PORTS = "a sequence of port numbers from 1 to 65535, such as (443, 8443)"
_PROXY = "the URL of an HTTP proxy such as 'http://proxy.example:3128', or 'environment'"
_CA_FILE = "the path of a PEM file with certificates, or 'environment'"
_PATH = "a path that starts with '/', without blanks, '<', '>', '?' and '#'"
_TIERS = f"'user_first', 'env_first', or a sequence of different tiers out of {', '.join(Tier)}"
_REASONS = f"a sequence of reasons out of {', '.join(get_args(FallbackReason))}"
_SPAN = "a timedelta, or seconds, from 1 second to 100 years, or a text such as '24h' or '30d'"

# What msgspec converts to; then functions that check or finish the value; last, what the operator should write.
_Flag = Annotated[bool, "True or False"]
_Nonce = Annotated[Callable[[], str] | None, "a function without arguments"]
_Rate = Annotated[str, "a rate such as '20/minute'"]
_Lookup = Annotated[tuple[Tier, ...], _different, _TIERS]
_Reasons = Annotated[frozenset[FallbackReason], _REASONS]
_Urls = Annotated[Mapping[str, str], _http_urls, "a mapping of provider ids to http or https URLs"]
_Seconds = Annotated[Annotated[float, msgspec.Meta(ge=0.05, le=60)] | None, _SECONDS]
_Count = Annotated[Annotated[int, msgspec.Meta(ge=1)] | None, "a whole number from 1 up"]
_Origins = Annotated[tuple[str, ...], lambda each: tuple(map(_as_browsers_send, each)), _ORIGINS]
_Ports = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=1, le=65_535)], ...], msgspec.Meta(min_length=1), _PORTS
]
_UrlPath = Annotated[str, msgspec.Meta(pattern=r"^/[^\s<>?#]*$"), lambda p: p.rstrip("/"), _PATH]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one app. Attribute names are the config keys without ``BYOK_``, in lower case."""

    encryption_key: str | bytes | None = field(default=None, repr=False)
    encryption_key_fallbacks: tuple[str | bytes, ...] = field(default=(), repr=False)
    cipher: Cipher = "fernet"
    precedence: _Lookup = PRECEDENCES["user_first"]
    providers: Annotated[tuple[str, ...] | None, _NAMES] = None
    require_login: _Flag = False
    base_urls: _Urls = field(default_factory=dict)
    locked_providers: Annotated[frozenset[str], _NAMES] = frozenset()
    session_store: Any = "database"
    redis: Any = field(default=None, repr=False)
    redis_wait: Annotated[int, msgspec.Meta(ge=0), "a whole number from 0 up"] = 0
    #: None here and below: the default of ``storage.redis`` or ``storage.engine``.
    redis_timeout: _Seconds = None
    secrets_dir: Annotated[Path, "the path of a directory"] = Path("/run/secrets")
    database_url: Any = field(default=None, repr=False)
    database_timeout: _Seconds = None
    database_connections: _Count = None
    session_ttl: Annotated[timedelta, _within_limits, _SPAN] = timedelta(hours=24)
    validate_on_set: ValidateOnSet = "warn"
    promote: Promote = "ask"
    max_key_lifetime: Annotated[timedelta | None, _within_limits, _SPAN] = None
    keys_per_provider: Annotated[int, msgspec.Meta(ge=1), "a whole number from 1 up"] = 1
    fallback_on: _Reasons = frozenset()
    failover: _Flag = False
    on_store_failure: StoreFailure = "fail"
    allow_custom_providers: _Flag = False
    allow_private_endpoints: _Flag = False
    endpoint_ports: _Ports = (443,)
    proxy: Annotated[str | None, _proxy, _PROXY] = field(default=None, repr=False)
    ca_file: Annotated[Path | None, _CA_FILE] = None
    allow_reveal: _Flag = False
    validate_rate: _Rate = "20/minute"
    set_rate: _Rate = "20/minute"
    trusted_origins: _Origins = ()
    url_prefix: _UrlPath = "/api"
    gateway: _Flag = False
    csp_nonce: _Nonce = field(default=None, repr=False)
    labels: Labels = "default"
    metrics: Annotated[Library | None, "'prometheus' or 'opentelemetry'"] = None
    audit_retention: Annotated[timedelta | None, _within_limits, _of_days, _DAYS] = None
    usage_retention: Annotated[timedelta, _within_limits, _of_days, _DAYS] = timedelta(days=90)

    def slots_of(self, provider: str) -> int:
        """Return how many keys an owner may have for a provider; a named endpoint (``custom/…``) has one."""
        return 1 if "/" in provider else self.keys_per_provider

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ
    ) -> Settings:
        """Read the settings from a Flask config and the environment.

        A text may be what people write in the environment: JSON, ``yes``, ``openai,groq``, ``24h``. An empty one counts
        as unset.

        :raises ConfigurationError: a value is invalid, or there is no such setting; the message names the config key
            and says what to write.
        """
        keys = {each.name: f"BYOK_{each.name.upper()}" for each in fields(cls)}
        _refuse_unknown(config)
        for _, sentence in unread(config, environ):
            _logger.warning("%s", sentence)
        given = {n: key for n, key in keys.items() if _unquoted(config.get(key, "")) != ""}
        read = {name: _read(name, config[key]) for name, key in given.items()}
        read["encryption_key"] = _encryption_key(config, environ)
        read["encryption_key_fallbacks"] = _fallbacks(config, environ)
        read["redis"] = _unquoted(config.get("BYOK_REDIS")) or config.get("SESSION_REDIS")
        store = _unquoted(config.get("BYOK_SESSION_STORE"))
        store = store.lower() if isinstance(store, str) else store
        read["session_store"] = store or ("redis" if read["redis"] else "database")
        return cls(**read)


_HINTS = get_type_hints(Settings, include_extras=True)


def _known() -> list[str]:
    return [*(f"BYOK_{each.name.upper()}" for each in fields(Settings)), "BYOK_ENCRYPTION_KEY_FILE"]


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    for name in config:
        if str(name).startswith("BYOK_") and name not in _known():
            (nearest,) = get_close_matches(name, _known(), 1, cutoff=0)
            raise ConfigurationError(
                f"There is no setting {name}; did you mean {nearest}? All are described on the documentation's page "
                "'Configuration'."
            )


def unread(config: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
    """Yield a sentence with advice for each variable that is named as a setting and is not read.

    Before it stands True if a setting was meant: the variable may be the host's own.
    """
    for name, value in environ.items():
        # FLASK_BYOK_BASE_URLS__openai is a part of BYOK_BASE_URLS.
        key, *parts = name.removeprefix("FLASK_").partition("__")
        is_read = "ENCRYPTION_KEY" in name and name in _known()
        if not key.startswith("BYOK_") or is_read or not value:
            continue
        meant = get_close_matches(key, _known(), 1, cutoff=0.8)
        advice = "There is no such setting. If it is your app's own, give it another name."
        for nearest in meant:
            advice = (
                f"Call app.config.from_prefixed_env(), and name it FLASK_{nearest}{''.join(parts)}."
            )
        if config.keys().isdisjoint(meant):  # otherwise the host reads it by itself
            yield bool(meant), f"{name} in the environment is not read. {advice}"


def source_of(name: str, config: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return where the value of a setting comes from: config, environment, file or default.

    :param name: the attribute's name in ``Settings``.
    """
    key = f"BYOK_{name.upper()}"
    value = _unquoted(config.get(key))
    # For these two every empty value counts as unset.
    if value or (value not in (None, "") and name not in _FROM_ENVIRONMENT):
        return "config"
    if name == "redis" and config.get("SESSION_REDIS"):
        return "config: SESSION_REDIS"
    if name in _FROM_ENVIRONMENT and environ.get(key):
        return "environment"
    path = config.get(f"{key}_FILE") or environ.get(f"{key}_FILE")
    return f"file: {path}" if name == "encryption_key" and path else "default"


def _read(name: str, value: Any) -> Any:
    """Convert one value to its attribute's type; attributes that take any object keep it."""
    hint = _HINTS[name]
    details = getattr(hint, "__metadata__", ())
    if not details and get_origin(hint) is not Literal:
        return _unquoted(value)
    is_span = _within_limits in details or hint == _Seconds
    for meant in _meanings(_unquoted(value), is_span=is_span):
        preset = PRECEDENCES.get(meant) if name == "precedence" and str(meant) == meant else None
        with suppress(ValueError, msgspec.ValidationError):  # msgspec 0.18's is no ValueError
            # Numbers in the environment are texts.
            strict = not is_span and hint != _Ports
            read = msgspec.convert(preset or meant, hint, strict=strict, dec_hook=_as_path)
            for finish in filter(callable, details):
                read = finish(read)
            return read
    raise ConfigurationError(_complaint(name, value, hint))


def _unquoted(value: Any) -> Any:
    """Return a text without the quotes and spaces that files of environment variables leave around it."""
    return value.strip().strip("\"'") if isinstance(value, str) else value


def _meanings(value: Any, *, is_span: bool) -> Iterator[Any]:
    """Yield what a value can mean; the first one of the setting's type counts."""
    yield value
    text = str(value).lower()
    if text in _FLAGS and not isinstance(value, float) and not is_span:
        yield _FLAGS[text]
    if is_span and isinstance(value, timedelta):
        yield value.total_seconds()
    if not isinstance(value, str):
        return
    yield text
    with suppress(msgspec.DecodeError):
        yield msgspec.json.decode(value)
    if is_span and (span := _SPAN_TEXT.fullmatch(text)):
        yield float(span[1]) * _UNITS[span[2]]
    if is_span and text == "none":
        yield None
    if value.strip(", "):
        yield _names(value)


def _names(text: str) -> list[str]:
    """Return the names in a text, with commas or spaces between them; or those in a JSON list."""
    with suppress(msgspec.DecodeError, msgspec.ValidationError):
        return msgspec.json.decode(text, type=list[str])
    return text.replace(",", " ").split()


def _as_path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path and value else value


def _complaint(name: str, value: Any, hint: Any) -> str:
    """Return what to write instead of a value; the value itself unless it may hold a password."""
    is_secret = name == "base_urls" or not Settings.__dataclass_fields__[name].repr
    fault = "cannot be used" if is_secret else f"is {value!r}"
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    use = f"one of {', '.join(map(repr, choices))}" if choices else hint.__metadata__[-1]
    return f"BYOK_{name.upper()} {fault}; use {use}."


def _encryption_key(config: Mapping[str, Any], environ: Mapping[str, str]) -> str | bytes | None:
    key = "BYOK_ENCRYPTION_KEY"
    text: str | bytes | None = _unquoted(config.get(key) or environ.get(key))
    path = config.get(f"{key}_FILE") or environ.get(f"{key}_FILE")
    if text or not path:
        return text or None
    try:
        content = Path(path).read_text().strip()
    except (OSError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{key}_FILE: {path} cannot be read ({type(error).__name__}). Check the path and the file's permissions."
        ) from None
    if not content:
        raise ConfigurationError(
            f"{key}_FILE: {path} is empty. Write a key from 'flask byok generate-key' to it."
        )
    return content


def _fallbacks(config: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[str | bytes, ...]:
    key = "BYOK_ENCRYPTION_KEY_FALLBACKS"
    value: Any = config.get(key) or environ.get(key) or ()
    if isinstance(value, bytes):
        return (value,)
    if isinstance(value, str):
        return tuple(_names(_unquoted(value)))
    if not isinstance(value, Sequence):
        raise ConfigurationError(f"{key}: use a sequence of encryption keys, newest first.")
    return tuple(value)
