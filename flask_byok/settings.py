"""The operator's settings, read once from a mapping and the environment, and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from .errors import ConfigurationError
from .model.owner import Tier

Cipher = Literal["fernet", "aes-256-gcm"]
FallbackReason = Literal["rejected", "unreadable", "no_credit", "rate_limited", "unreachable"]
StoreFailure = Literal["fail", "skip"]
ValidateOnSet = Literal["off", "warn", "require"]
Promote = Literal["ask", "on_login", "never"]

#: Named lookup orders for ``BYOK_PRECEDENCE``.
PRECEDENCES: dict[str, tuple[Tier, ...]] = {
    "user_first": (Tier.SESSION, Tier.USER, Tier.TEAM, Tier.SYSTEM, Tier.SECRET, Tier.ENV),
    "env_first": (Tier.SECRET, Tier.ENV, Tier.SESSION, Tier.USER, Tier.TEAM, Tier.SYSTEM),
}

_FROM_ENVIRONMENT = ("encryption_key", "encryption_key_fallbacks")

#: A session in steady use still ends after this many lifetimes (OWASP ASVS asks for an absolute maximum).
MAX_SESSION_LIFETIMES = 30

#: Longest time that can be set: now and 30 times that is before the year 10000, where dates end.
LONGEST = timedelta(days=36_500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one app. Attribute names are the config keys without ``BYOK_``, in lower case."""

    encryption_key: str | bytes | None = field(default=None, repr=False)
    encryption_key_fallbacks: tuple[str | bytes, ...] = field(default=(), repr=False)
    cipher: Cipher = "fernet"
    precedence: tuple[Tier, ...] = PRECEDENCES["user_first"]
    providers: tuple[str, ...] | None = None
    require_login: bool = False
    base_urls: Mapping[str, str] = field(default_factory=dict)
    locked_providers: frozenset[str] = frozenset()
    session_store: Any = None
    redis: Any = field(default=None, repr=False)
    redis_wait: int = 0
    secrets_dir: Path = Path("/run/secrets")
    database_url: Any = field(default=None, repr=False)
    session_ttl: timedelta = timedelta(hours=24)
    validate_on_set: ValidateOnSet = "warn"
    promote: Promote = "ask"
    max_key_lifetime: timedelta | None = None
    keys_per_provider: int = 1
    fallback_on: frozenset[FallbackReason] = frozenset()
    on_store_failure: StoreFailure = "fail"
    allow_custom_providers: bool = False
    allow_private_endpoints: bool = False
    allow_reveal: bool = False
    validate_rate: str = "20/minute"
    set_rate: str = "20/minute"
    url_prefix: str = "/api"
    csp_nonce: Callable[[], str] | None = field(default=None, repr=False)
    labels: str = "default"

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ
    ) -> Settings:
        """Read the settings from a Flask config and the environment.

        :raises ConfigurationError: a value cannot be used; the message names the config key and says what to do.
        """
        read = _Reader(config, environ)
        return cls(
            encryption_key=read.encryption_key(),
            encryption_key_fallbacks=read.encryption_key_fallbacks(),
            cipher=read.choice("CIPHER", "fernet", get_args(Cipher)),
            precedence=read.precedence(),
            providers=read.ids("PROVIDERS") if config.get("BYOK_PROVIDERS") is not None else None,
            require_login=read.flag("REQUIRE_LOGIN"),
            base_urls=read.base_urls(),
            locked_providers=frozenset(read.ids("LOCKED_PROVIDERS")),
            session_store=config.get("BYOK_SESSION_STORE"),
            redis=config.get("BYOK_REDIS") or config.get("SESSION_REDIS"),
            redis_wait=read.whole_number("REDIS_WAIT", 0),
            secrets_dir=read.directory("SECRETS_DIR", "/run/secrets"),
            database_url=config.get("BYOK_DATABASE_URL"),
            session_ttl=read.duration("SESSION_TTL", timedelta(hours=24)),
            validate_on_set=read.choice("VALIDATE_ON_SET", "warn", get_args(ValidateOnSet)),
            promote=read.choice("PROMOTE", "ask", get_args(Promote)),
            max_key_lifetime=read.duration("MAX_KEY_LIFETIME", None),
            keys_per_provider=read.whole_number("KEYS_PER_PROVIDER", 1, least=1),
            fallback_on=read.fallback_on(),
            on_store_failure=read.choice("ON_STORE_FAILURE", "fail", get_args(StoreFailure)),
            allow_custom_providers=read.flag("ALLOW_CUSTOM_PROVIDERS"),
            allow_private_endpoints=read.flag("ALLOW_PRIVATE_ENDPOINTS"),
            allow_reveal=read.flag("ALLOW_REVEAL"),
            validate_rate=read.rate("VALIDATE_RATE"),
            set_rate=read.rate("SET_RATE"),
            url_prefix=read.url_prefix(),
            csp_nonce=read.function("CSP_NONCE"),
            labels=read.choice("LABELS", "default", ("default", "env")),
        )


