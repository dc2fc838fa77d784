"""What an operator may have set for own calls with the SDKs, in which a mark is looked for afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flask_byok.catalog import Catalog
from flask_byok.testing import RecordedCall

MARK = "poison"
_NOWHERE = "http://poison.invalid:3128"
_KEYS = (
    *("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "AZURE_OPENAI_API_KEY", "LANGSMITH_API_KEY"),
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    *("DEEPGRAM_API_KEY", "ELEVENLABS_API_KEY", "MISTRAL_API_KEY"),
    *("AZURE_OPENAI_AD_TOKEN", "AWS_BEARER_TOKEN_BEDROCK"),
    *(name for spec in Catalog.shipped for name in spec.env),
)
_ADDRESSES = (
    *("OPENAI_API_BASE", "OPENAI_BASE_URL", "OPENAI_PROXY", "LANGSMITH_GATEWAY"),
    *("ANTHROPIC_API_URL", "ANTHROPIC_BASE_URL", "ANTHROPIC_PROXY"),
    *("GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL", "AZURE_OPENAI_ENDPOINT"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"),
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
    "AWS_ACCESS_KEY_ID": "AKIAPOISON0123456789",
    "AWS_SECRET_ACCESS_KEY": "poison",
    "AWS_SESSION_TOKEN": "poison",
    "AWS_SECURITY_TOKEN": "poison",
    "AWS_PROFILE": "poison",
    "AWS_REGION": "poison-1",
    "AWS_DEFAULT_REGION": "poison-1",
    "AWS_ROLE_ARN": "arn:aws:iam::1:role/poison",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/poison",
    "AWS_CA_BUNDLE": "/poison",
    "OPENAI_API_TYPE": "poison",
    "OPENAI_API_VERSION": "poison",
    "CLOUDSDK_CORE_PROJECT": "poison",
    "GOOGLE_CLOUD_QUOTA_PROJECT": "poison",
    "REQUESTS_CA_BUNDLE": "/poison",
    "CURL_CA_BUNDLE": "/poison",
    "SSL_CERT_FILE": "/poison",
    "SSL_CERT_DIR": "/poison",
}


def set_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set all of it for a test."""
    for name, value in POISON.items():
        monkeypatch.setenv(name, value)


def set_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Give the operator the files that SDKs and HTTP clients look for."""
    account = {"type": "authorized_user", "client_id": "poison", "client_secret": "poison"}
    files = {
        ".netrc": "default login poison password poison\n",
        ".aws/credentials": "[poison]\naws_access_key_id = AKIAPOISON\naws_secret_access_key = poison\n",
        ".aws/config": f"[profile poison]\nregion = poison-1\nendpoint_url = {_NOWHERE}\n",
        ".config/gcloud/application_default_credentials.json": json.dumps(
            {**account, "refresh_token": "poison", "quota_project_id": "poison"}
        ),
    }
    for name, text in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    adc = home / ".config/gcloud/application_default_credentials.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(adc))


def everything(call: RecordedCall) -> str:
    """Return all that was sent."""
    sent = (call.path, call.api_key, call.headers, call.query, call.cookies, call.content)
    return f"{sent}".lower()
