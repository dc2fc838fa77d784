"""The main job on whatever versions are installed; `scripts/lowest` runs this file on those that hosts have."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import redis

from flask_byok import ConfigurationError, get_chat_model_with_api_key, get_provider_with_api_key
from flask_byok.providers import installed
from flask_byok.providers.installed import NEEDED, sdk_faults
from flask_byok.testing import FakeProviders
from tests.app import HostApp, browser, fingerprint, make_app, problem_of

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


@pytest.fixture(params=["SQLite", "Redis"])
def host(request: pytest.FixtureRequest, tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Return a host that keeps sessions and their keys in each kind of store."""
    if request.param == "SQLite":
        return make_app(tmp_path, fake)
    url = request.getfixturevalue("redis_url")
    return make_app(tmp_path, fake, redis_url=url, SESSION_REDIS=redis.Redis.from_url(url))


def test_main_job(host: HostApp, fake: FakeProviders) -> None:
    """A visitor saves, lists, checks and uses a key; a user keeps one in the account; both can be cleared."""
    visitor, user = browser(host), browser(host)
    user.post("/sign-in/ann")
    for person, source, persist in ((visitor, "session", False), (user, "user", True)):
        api_key = fake.api_key("openai", owner=source)
        saved = person.save(api_key, persist=persist)
        assert (saved.status_code, saved.get_json()["validation"]["verdict"]) == (200, "valid")
        assert person.status()["source"] == source
        assert person.call("validate", provider="openai").get_json()["valid"] is True
        used = person.get("/used/openai").get_json()
        assert used == {"source": source, "fingerprint": fingerprint(api_key)}
        assert api_key not in person.get("/api/providers/settings").text
        assert person.call("clear", provider="openai").status_code == 200
        assert person.status()["source"] is None
    assert problem_of(visitor.save(fake.api_key("openai", "bad"))) == (422, "key_refused")


def test_long_bodies(host: HostApp) -> None:
    """More than a key's worth of a body is refused, and nothing is saved."""
    visitor = browser(host)
    assert visitor.save("sk-" + "x1" * 40_000).status_code == 413
    assert visitor.status()["source"] is None


def test_stream(host: HostApp, fake: FakeProviders) -> None:
    """A chat streams, also without the SDK and beside one that is too old."""
    visitor = browser(host)
    visitor.save(fake.api_key("openai"))
    assert "event: done" in visitor.get("/chat/openai").text


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google"])
@pytest.mark.parametrize("found", ["1.2.3", None])
def test_an_sdk_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, fake: FakeProviders, provider: str, found: str | None
) -> None:
    """Clients and LangChain model name the installed release, the one that is needed, and the line to run."""
    monkeypatch.setattr(installed, "_installed", lambda package: found)
    api_key = fake.api_key(provider)
    (package, needed), line = next(iter(NEEDED[provider].items())), f"'flask-byok[{provider}]'"
    said = (
        f"{package} 1.2.3 is installed, and flask-byok needs {needed} or newer: pip install {line}."
    )
    if found is None:
        said = f"{package} is not installed: pip install {line}."
    made = get_provider_with_api_key(provider, api_key)
    for use in (
        lambda: made.client,
        lambda: made.async_client,
        lambda: get_chat_model_with_api_key(provider, "m", api_key),
    ):
        with pytest.raises(ConfigurationError) as caught:
            use()
        assert str(caught.value) == said
    assert list(sdk_faults(provider)) == [said]


def test_lowest_releases_are_those_of_the_extras() -> None:
    """The releases that are asked for at run time are those that the extras install."""
    extras = PROJECT["optional-dependencies"]
    for extra, packages in NEEDED.items():
        assert sorted(extras[extra]) == sorted(f"{name}>={low}" for name, low in packages.items())
