"""The operator's settings: every key, good and bad."""

from __future__ import annotations

import dataclasses
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flask_byok.errors import ConfigurationError
from flask_byok.model.owner import Tier
from flask_byok.settings import PRECEDENCES, Settings, source_of

ENCRYPTION_KEY = "ab" * 32


def read(environ: dict[str, str] | None = None, **config: Any) -> Settings:
    """Read settings from a config and an environment of the test's own."""
    return Settings.from_config(config, environ or {})


def nonce() -> str:
    """Return what a host's CSP nonce function returns."""
    return "nonce"


#: config key, a good value, what it becomes
GOOD: list[tuple[str, Any, Any]] = [
    ("BYOK_CIPHER", "aes-256-gcm", "aes-256-gcm"),
    ("BYOK_PRECEDENCE", "env_first", PRECEDENCES["env_first"]),
    ("BYOK_PRECEDENCE", ["env", "session"], (Tier.ENV, Tier.SESSION)),
    ("BYOK_PROVIDERS", ["groq", "openai"], ("groq", "openai")),
    ("BYOK_PROVIDERS", [], ()),
    ("BYOK_REQUIRE_LOGIN", True, True),
    ("BYOK_BASE_URLS", {"openai": "http://[::1]:8000/v1"}, {"openai": "http://[::1]:8000/v1"}),
    ("BYOK_LOCKED_PROVIDERS", {"openai"}, frozenset({"openai"})),
    ("BYOK_SESSION_STORE", "redis", "redis"),
    ("BYOK_REDIS", "redis://localhost", "redis://localhost"),
    ("BYOK_REDIS_WAIT", 1, 1),
    ("BYOK_REDIS_TIMEOUT", 1, 1.0),
    ("BYOK_DATABASE_TIMEOUT", 0.4, 0.4),
    ("BYOK_DATABASE_CONNECTIONS", 4, 4),
    ("BYOK_KEYS_PER_PROVIDER", 3, 3),
    ("BYOK_SECRETS_DIR", "/etc/secrets", Path("/etc/secrets")),
    ("BYOK_SECRETS_DIR", Path("secrets"), Path("secrets")),
    ("BYOK_DATABASE_URL", "sqlite://", "sqlite://"),
    ("BYOK_SESSION_TTL", timedelta(minutes=5), timedelta(minutes=5)),
    ("BYOK_SESSION_TTL", 90, timedelta(seconds=90)),
    ("BYOK_VALIDATE_ON_SET", "require", "require"),
    ("BYOK_PROMOTE", "never", "never"),
    ("BYOK_MAX_KEY_LIFETIME", timedelta(days=30), timedelta(days=30)),
    ("BYOK_MAX_KEY_LIFETIME", None, None),
    ("BYOK_FALLBACK_ON", ["rejected", "no_credit"], frozenset({"rejected", "no_credit"})),
    ("BYOK_FAILOVER", True, True),
    ("BYOK_ON_STORE_FAILURE", "skip", "skip"),
    ("BYOK_ALLOW_CUSTOM_PROVIDERS", True, True),
    ("BYOK_ALLOW_PRIVATE_ENDPOINTS", True, True),
    ("BYOK_ENDPOINT_PORTS", [443, 8443], (443, 8443)),
    (
        "BYOK_PROXY",
        "http://user:secret@proxy.example:3128",
        "http://user:secret@proxy.example:3128",
    ),
    ("BYOK_PROXY", "environment", "environment"),
    ("BYOK_PROXY", None, None),
    ("BYOK_CA_FILE", "/etc/ssl/ours.pem", Path("/etc/ssl/ours.pem")),
    ("BYOK_CA_FILE", "environment", Path("environment")),
    ("BYOK_CA_FILE", None, None),
    ("BYOK_ALLOW_REVEAL", True, True),
    ("BYOK_VALIDATE_RATE", "5/hour", "5/hour"),
    ("BYOK_SET_RATE", "5/hour", "5/hour"),
    ("BYOK_TRUSTED_ORIGINS", ["https://a.example"], ("https://a.example",)),
    ("BYOK_GATEWAY", "on", True),
    ("BYOK_URL_PREFIX", "/keys/", "/keys"),
    ("BYOK_URL_PREFIX", "/", ""),
    ("BYOK_CSP_NONCE", nonce, nonce),
    ("BYOK_LABELS", "env", "env"),
    ("BYOK_METRICS", "prometheus", "prometheus"),
    ("BYOK_METRICS", None, None),
    ("BYOK_AUDIT_RETENTION", timedelta(days=365), timedelta(days=365)),
    ("BYOK_USAGE_RETENTION", 86400, timedelta(days=1)),
    ("BYOK_ENCRYPTION_KEY", ENCRYPTION_KEY, ENCRYPTION_KEY),
    ("BYOK_ENCRYPTION_KEY", ENCRYPTION_KEY.encode(), ENCRYPTION_KEY.encode()),
    ("BYOK_ENCRYPTION_KEY_FALLBACKS", ["a", b"b"], ("a", b"b")),
    ("BYOK_ENCRYPTION_KEY_FALLBACKS", "a, b c", ("a", "b", "c")),
    ("BYOK_ENCRYPTION_KEY_FALLBACKS", b"a", (b"a",)),
]

