"""The providers as data. Sources: each vendor's API reference, checked against public key verifiers."""

from __future__ import annotations

from ..model.credential import Verdict
from .auth import Auth
from .spec import Catalog, CheckSpec, Field, ProviderSpec, Rule

_SERVICE_OFF = "The key is good, but may not use this API: enable it, or lift the restriction."

# What most providers answer alike.
_UNKNOWN_KEY = Rule((401,), Verdict.INVALID)
_TOO_MANY_CALLS = Rule((429,), Verdict.VALID_RATE_LIMITED)

OPENAI = ProviderSpec(
    id="openai",
    name="OpenAI",
    base_url="https://api.openai.com/v1",
    env=("OPENAI_API_KEY",),
    prefixes=("sk-", "sk-proj-", "sk-svcacct-"),
    refused_prefixes=("sk-admin-",),
    get_key_url="https://platform.openai.com/api-keys",
    default_model="gpt-5.4-mini",
    check=CheckSpec(
        # A restricted key is answered 401 or 403 "missing scopes": that is not a bad key.
        rules=(
            Rule((401, 403), Verdict.VALID_RESTRICTED, contains="missing scopes"),
            Rule((401, 403), Verdict.VALID_RESTRICTED, contains="insufficient permissions"),
            Rule((401,), Verdict.INVALID, contains="invalid_api_key"),
            Rule((401,), Verdict.INVALID, contains="incorrect api key"),
            Rule((401,), Verdict.DISABLED, contains="account_deactivated"),
            Rule((429,), Verdict.VALID_NO_CREDIT, contains="insufficient_quota"),
            _TOO_MANY_CALLS,
        )
    ),
)

ANTHROPIC = ProviderSpec(
    id="anthropic",
    name="Anthropic",
    base_url="https://api.anthropic.com",
    adapter="anthropic",
    env=("ANTHROPIC_API_KEY",),
    prefixes=("sk-ant-", "sk-ant-api03-"),
    refused_prefixes=("sk-ant-admin01-",),
    get_key_url="https://console.anthropic.com/settings/keys",
    default_model="claude-haiku-4-5",
    auth=Auth("x-api-key", "{api_key}"),
    headers={"anthropic-version": "2023-06-01"},
    check=CheckSpec(
        path="/v1/models",
        models_path="/v1/models",
        rules=(
            _UNKNOWN_KEY,
            Rule((403,), Verdict.VALID_RESTRICTED, contains="permission_error"),
            Rule((400,), Verdict.VALID_NO_CREDIT, contains="credit balance"),
            Rule((400, 403), Verdict.DISABLED, contains="organization has been disabled"),
            _TOO_MANY_CALLS,
        ),
    ),
)

GOOGLE = ProviderSpec(
    id="google",
    name="Google Gemini",
    base_url="https://generativelanguage.googleapis.com",
    adapter="google",
    env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    aliases=("gemini", "google_gemini"),
    prefixes=("AIza", "AQ."),
    get_key_url="https://aistudio.google.com/apikey",
    default_model="gemini-3.8-flash",
    auth=Auth("x-goog-api-key", "{api_key}"),
    check=CheckSpec(
        path="/v1beta/models?pageSize=1",
        models_path="/v1beta/models?pageSize=1000",
        good="models",
        rules=(
            # A bad key is answered 400, not 401 (google.rpc.ErrorInfo reason API_KEY_INVALID).
            Rule((400,), Verdict.INVALID, contains="api_key_invalid"),
            # From google.api.ErrorReason, like those above and below.
            Rule((403,), Verdict.DISABLED, contains="consumer_suspended"),
            Rule((403,), Verdict.VALID_RESTRICTED, _SERVICE_OFF, "service_disabled"),
            Rule((403,), Verdict.VALID_RESTRICTED, _SERVICE_OFF, "_blocked"),
            _TOO_MANY_CALLS,
        ),
    ),
)

GROQ = ProviderSpec(
    id="groq",
    name="Groq",
    base_url="https://api.groq.com/openai/v1",
    env=("GROQ_API_KEY",),
    prefixes=("gsk_",),
    get_key_url="https://console.groq.com/keys",
    default_model="llama-3.1-8b-instant",
    check=CheckSpec(
        rules=(
            _UNKNOWN_KEY,
            Rule((400,), Verdict.DISABLED, contains="organization_restricted"),
            Rule((400,), Verdict.VALID_NO_CREDIT, contains="blocked_api_access"),
            _TOO_MANY_CALLS,
        )
    ),
)

XAI = ProviderSpec(
    id="xai",
    name="xAI",
    base_url="https://api.x.ai/v1",
    env=("XAI_API_KEY",),
    aliases=("grok",),
    prefixes=("xai-",),
    refused_prefixes=("xai-token-",),
    get_key_url="https://console.x.ai",
    default_model="grok-3-mini",
    check=CheckSpec(
        path="/api-key",
        good="api_key_blocked|redacted_api_key",
        rules=(
            Rule((200,), Verdict.DISABLED, path="api_key_blocked"),
            Rule((200,), Verdict.DISABLED, path="api_key_disabled"),
            Rule((200,), Verdict.DISABLED, path="team_blocked"),
            # xAI answers a bad key 400 as well as 401; in a chat a 400 has other causes too.
            Rule((400,), Verdict.INVALID, contains="incorrect api key"),
            _UNKNOWN_KEY,
            _TOO_MANY_CALLS,
        ),
    ),
)

OPENROUTER = ProviderSpec(
    id="openrouter",
    name="OpenRouter",
    base_url="https://openrouter.ai/api/v1",
    env=("OPENROUTER_API_KEY",),
    prefixes=("sk-or-v1-",),
    get_key_url="https://openrouter.ai/settings/keys",
    default_model="openrouter/auto",
    check=CheckSpec(
        # Its /models is public and answers 200 to any string, so it lists models but checks no key.
        path="/key",
        good="data",
        rules=(_UNKNOWN_KEY, Rule((402,), Verdict.VALID_NO_CREDIT), _TOO_MANY_CALLS),
    ),
)

CUSTOM = ProviderSpec(
    id="custom",
    name="Custom (OpenAI-compatible)",
    fields=(
        Field("name", "Name", secret=False, required=False, placeholder="My vLLM"),
        Field("base_url", "Base URL", secret=False, placeholder="https://…/v1"),
        Field(required=False),
        Field("model", "Model", secret=False, required=False),
    ),
    standalone=True,
    check=CheckSpec(
        rules=(
            # Many are proxies of OpenAI and pass its answers on.
            Rule((401, 403), Verdict.VALID_RESTRICTED, contains="missing scopes"),
            _UNKNOWN_KEY,
            Rule((404,), Verdict.UNCHECKED, "This server lists no models to check a key by."),
        )
    ),
)

#: The whole catalog, in the order in which it is shown.
PROVIDERS: tuple[ProviderSpec, ...] = (OPENAI, ANTHROPIC, GOOGLE, GROQ, XAI, OPENROUTER, CUSTOM)
Catalog.shipped = PROVIDERS
