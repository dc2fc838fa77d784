"""What a visitor's session holds may be planted or dead: neither enters an account unasked, nor replaces a good key."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flask_byok.errors import UnreadableCredentialError
from flask_byok.model.credential import RecordedVerdict, Verdict, utcnow
from flask_byok.model.owner import Caller
from flask_byok.testing import FakeProviders
from tests.worlds import World

PLANTED, GOOD = "sk-planted-by-a-stranger-01", "sk-the-users-own-key-0002"
#: Keys in accounts, and in sessions only.
KINDS = (["session", "user", "env"], ["session", "env"])


@pytest.fixture(params=KINDS)
def world(tmp_path: Path, fake: FakeProviders, request: pytest.FixtureRequest) -> World:
    """Make a host that promotes at sign-in, and takes people's own servers."""
    elsewhere = {name: url for name, url in fake.base_urls.items() if name != "custom"}
    config = {
        "BYOK_BASE_URLS": elsewhere,
        "BYOK_PRECEDENCE": request.param,
        "BYOK_PROMOTE": "on_login",
        "BYOK_VALIDATE_ON_SET": "off",
        "BYOK_ALLOW_CUSTOM_PROVIDERS": True,
        "BYOK_ALLOW_PRIVATE_ENDPOINTS": True,
    }
    return World(tmp_path, fake, config)


def _kill(world: World, visitor: Caller, how: str) -> None:
    version = world.record(visitor).version
    changes: dict[str, dict[str, Any]] = {
        "expired": {"expires_at": utcnow() - timedelta(seconds=1)},
        "inactive": {"active": False},
        "rejected": {"validity": RecordedVerdict(Verdict.INVALID, utcnow(), version)},
        "unreadable": {"ciphertext": "gone"},
    }
    world.tamper(visitor, **changes[how])


def test_a_personal_address_waits_until_it_is_asked_for(world: World) -> None:
    """At sign-in a key with an address of its own stays, unused and shown; the user may keep it."""
    visitor = world.caller()
    world.set(visitor, PLANTED, "custom", base_url=world.fake.base_url("custom"))
    world.set(visitor, GOOD)
    user = dataclasses.replace(visitor, user="7")
    world.service.signed_in(user)
    assert world.service.resolve(user, "openai").api_key == GOOD
    status = world.status(user, "custom")
    assert (status["has_key"], status["promotable"]) == (False, True)
    assert status["hint"]
    assert world.service.promote(user, ["custom"])["promoted"] == ["custom"]
    assert world.service.resolve(user, "custom").api_key == PLANTED


@pytest.mark.parametrize("how", ["expired", "inactive", "rejected", "unreadable"])
def test_a_dead_key_is_neither_promoted_nor_offered(world: World, how: str) -> None:
    """A waiting key that does not work stays, is shown and not offered, and never takes a good key's place."""
    visitor = world.caller()
    world.set(visitor, PLANTED)
    _kill(world, visitor, how)
    user = dataclasses.replace(visitor, user="7")
    world.service.signed_in(user)
    status = world.status(user)
    assert (status["has_key"], status["promotable"], status["tiers"]) == (False, False, [])
    assert status["hint"]
    world.set(user, GOOD, persist="user" in world.settings.precedence)
    assert world.status(user)["promotable"] is False
    for on_conflict in ("keep", "replace"):
        try:
            found = world.service.promote(user, ["openai"], on_conflict)
        except UnreadableCredentialError:
            assert how == "unreadable"
        else:
            assert found["promoted"] == []
        assert world.service.resolve(user, "openai").api_key == GOOD


def test_a_dead_key_of_ones_own_replaces_no_good_one(world: World) -> None:
    """A user's own session key that was refused is not offered to the account, nor put in the place of its key."""
    if "user" not in world.settings.precedence:
        world = world.with_config(BYOK_PRECEDENCE=KINDS[0])
    user = world.caller("7")
    world.keep("user:7", GOOD)
    world.set(user, PLANTED)
    _kill(world, user, "rejected")
    assert world.status(user)["promotable"] is False
    world.service.promote(user, ["openai"], "replace")
    (kept,) = world.accounts.find(["user:7"])
    fields = world.keyring.open_record("user:7", kept)[0]
    assert fields["api_key"].reveal() == GOOD