#: config key, what people write in the environment or a file of it, what it becomes
WRITTEN: list[tuple[str, Any, Any]] = [
    *(
        ("BYOK_REQUIRE_LOGIN", yes, True)
        for yes in ("True", "true", " YES ", "on", "1", 1, '"true"')
    ),
    *(("BYOK_REQUIRE_LOGIN", no, False) for no in ("False", "false", "no", "Off", "0", 0, "'no'")),
    *(
        ("BYOK_PROVIDERS", names, ("openai", "groq"))
        for names in (
            "openai,groq",
            "openai, groq",
            "openai groq",
            '["openai", "groq"]',
            "'openai,groq'",
        )
    ),
    ("BYOK_PROVIDERS", "openai", ("openai",)),
    ("BYOK_LOCKED_PROVIDERS", "openai", frozenset({"openai"})),
    ("BYOK_FALLBACK_ON", "rejected,no_credit", frozenset({"rejected", "no_credit"})),
    ("BYOK_PRECEDENCE", "session,user", (Tier.SESSION, Tier.USER)),
    ("BYOK_PRECEDENCE", "ENV_FIRST", PRECEDENCES["env_first"]),
    (
        "BYOK_BASE_URLS",
        '{"openai": "https://llm.example/v1"}',
        {"openai": "https://llm.example/v1"},
    ),
    ("BYOK_SESSION_TTL", "3600", timedelta(hours=1)),
    ("BYOK_SESSION_TTL", "24h", timedelta(hours=24)),
    ("BYOK_MAX_KEY_LIFETIME", "30d", timedelta(days=30)),
    ("BYOK_SESSION_TTL", "1.5h", timedelta(minutes=90)),
    *(
        (name, text, seconds)
        for name in ("BYOK_DATABASE_TIMEOUT", "BYOK_REDIS_TIMEOUT")
        for text, seconds in (
            ("2s", 2),
            ("500ms", 0.5),
            ("0.5 s", 0.5),
            ("1m", 60),
            ("0.5", 0.5),
            (timedelta(seconds=3), 3),
            ("None", None),
        )
    ),
    *(
        ("BYOK_TRUSTED_ORIGINS", text, (origin,))
        for text, origin in (
            ("https://a.example:443", "https://a.example"),
            ("HTTP://A.example:080/", "http://a.example"),
            ("https://a.example:0444", "https://a.example:444"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("https://straße.example:8443", "https://xn--strae-oqa.example:8443"),
            ("https://हिन्दी.example", "https://xn--j2bd4cyah0f.example"),
            ("http://[0:0::1]:3000", "http://[::1]:3000"),
            ([" https://a.example\n"], "https://a.example"),
        )
    ),
    ("BYOK_MAX_KEY_LIFETIME", "None", None),
    ("BYOK_MAX_KEY_LIFETIME", "null", None),
    ("BYOK_KEYS_PER_PROVIDER", "3", 3),
    ("BYOK_REDIS_WAIT", "'1'", 1),
    ("BYOK_VALIDATE_ON_SET", "Require", "require"),
    ("BYOK_VALIDATE_ON_SET", "off", "off"),
    ("BYOK_SET_RATE", '"5/hour"', "5/hour"),
    ("BYOK_SECRETS_DIR", "'/etc/secrets'", Path("/etc/secrets")),
    *(
        ("BYOK_ENDPOINT_PORTS", ports, (443, 8443))
        for ports in ("443,8443", "443 8443", "[443, 8443]", '["443", "8443"]')
    ),
    ("BYOK_ENDPOINT_PORTS", "8443", (8443,)),
    ("BYOK_PROXY", "'Environment'", "environment"),
    ("BYOK_REDIS", '"redis://localhost"', "redis://localhost"),
    ("BYOK_SESSION_STORE", "Database", "database"),
    ("BYOK_ENCRYPTION_KEY", f'"{ENCRYPTION_KEY}"', ENCRYPTION_KEY),
    ("BYOK_ENCRYPTION_KEY_FALLBACKS", '["a", "b"]', ("a", "b")),
]

#: config key, a bad value, what the message tells the operator to do
BAD: list[tuple[str, Any, str]] = [
    ("BYOK_CIPHER", "rot13", "use one of 'fernet', 'aes-256-gcm'"),
    ("BYOK_PRECEDENCE", "me_first", "use 'user_first', 'env_first', or a sequence"),
    ("BYOK_PRECEDENCE", ["session", "session"], "different tiers"),
    ("BYOK_PRECEDENCE", ["session", "mine"], "session, user, team, system, secret, env"),
    ("BYOK_PRECEDENCE", [], "use 'user_first'"),
    ("BYOK_PROVIDERS", [7], "use a sequence"),
    ("BYOK_PROVIDERS", ",", "use a sequence"),
    ("BYOK_REQUIRE_LOGIN", "perhaps", "use True or False"),
    ("BYOK_BASE_URLS", ["http://localhost"], "use a mapping of provider ids to http or https URLs"),
    ("BYOK_BASE_URLS", {"openai": "localhost:8000"}, "use a mapping of provider ids"),
    ("BYOK_BASE_URLS", {"openai": "ftp://localhost"}, "use a mapping of provider ids"),
    ("BYOK_BASE_URLS", {"openai": "http://[::1"}, "use a mapping of provider ids"),
    ("BYOK_BASE_URLS", {"openai": "http://localhost:http"}, "use a mapping of provider ids"),
    ("BYOK_REDIS_WAIT", -1, "use a whole number from 0 up"),
    ("BYOK_REDIS_WAIT", True, "use a whole number"),
    ("BYOK_REDIS_TIMEOUT", 0, "use a number of seconds from 0.05 to 60"),
    ("BYOK_DATABASE_TIMEOUT", 100, "use a number of seconds from 0.05 to 60"),
    ("BYOK_DATABASE_TIMEOUT", "2m", "use a number of seconds from 0.05 to 60"),
    ("BYOK_REDIS_TIMEOUT", "1ms", "or a text such as '2s' or '500ms'"),
    ("BYOK_REDIS_TIMEOUT", True, "use a number of seconds"),
    ("BYOK_DATABASE_CONNECTIONS", 0, "use a whole number from 1 up"),
    ("BYOK_METRICS", "statsd", "use 'prometheus' or 'opentelemetry'"),
    ("BYOK_AUDIT_RETENTION", 90, "use a timedelta of at least a day"),
    ("BYOK_USAGE_RETENTION", None, "use a timedelta of at least a day"),
    ("BYOK_KEYS_PER_PROVIDER", 0, "use a whole number from 1 up"),
    ("BYOK_SECRETS_DIR", None, "use the path of a directory"),
    ("BYOK_SESSION_TTL", 0, "use a timedelta, or seconds, from 1 second to 100 years"),
    ("BYOK_SESSION_TTL", None, "use a timedelta"),
    ("BYOK_SESSION_TTL", "1 day", "use a timedelta"),
    ("BYOK_SESSION_TTL", math.nan, "use a timedelta"),
    ("BYOK_SESSION_TTL", True, "use a timedelta"),
    ("BYOK_SESSION_TTL", timedelta.max, "to 100 years"),
    ("BYOK_MAX_KEY_LIFETIME", timedelta(days=36_501), "to 100 years"),
    ("BYOK_VALIDATE_ON_SET", True, "use one of 'off', 'warn', 'require'"),
    ("BYOK_PROMOTE", "always", "use one of 'ask', 'on_login', 'never'"),
    ("BYOK_MAX_KEY_LIFETIME", timedelta(0), "use a timedelta"),
    ("BYOK_FALLBACK_ON", ["expired"], "use a sequence of reasons out of rejected, unreadable"),
    ("BYOK_ON_STORE_FAILURE", "ignore", "use one of 'fail', 'skip'"),
    ("BYOK_ALLOW_PRIVATE_ENDPOINTS", None, "use True or False"),
    *(
        ("BYOK_ENDPOINT_PORTS", ports, "use a sequence of port numbers")
        for ports in ([], [0], "443,x", [65_536], 443, None)
    ),
    *(
        ("BYOK_PROXY", proxy, "use the URL of an HTTP proxy")
        for proxy in ("proxy:3128", "socks5://proxy:1080", "http://", "http://proxy/x", 3128)
    ),
    ("BYOK_PROXY", "http://:se%cret@:1", "BYOK_PROXY cannot be used"),
    ("BYOK_CA_FILE", 7, "use the path of a PEM file"),
    ("BYOK_ALLOW_REVEAL", 2, "use True or False"),
    ("BYOK_ALLOW_REVEAL", 1.0, "use True or False"),
    ("BYOK_SESSION_TTL", "24 hours", "a text such as '24h'"),
    ("BYOK_VALIDATE_RATE", 20, "use a rate such as '20/minute'"),
    ("BYOK_SET_RATE", None, "use a rate such as '20/minute'"),
    ("BYOK_URL_PREFIX", "api", "use a path that starts with '/'"),
    *(("BYOK_URL_PREFIX", f"/a{char}b", "without blanks, '<', '>', '?'") for char in "<> \n?#"),
    ("BYOK_URL_PREFIX", None, "use a path that starts with '/'"),
    ("BYOK_CSP_NONCE", "nonce", "use a function"),
    ("BYOK_LABELS", "loud", "use one of 'default', 'env'"),
    ("BYOK_ENCRYPTION_KEY_FALLBACKS", 7, "use a sequence of encryption keys"),
    ("BYOK_ENCRYPTION_KEY_FILE", "/nowhere/at/all", "Check the path"),
    ("BYOK_ENCRYPTION_KEY_FILE", 7.5, "Check the path"),
]


@pytest.mark.parametrize(("name", "value", "becomes"), GOOD)
def test_good_values(name: str, value: Any, becomes: Any) -> None:
    """Each key takes its value, and the attribute has the key's name."""
    settings = read(**{name: value})
    assert getattr(settings, name.removeprefix("BYOK_").lower()) == becomes


@pytest.mark.parametrize(("name", "value", "meant"), WRITTEN)
def test_values_as_people_write_them(name: str, value: Any, meant: Any) -> None:
    """A text is read by the setting's type, as JSON or plain, and without quotes around it."""
    assert getattr(read(**{name: value}), name.removeprefix("BYOK_").lower()) == meant


@pytest.mark.parametrize("blank", ["", "  ", '""'])
def test_an_empty_text_is_unset(blank: str) -> None:
    """An empty text is the default of every setting, as a variable without a value is; an empty list is a list."""
    names = {name for name, _, _ in GOOD}
    assert read(**dict.fromkeys(names, blank)) == Settings()
    assert {source_of(name[5:].lower(), dict.fromkeys(names, blank), {}) for name in names} == {
        "default"
    }
    assert read(BYOK_PROVIDERS="[]").providers == ()


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("BYOK_REQURE_LOGIN", "BYOK_REQUIRE_LOGIN"),
        ("BYOK_ENCRYPTION_KEYS", "BYOK_ENCRYPTION_KEY"),
        ("BYOK_ENCRYPTION_KEY_FALLBACK", "BYOK_ENCRYPTION_KEY_FALLBACKS"),
        ("BYOK_PROVIDER", "BYOK_PROVIDERS"),
    ],
)
def test_misspelt_settings(written: str, nearest: str) -> None:
    """A setting that does not exist is refused, with the nearest one that does."""
    with pytest.raises(
        ConfigurationError, match=rf"no setting {written}; did you mean {nearest}\?"
    ):
        read(**{written: "x"})


