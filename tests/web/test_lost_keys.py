"""A session whose keys the store has lost says so once, before the operator's key serves."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from werkzeug.test import TestResponse

from flask_byok.testing import FakeProviders
from tests.app import KEYS, Browser, HostApp, browser, make_app


@pytest.fixture
def host(
    tmp_path: Path, fake: FakeProviders, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> HostApp:
    """Make a host with keys in Redis, an operator's key, and a page with the dialog."""
    monkeypatch.setenv("OPENAI_API_KEY", fake.api_key("openai", owner="operator"))
    app = make_app(tmp_path, fake, byok_redis_url=redis_url, csrf_protect=False)
    app.add_url_rule("/page", "page", lambda: app.jinja_env.globals["byok"].dialog())
    app.add_url_rule("/missing", "missing", lambda: app.byok.missing_keys(["openai"]))
    return app


def _lose(redis_url: str) -> None:
    """Empty the store, as an eviction does."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()


def _told(answer: TestResponse) -> bool:
    body = answer.get_json(silent=True)
    if answer.status_code != 409:
        return False
    assert body["code"] == "session_required"
    assert "are gone" in body["detail"]
    assert "Save them again" in body["detail"]
    return True


@pytest.mark.parametrize("user", [None, "ada"])
@pytest.mark.parametrize("path", ["/used/openai", "/chat/openai", "/missing", KEYS])
def test_a_loss_is_told_once(
    host: HostApp, fake: FakeProviders, redis_url: str, path: str, user: str | None
) -> None:
    """The first call after a loss answers 409, also after a page with the dialog; then there are no keys."""
    visitor = browser(host)
    if user:
        visitor.post(f"/sign-in/{user}")
    assert visitor.save(fake.api_key("openai")).status_code == 200
    assert visitor.get("/used/openai").get_json()["source"] == "session"
    fake.clear_calls()
    _lose(redis_url)
    visitor.get("/page")
    assert _told(visitor.get(path))
    assert fake.calls == []
    assert visitor.get("/used/openai").get_json()["source"] == "env"
    assert visitor.status()["source"] == "env"
    assert visitor.save(fake.api_key("openai")).status_code == 200
    assert visitor.get("/used/openai").get_json()["source"] == "session"


@pytest.mark.parametrize("way", ["over HTTP", "in Python"])
def test_a_key_saved_before_the_telling_hides_no_loss(
    host: HostApp, fake: FakeProviders, redis_url: str, way: str
) -> None:
    """Who saves another key first learns of the loss all the same; who saves the lost one again need not."""
    host.add_url_rule(
        "/keep",
        "keep",
        lambda: {"source": host.byok.set("groq", fake.api_key("groq"), validate="off")["source"]},
    )
    visitor = browser(host)
    visitor.save(fake.api_key("openai"))
    visitor.save(fake.api_key("xai"), "xai")
    _lose(redis_url)
    if way == "over HTTP":
        visitor.get("/page")
        assert visitor.call("set", provider="groq", api_key=fake.api_key("groq")).status_code == 200
    else:
        assert visitor.get("/keep").get_json() == {"source": "session"}
    assert visitor.get("/used/groq").get_json()["source"] == "session"
    again = visitor.call("set", provider="xai", api_key=fake.api_key("xai"))
    assert again.get_json()["provider"]["source"] == "session"
    assert visitor.get("/used/xai").get_json()["source"] == "session"
    assert _told(visitor.get("/used/openai"))
    assert visitor.get("/used/openai").get_json()["source"] == "env"
    assert visitor.get("/used/groq").get_json()["source"] == "session"


def _only_established(visitor: Browser, fake: FakeProviders) -> None:
    visitor.load()


def _cleared(visitor: Browser, fake: FakeProviders) -> None:
    visitor.save(fake.api_key("openai"))
    visitor.call("clear", provider="openai")


def _promoted(visitor: Browser, fake: FakeProviders) -> None:
    visitor.post("/sign-in/ada")
    visitor.save(fake.api_key("groq"), "groq")
    assert visitor.call("promote").get_json()["promoted"] == ["groq"]


def _signed_out(visitor: Browser, fake: FakeProviders) -> None:
    visitor.post("/sign-in/ada")
    visitor.save(fake.api_key("openai"))
    visitor.post("/sign-out")


def _emptied(visitor: Browser, fake: FakeProviders) -> None:
    visitor.save(fake.api_key("openai"))
    visitor.post("/empty?then=x")


@pytest.mark.parametrize("end", [_only_established, _cleared, _promoted, _signed_out, _emptied])
def test_what_was_no_loss_is_not_told(
    host: HostApp, fake: FakeProviders, redis_url: str, end: object
) -> None:
    """A session without saved keys tells nothing: it was only established, or its keys ended as they should."""
    visitor = browser(host)
    assert callable(end)
    end(visitor, fake)
    _lose(redis_url)
    assert visitor.get("/used/openai").get_json()["source"] == "env"
    assert visitor.get(KEYS).status_code == 200


def test_another_secret_key_is_a_loss(
    tmp_path: Path, fake: FakeProviders, redis_url: str, host: HostApp
) -> None:
    """Without SECRET_KEY_FALLBACKS a new SECRET_KEY no longer finds the keys: that is told once too."""
    visitor = browser(host)
    assert visitor.save(fake.api_key("openai")).status_code == 200
    after = make_app(
        tmp_path, fake, byok_redis_url=redis_url, csrf_protect=False, SECRET_KEY="another"
    )
    later = browser(after)
    later.set_cookie("session", visitor.session_id)
    assert _told(later.get("/used/openai"))
    assert later.get("/used/openai").get_json()["source"] == "env"
