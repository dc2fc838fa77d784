"""G7: whose keys are used is decided by the host alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import session

from flask_byok.errors import SessionRequiredError, StoreError
from flask_byok.model.owner import Caller, Tier
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from flask_byok.web.session_binding import MARKER
from tests.app import KEYS, Browser, HostApp, browser, fingerprint, make_app


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Make a host that checks nothing when saving, and can be told to read and plant our marker."""
    app = make_app(tmp_path, fake, BYOK_VALIDATE_ON_SET="off")

    @app.get("/marker")
    def marker() -> str:
        return str(session[MARKER])

    @app.get("/plant/<ref>")
    def plant(ref: str) -> str:
        session[MARKER] = ref
        return "planted"

    return app


@pytest.fixture
def victim(app: HostApp, fake: FakeProviders) -> Browser:
    """Sign in as a, with a key saved."""
    client = browser(app)
    client.post("/sign-in/a")
    client.save(fake.api_key("openai", owner="victim"))
    return client


CLAIMS = {
    "X-User": "a",
    "X-User-Id": "a",
    "X-Owner": "user:a",
    "X-BYOK-Owner": "user:a",
    "X-BYOK-User": "a",
    "X-Forwarded-User": "a",
    "Remote-User": "a",
    "Authorization": "Bearer a",
}


def test_claims_in_headers_and_query_are_ignored(app: HostApp, victim: Browser) -> None:
    """No header and no query parameter makes somebody else of a caller."""
    attacker = browser(app)
    attacker.load()
    for query in ("", "?owner=user:a&user=a&user_id=a&session=a&ref=a&_byok=a&team=a&admin=1"):
        body = attacker.get(KEYS + query, headers=CLAIMS).get_json()
        assert body["authenticated"] is False
        assert not any(row["tiers"] or row["hint"] for row in body["providers"])
        assert attacker.get("/used/openai" + query, headers=CLAIMS).status_code == 409


@pytest.mark.parametrize(
    "field", ["owner", "user", "user_id", "session", "ref", "sid", "team", "slot", "id"]
)
@pytest.mark.parametrize("verb", ["set", "clear", "validate", "promote"])
def test_claims_in_bodies_are_refused(
    app: HostApp, victim: Browser, fake: FakeProviders, verb: str, field: str
) -> None:
    """A body that names an owner is refused as a whole, and the named owner's key stays as it is."""
    attacker = browser(app)
    attacker.load()
    body = {"provider": "openai", field: "user:a"}
    answer = attacker.call(verb, **body)
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_field")
    used = victim.get("/used/openai").get_json()
    assert used["fingerprint"] == fingerprint(fake.api_key("openai", owner="victim"))


def test_a_session_holds_its_own_keys_only(
    app: HostApp, victim: Browser, fake: FakeProviders
) -> None:
    """Another session, also one of the same user, sees, uses and clears nothing of the first."""
    for user in (None, "a", "b"):
        other = browser(app)
        if user:
            other.post(f"/sign-in/{user}")
        assert other.status()["has_key"] is False
        assert other.get("/used/openai").status_code == 409
        assert other.call("clear", provider="openai").get_json()["cleared"] == []
        assert other.call("promote", providers=["openai"]).status_code == (200 if user else 401)
    assert victim.status()["has_key"] is True


def test_a_made_up_cookie_is_nobody(app: HostApp, victim: Browser) -> None:
    """Guessed, altered and foreign cookies lead to no keys."""
    real = victim.get_cookie("session")
    assert real is not None
    for value in (
        real.value[:-1],
        real.value + "x",
        real.value.swapcase(),
        "a",
        "user:a",
        "../x",
        "*",
    ):
        attacker = browser(app)
        attacker.set_cookie("session", value)
        assert attacker.status()["has_key"] is False
        assert attacker.get("/used/openai").status_code == 409


def test_a_name_of_stored_keys_is_of_no_use_elsewhere(app: HostApp, victim: Browser) -> None:
    """Who learns the name of somebody's stored keys and plants it in an own session finds nothing."""

    ref = victim.get("/marker").text
    attacker = browser(app)
    attacker.load()
    attacker.get(f"/plant/{ref}")
    assert attacker.get("/used/openai").status_code == 409
    assert attacker.status()["has_key"] is False
    assert victim.get("/used/openai").status_code == 200


def test_the_loader_decides(tmp_path: Path, fake: FakeProviders) -> None:
    """The host's own loader names the user, whatever Flask-Login says."""
    app = make_app(tmp_path, fake)
    app.byok.owner_loader(lambda: None)
    client = browser(app)
    client.post("/sign-in/a")
    assert client.load()["authenticated"] is False
    app.byok.owner_loader(lambda: "somebody")
    assert client.load()["authenticated"] is True


def test_names_of_variables_are_for_admins(
    app: HostApp, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only whom the host calls an admin sees where the operator's key lies."""
    monkeypatch.setenv("OPENAI_API_KEY", fake.api_key("openai"))
    client = browser(app)
    client.load()
    assert "OPENAI_API_KEY" not in client.get(KEYS, headers={"X-Admin": "1"}).text
    app.byok.admin_loader(lambda: True)
    client.post("/sign-in/admin")
    assert "OPENAI_API_KEY" in client.get(KEYS).text


@pytest.fixture
def promoting(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Make a host that promotes at sign-in, and goes on without a session store that is away."""
    return make_app(
        tmp_path,
        fake,
        BYOK_VALIDATE_ON_SET="off",
        BYOK_PROMOTE="on_login",
        BYOK_ON_STORE_FAILURE="skip",
    )


@pytest.mark.parametrize("tier", [Tier.USER, Tier.SESSION])
def test_a_promotion_that_fails_leaves_the_key_with_its_person(
    promoting: HostApp, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch, tier: Tier
) -> None:
    """If a store fails at sign-in the call goes on and the next one promotes; the next user gets nothing."""
    client = browser(promoting)
    client.save(fake.api_key("openai", owner="ann"))
    other = browser(promoting)
    other.save(fake.api_key("openai", owner="ben"))

    def fail(caller: Caller) -> None:
        raise StoreError(tier=tier)

    monkeypatch.setattr(get_state(promoting).service, "signed_in", fail)
    for one in (client, other):
        one.post("/sign-in/a")
        assert one.get("/used/openai").status_code == 409
    monkeypatch.undo()
    client.post("/sign-in/b")
    assert client.get("/used/openai").status_code == 409
    assert other.get("/used/openai").get_json()["source"] == "user"


def test_a_session_that_ended_keeps_nobody_from_signing_in(
    promoting: HostApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the session's keys have expired when a person signs in, that person's calls go on."""
    client = browser(promoting)
    client.save("sk-visitors-12345678")

    def gone(caller: Caller) -> None:
        raise SessionRequiredError

    monkeypatch.setattr(get_state(promoting).service, "signed_in", gone)
    client.post("/sign-in/a")
    assert client.get("/used/openai").status_code == 409
    assert client.get("/used/openai").get_json()["code"] != "session_required"