def test_settings_that_only_the_environment_has(caplog: pytest.LogCaptureFixture) -> None:
    """A setting in the environment that is not read there is named in the log, with what to do."""
    written = {"BYOK_REQUIRE_LOGIN": "true", "BYOK_BASE_URLS__openai": "https://openai.example"}
    assert read(written).require_login is False
    for name in written:
        assert f"name it FLASK_{name}." in caplog.text
    caplog.clear()
    read({"BYOK_REQUIRE_LOGIN": "true", "BYOK_ENCRYPTION_KEY": "k"}, BYOK_REQUIRE_LOGIN=True)
    assert caplog.text == ""


@pytest.mark.parametrize(("name", "value", "advice"), BAD)
def test_bad_values(name: str, value: Any, advice: str) -> None:
    """A value that cannot be used is refused with the key's name and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        read(**{name: value})
    assert str(caught.value).startswith(name)
    assert advice in str(caught.value)


def test_every_setting_is_tested() -> None:
    """Each setting occurs among the good values above."""
    names = {f"BYOK_{field.name.upper()}" for field in dataclasses.fields(Settings)}
    assert names == {name for name, _, _ in GOOD}


def test_defaults() -> None:
    """An empty config gives the documented defaults."""
    assert read() == Settings()
    settings = read()
    assert settings.encryption_key is None
    assert settings.cipher == "fernet"
    assert settings.providers is None
    assert settings.session_ttl == timedelta(hours=24)
    assert settings.validate_on_set == "warn"
    assert settings.promote == "ask"
    assert settings.on_store_failure == "fail"
    assert settings.validate_rate == settings.set_rate == "20/minute"
    assert settings.url_prefix == "/api"
    assert settings.secrets_dir == Path("/run/secrets")


def test_presets() -> None:
    """Both presets hold all six tiers in the documented order."""
    assert read().precedence == PRECEDENCES["user_first"]
    assert ", ".join(PRECEDENCES["user_first"]) == "session, user, team, system, secret, env"
    assert ", ".join(PRECEDENCES["env_first"]) == "secret, env, session, user, team, system"


def test_redis_of_the_session() -> None:
    """Without a Redis of its own, BYOK takes that of the sessions."""
    assert read(SESSION_REDIS="redis://s").redis == "redis://s"
    assert read(SESSION_REDIS="redis://s", BYOK_REDIS="redis://b").redis == "redis://b"


# where the encryption key comes from


def test_encryption_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment, by default the process's own, serves where the config has no encryption key, and only there."""
    environ = {"BYOK_ENCRYPTION_KEY": "from environ", "BYOK_ENCRYPTION_KEY_FALLBACKS": "a b"}
    settings = read(environ)
    assert settings.encryption_key == "from environ"
    assert settings.encryption_key_fallbacks == ("a", "b")
    assert read(environ, BYOK_ENCRYPTION_KEY="from config").encryption_key == "from config"
    monkeypatch.setenv("BYOK_ENCRYPTION_KEY", "from the process")
    assert Settings.from_config({}).encryption_key == "from the process"