def source_of(name: str, config: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Say where the value of a setting comes from: config, environment, file or default.

    :param name: as an attribute of ``Settings``.
    """
    key = f"BYOK_{name.upper()}"
    # Of these two a value that is empty counts as none, as when they are read.
    if config.get(key) or (config.get(key) is not None and name not in _FROM_ENVIRONMENT):
        return "config"
    if name == "redis" and config.get("SESSION_REDIS"):
        return "config: SESSION_REDIS"
    if name in _FROM_ENVIRONMENT and environ.get(key):
        return "environment"
    path = config.get(f"{key}_FILE") or environ.get(f"{key}_FILE")
    return f"file: {path}" if name == "encryption_key" and path else "default"


class _Reader:
    """Reads one value at a time and complains in the operator's words."""

    def __init__(self, config: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.config = config
        self.environ = environ

    def encryption_key(self) -> str | bytes | None:
        text = self._config_or_environ("BYOK_ENCRYPTION_KEY")
        path = self._config_or_environ("BYOK_ENCRYPTION_KEY_FILE")
        if text or not path:
            return text or None
        try:
            content = Path(path).read_text().strip()
        except (OSError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"BYOK_ENCRYPTION_KEY_FILE: {path} cannot be read ({type(error).__name__}). "
                "Check the path and the file's permissions."
            ) from None
        if not content:
            raise ConfigurationError(
                f"BYOK_ENCRYPTION_KEY_FILE: {path} is empty. "
                "Write a key from 'flask byok generate-key' to it."
            )
        return content

    def encryption_key_fallbacks(self) -> tuple[str | bytes, ...]:
        value = self._config_or_environ("BYOK_ENCRYPTION_KEY_FALLBACKS") or ()
        if isinstance(value, bytes):
            return (value,)
        if isinstance(value, str):
            return tuple(value.replace(",", " ").split())
        if not isinstance(value, Sequence):
            raise ConfigurationError(
                "BYOK_ENCRYPTION_KEY_FALLBACKS must be a sequence of encryption keys, newest first."
            )
        return tuple(value)

    def _config_or_environ(self, name: str) -> Any:
        return self.config.get(name) or self.environ.get(name)

    def flag(self, name: str) -> bool:
        value = self.config.get(f"BYOK_{name}", False)
        if not isinstance(value, bool):
            raise ConfigurationError(f"BYOK_{name} is {value!r}; use True or False.")
        return value

    def whole_number(self, name: str, default: int, *, least: int = 0) -> int:
        value = self.config.get(f"BYOK_{name}", default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(
                f"BYOK_{name} is {value!r}; use a whole number from {least} up."
            )
        return value

    def duration(self, name: str, default: Any) -> Any:
        value = self.config.get(f"BYOK_{name}", default)
        if value is None and default is None:
            return None
        span = _span(value)
        if span is None or not timedelta(seconds=1) <= span <= LONGEST:
            raise ConfigurationError(
                f"BYOK_{name} is {value!r}; use a timedelta, or seconds, from 1 second to 100 years."
            )
        return span

    def directory(self, name: str, default: str) -> Path:
        value = self.config.get(f"BYOK_{name}", default)
        if not isinstance(value, str | Path) or not str(value):
            raise ConfigurationError(f"BYOK_{name} is {value!r}; use the path of a directory.")
        return Path(value)

    def rate(self, name: str) -> str:
        value = self.config.get(f"BYOK_{name}", "20/minute")
        if not isinstance(value, str):
            raise ConfigurationError(f"BYOK_{name} is {value!r}; use a rate such as '20/minute'.")
        return value

    def function(self, name: str) -> Callable[[], str] | None:
        value: Callable[[], str] | None = self.config.get(f"BYOK_{name}")
        if value is not None and not callable(value):
            raise ConfigurationError(f"BYOK_{name} must be a function without arguments.")
        return value

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> Any:
        value = self.config.get(f"BYOK_{name}", default)
        if value not in choices:
            raise ConfigurationError(
                f"BYOK_{name} is {value!r}; use one of {', '.join(map(repr, choices))}."
            )
        return value

    def ids(self, name: str) -> tuple[str, ...]:
        value = self.config.get(f"BYOK_{name}", ())
        if (
            isinstance(value, str)
            or not isinstance(value, Sequence | set | frozenset)
            or not all(isinstance(each, str) for each in value)
        ):
            raise ConfigurationError(f"BYOK_{name} is {value!r}; use a sequence of names.")
        return tuple(value)

    def precedence(self) -> tuple[Tier, ...]:
        value = self.config.get("BYOK_PRECEDENCE", "user_first")
        if isinstance(value, str) and value in PRECEDENCES:
            return PRECEDENCES[value]
        try:
            tiers = () if isinstance(value, str) else tuple(Tier(tier) for tier in value)
        except (TypeError, ValueError):
            tiers = ()
        if not tiers or len(set(tiers)) != len(tiers):
            raise ConfigurationError(
                f"BYOK_PRECEDENCE is {value!r}; use 'user_first', 'env_first', or a sequence of different tiers "
                f"out of {', '.join(Tier)}."
            )
        return tiers

    def fallback_on(self) -> frozenset[Any]:
        reasons = frozenset(self.ids("FALLBACK_ON"))
        if unknown := reasons - set(get_args(FallbackReason)):
            raise ConfigurationError(
                f"BYOK_FALLBACK_ON has {sorted(unknown)!r}; use reasons out of {', '.join(get_args(FallbackReason))}."
            )
        return reasons

    def base_urls(self) -> dict[str, str]:
        urls = self.config.get("BYOK_BASE_URLS", {})
        if not isinstance(urls, Mapping):
            raise ConfigurationError("BYOK_BASE_URLS must be a mapping of provider ids to URLs.")
        for provider, url in urls.items():
            if not _is_http_url(url):
                raise ConfigurationError(
                    f"BYOK_BASE_URLS[{provider!r}] is not an http or https URL."
                )
        return dict(urls)

    def url_prefix(self) -> str:
        value = self.config.get("BYOK_URL_PREFIX", "/api")
        if not isinstance(value, str) or (value and not value.startswith("/")):
            raise ConfigurationError(
                f"BYOK_URL_PREFIX is {value!r}; use a path that starts with '/'."
            )
        return value.rstrip("/")


def _span(value: Any) -> timedelta | None:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError):  # too many, or not a number
        return None


def _is_http_url(url: Any) -> bool:
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
