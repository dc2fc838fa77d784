import secrets

import pytest
from app import create_app
from cachelib import FileSystemCache


@pytest.fixture
def app(byok_fake_providers, tmp_path):
    return create_app(
        SECRET_KEY="made up",
        SESSION_TYPE="cachelib",
        SESSION_CACHELIB=FileSystemCache(str(tmp_path / "sessions"), threshold=0),
        BYOK_DATABASE_URL=f"sqlite:///{tmp_path / 'keys.sqlite3'}",
        BYOK_ENCRYPTION_KEY=secrets.token_hex(32),
        BYOK_PRECEDENCE=("session",),
        BYOK_BASE_URLS=byok_fake_providers.base_urls,
    )


@pytest.fixture
def client(app):
    client = app.test_client()
    token = client.get("/api/providers/keys").json["csrf_token"]
    client.environ_base["HTTP_X_CSRFTOKEN"] = token
    return client


def ask(client, text):
    return client.post("/chat", json={"messages": [{"role": "user", "content": text}]})


def test_chat_uses_the_persons_key(client, byok_fake_providers):
    api_key = byok_fake_providers.api_key("openai", "good")
    saved = client.post("/api/providers/keys/set", json={"provider": "openai", "api_key": api_key})
    assert saved.json["validation"]["verdict"] == "valid"

    answer = ask(client, "hello")
    assert answer.headers["X-BYOK-Source"] == "session"
    assert "event: done" in answer.text
    assert byok_fake_providers.calls_for("openai")[-1].api_key == api_key


def test_bad_key_is_not_saved(client, byok_fake_providers):
    api_key = byok_fake_providers.api_key("openai", "bad")
    refused = client.post(
        "/api/providers/keys/set", json={"provider": "openai", "api_key": api_key}
    )
    assert (refused.status_code, refused.json["code"]) == (422, "key_refused")


def test_chat_without_a_key_says_so(client):
    answer = ask(client, "hello")
    assert (answer.status_code, answer.json["code"]) == (409, "key_missing")