def test_encryption_key_from_a_file(tmp_path: Path) -> None:
    """A file named in the config or the environment holds the key, line break and all."""
    path = tmp_path / "encryption_key"
    path.write_text(f"{ENCRYPTION_KEY}\n")
    environ = {"BYOK_ENCRYPTION_KEY_FILE": str(path)}
    assert read(environ).encryption_key == ENCRYPTION_KEY
    assert read(BYOK_ENCRYPTION_KEY_FILE=path).encryption_key == ENCRYPTION_KEY
    assert read(environ, BYOK_ENCRYPTION_KEY="in config").encryption_key == "in config"


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_encryption_key_file_without_a_key(tmp_path: Path, content: bytes) -> None:
    """A file that is empty or not text is refused by the name of its setting."""
    path = tmp_path / "encryption_key"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"^BYOK_ENCRYPTION_KEY_FILE: .*\. \w"):
        read(BYOK_ENCRYPTION_KEY_FILE=path)


def test_repr_shows_no_secret() -> None:
    """Settings show neither encryption keys nor addresses, which can hold passwords."""
    settings = read(
        BYOK_ENCRYPTION_KEY="canary-1",
        BYOK_ENCRYPTION_KEY_FALLBACKS=["canary-2"],
        BYOK_REDIS="redis://:canary-3@localhost",
        BYOK_DATABASE_URL="postgresql://u:canary-4@localhost/db",
    )
    assert "canary" not in f"{settings!r}{settings}"


