"""What an operator may have set for own calls with the SDKs, in which a mark is looked for afterwards."""

from __future__ import annotations

import pytest

from flask_byok.testing import RecordedCall

MARK = "poison"
_NOWHERE = "http://poison.invalid:3128"
_KEYS = (
    *("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "AZURE_OPENAI_API_KEY", "LANGSMITH_API_KEY"),
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    *("DEEPGRAM_API_KEY", "ELEVENLABS_API_KEY", "MISTRAL_API_KEY"),
    *("GROQ_API_KEY", "XAI_API_KEY", "OPENROUTER_API_KEY"),
)
_ADDRESSES = (
    *("OPENAI_API_BASE", "OPENAI_BASE_URL", "OPENAI_PROXY", "LANGSMITH_GATEWAY"),
    *("ANTHROPIC_API_URL", "ANTHROPIC_BASE_URL", "ANTHROPIC_PROXY"),
    *("GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL"),
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
#: Every variable that the SDKs' sources read and that could change a call.
POISON = {
    **dict.fromkeys(_KEYS, "sk-poison-0123456789"),
    **dict.fromkeys((*_ADDRESSES, *PROXIES), _NOWHERE),
    "OPENAI_CUSTOM_HEADERS": "X-Poison: 1\nauthorization: Bearer poison\nContent-Type: a/poison",
    "OPENAI_ORG_ID": "org-poison",
    "OPENAI_ORGANIZATION": "org-poison",
    "OPENAI_PROJECT_ID": "proj_poison",
    "OPENAI_WEBHOOK_SECRET": "poison",
    "ANTHROPIC_CUSTOM_HEADERS": "X-Poison: 1\nAuthorization: Bearer poison\nx-api-key: poison",
    "ANTHROPIC_FEDERATION_RULE_ID": "poison",
    "ANTHROPIC_IDENTITY_TOKEN": "poison",
    "ANTHROPIC_ORGANIZATION_ID": "poison",
    "ANTHROPIC_PROFILE": "poison",
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": "poison",
    "ANTHROPIC_WORKSPACE_ID": "poison",
    "GOOGLE_API_USE_MTLS_ENDPOINT": "always",
    "GOOGLE_CLOUD_LOCATION": "poison",
    "GOOGLE_CLOUD_PROJECT": "poison",
    "GOOGLE_GENAI_API_VERSION": "poison",
    "GOOGLE_GENAI_CLIENT_MODE": "replay",
    "GOOGLE_GENAI_REPLAYS_DIRECTORY": "/poison",
    "GOOGLE_GENAI_REPLAY_ID": "poison",
    "GOOGLE_GENAI_USE_ENTERPRISE": "true",
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
    "SSL_CERT_FILE": "/poison",
    "SSL_CERT_DIR": "/poison",
}


def set_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set all of it for a test."""
    for name, value in POISON.items():
        monkeypatch.setenv(name, value)


def everything(call: RecordedCall) -> str:
    """Return all that was sent."""
    sent = (call.path, call.api_key, call.headers, call.query, call.cookies, call.content)
    return f"{sent}".lower()