@pytest.mark.parametrize(
    ("name", "config", "environ", "source"),
    [
        ("labels", {}, {}, "default"),
        ("labels", {"BYOK_LABELS": "env"}, {}, "config"),
        ("labels", {}, {"BYOK_LABELS": "env"}, "default"),
        ("require_login", {"BYOK_REQUIRE_LOGIN": False}, {}, "config"),
        ("redis", {"SESSION_REDIS": "redis://h"}, {}, "config: SESSION_REDIS"),
        ("redis", {"BYOK_REDIS": "redis://h", "SESSION_REDIS": "redis://h"}, {}, "config"),
        ("encryption_key", {}, {"BYOK_ENCRYPTION_KEY": "k"}, "environment"),
        (
            "encryption_key",
            {"BYOK_ENCRYPTION_KEY": ""},
            {"BYOK_ENCRYPTION_KEY": "k"},
            "environment",
        ),
        ("encryption_key", {"BYOK_ENCRYPTION_KEY": "k"}, {"BYOK_ENCRYPTION_KEY": "k"}, "config"),
        ("encryption_key", {}, {"BYOK_ENCRYPTION_KEY_FILE": "/k"}, "file: /k"),
        ("encryption_key_fallbacks", {"BYOK_ENCRYPTION_KEY_FALLBACKS": []}, {}, "default"),
    ],
)
def test_sources(name: str, config: dict[str, Any], environ: dict[str, str], source: str) -> None:
    """Each value's source is reported."""
    assert source_of(name, config, environ) == source
