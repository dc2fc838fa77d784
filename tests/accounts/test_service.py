"""The verbs where keys are kept in accounts, on SQLite and on PostgreSQL; no Flask."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from flask_byok.accounts.store import AuditEvent
from flask_byok.errors import (
    ByokError,
    InvalidFieldError,
    KeyRefusedError,
    OwnerRequiredError,
    ProviderLockedError,
    RateLimitedError,
    RejectedCredentialError,
)
from flask_byok.keys.checks import Check
from flask_byok.model.credential import Validation, Verdict
from flask_byok.testing import FakeProviders
from tests.worlds import World


@pytest.fixture
def world(tmp_path: Path, fake: FakeProviders, database_url: str) -> Iterator[World]:
    """Make a world with default settings on each kind of database."""
    world = World(tmp_path, fake, database_url=database_url)
    yield world
    world.documents.engine.dispose()


def key(world: World, owner: str, behaviour: str = "good") -> str:
    """Return a key of somebody's that the fake provider treats so."""
    return world.fake.api_key("openai", behaviour, owner)


# set


def test_a_kept_key_takes_the_place_of_the_sessions(world: World) -> None:
    """A key that is kept in the account is used at once, though the session had one that would come first."""
    ann = world.caller("ann")
    world.set(ann, key(world, "before"))
    status, _ = world.set(ann, key(world, "after"), persist=True)
    assert status["tiers"] == ["user"]
    assert world.service.resolve(ann, "openai").api_key == key(world, "after")


@pytest.mark.parametrize(
    ("most", "there", "after"),
    [(1, ["work"], ["work"]), (2, ["a", "b"], ["a", "b"]), (2, ["work"], ["", "work"])],
)
def test_a_kept_key_is_none_too_many(
    world: World, most: int, there: list[str], after: list[str]
) -> None:
    """A key that is kept goes beside others where there is room, else in the place of the one that served."""
    world = world.with_config(BYOK_KEYS_PER_PROVIDER=most)
    ann = world.caller("ann")
    for slot in there:
        world.keep("user:ann", key(world, f"old-{slot}"), slot=slot)
    world.set(ann, key(world, "new"), persist=True, label="new")
    found = world.accounts.find(["user:ann"])
    assert [record.slot for record in found] == after
    assert found[0].label == "new"
    assert world.service.resolve(ann, "openai").api_key == key(world, "new")


def test_a_kept_key_is_not_in_what_is_shown(world: World) -> None:
    """The new key does not take the replaced one's label, and no slot has the key in it."""
    world = world.with_config(BYOK_KEYS_PER_PROVIDER=1)
    ann, api_key = world.caller("ann"), "own-gateway-PLAINKEY0123456789"
    world.keep("user:ann", key(world, "old"), label=api_key, description=api_key)
    world.set(ann, api_key, persist=True, validate="off")
    (record,) = world.accounts.find(["user:ann"])
    assert (record.label, record.description) == (None, None)
    world.accounts.clear("user:ann", ["openai"], AuditEvent("cli", "clear"))
    before = world.keep("user:ann", key(world, "old"), slot=api_key)
    with pytest.raises(InvalidFieldError, match="slot"):
        world.set(ann, api_key, persist=True, validate="off")
    assert world.accounts.find(["user:ann"]) == [before]


def test_a_slot_that_is_called_so_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that is given the key's name while the key is with its provider does not get the key."""
    ann, api_key = world.caller("ann"), "own-gateway-PLAINKEY0123456789"
    world.set(ann, key(world, "session"))

    def slowly(*_: object, **__: object) -> None:
        world.keep("user:ann", key(world, "old"), slot=api_key)

    monkeypatch.setattr(world.service.checks, "before_set", slowly)
    with pytest.raises(InvalidFieldError, match="slot"):
        world.set(ann, api_key, persist=True)
    assert [record.version for record in world.accounts.find(["user:ann"])] == ["1"]
    assert world.service.resolve(ann, "openai").api_key == key(world, "session")


def test_accounts_only(world: World) -> None:
    """Where the lookup order has accounts and no session, every key is kept in the account."""
    world = world.with_config(BYOK_PRECEDENCE=["user", "env"])
    status, _ = world.set(world.caller("ann"), key(world, "ann"))
    assert (status["source"], status["can_override"]) == ("user", True)
    visitor = world.caller(None, "sid-2")
    assert world.status(visitor)["can_override"] is False
    with pytest.raises(OwnerRequiredError):
        world.set(visitor, key(world, "x"))


def test_the_first_teams_key_comes_first(world: World) -> None:
    """Of several teams' keys that of the caller's first team serves, whichever was stored first."""
    for team in ("b", "a", "c"):
        world.keep(f"team:{team}", key(world, team))
    ann = world.caller("ann", teams=("a", "b"))
    assert world.service.resolve(ann, "openai").api_key == key(world, "a")


def test_a_key_that_would_not_be_used_is_not_taken(world: World) -> None:
    """With a shared key between the personal tiers, only the tier before it takes keys."""
    world = world.with_config(BYOK_PRECEDENCE=["user", "system", "session"])
    world.keep("system", key(world, "system"))
    ann = world.caller("ann")
    assert world.status(ann)["locked"] is False
    with pytest.raises(ProviderLockedError):
        world.set(ann, key(world, "ann"))
    world.set(ann, key(world, "ann"), persist=True)
    assert world.service.resolve(ann, "openai").source == "user"


# clear


@pytest.mark.parametrize("tier", ["session", "user", "all"])
def test_clearing_nothing_is_not_logged(world: World, tier: str) -> None:
    """Where there was nothing to clear, nothing happened, and the log says nothing."""
    ann = world.caller("ann")
    assert world.service.clear(ann, "openai", tier)[0] == []
    world.set(ann, key(world, "ann"), "openai")
    world.service.clear(ann, "groq", tier)
    assert world.logged("user:ann") == [("user:ann", "set", "done")]


# verdicts


@pytest.mark.parametrize("user", ["ann", None])
def test_a_check_of_a_key_that_goes_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch, user: str | None
) -> None:
    """Who asks about a key that is deleted while its provider is asked hears what the provider said."""
    kept, caller = world.keep("system", key(world, "system")), world.caller(user)
    ask = Check.validation

    def deleting(check: Check) -> Validation:
        world.accounts.delete(kept.id, ["system"], AuditEvent("cli", "clear"))
        return ask(check)

    monkeypatch.setattr(Check, "validation", deleting)
    assert world.service.validate(caller, "openai").verdict == Verdict.VALID
    seen = [("user:ann", "validate", "valid")] if user else []
    stored, deleted = ("cli", "set", "done"), ("cli", "clear", "done")
    assert world.logged("system") == [stored, deleted, *seen]


@pytest.mark.parametrize("persist", [True, False])
def test_a_check_that_ends_after_a_refusal_lifts_none(
    world: World, monkeypatch: pytest.MonkeyPatch, persist: bool
) -> None:
    """A refusal in real use stays where a check that began before it ends without having learnt anything."""
    ann, mine = world.caller("ann"), key(world, "ann")
    world.set(ann, mine, persist=persist, validate="off")
    client, ask = world.service.provider(ann, "openai", max_retries=0).client, Check.validation

    def late(check: Check) -> Validation:
        validation = ask(check)
        world.fake.add_key("openai", mine, "bad")
        monkeypatch.setattr(Check, "validation", ask)
        with pytest.raises(Exception, match="401"):
            client.models.list()
        return dataclasses.replace(validation, verdict=Verdict.UNREACHABLE)

    monkeypatch.setattr(Check, "validation", late)
    assert world.service.validate(ann, "openai").verdict == Verdict.UNREACHABLE
    assert world.status(ann)["state"] == "rejected"
    assert world.logged("user:ann")[-1] == ("user:ann", "validate", "unreachable")
    world.fake.add_key("openai", mine, "good")


@pytest.mark.parametrize("persist", [True, False])
@pytest.mark.parametrize("way", ["client", "stream"])
def test_a_receiver_that_raises_changes_nothing(
    world: World, caplog: pytest.LogCaptureFixture, persist: bool, way: str
) -> None:
    """A refused key is marked before anybody is told, and what a receiver raises is logged by its kind alone."""
    ann = world.caller("ann")
    world.set(ann, key(world, "ann", "bad"), persist=persist, validate="off")
    seen: list[str] = []

    def receive(name: str, _: object) -> None:
        if name == "key_rejected":
            seen.append(world.status(ann)["state"])
            raise LookupError("CANARY")

    world.service.notify = receive
    provider = world.service.provider(ann, "openai", max_retries=0)
    if way == "client":
        with pytest.raises(Exception, match="401"):
            provider.client.models.list()
    else:
        with pytest.raises(RejectedCredentialError):
            list(provider.stream_chat([{"role": "user", "content": "hello"}]))
    assert (world.status(ann)["state"], seen) == ("rejected", ["rejected"])
    assert "LookupError" in caplog.text
    assert "CANARY" not in caplog.text


def test_promoting_a_provider_many_times_over(world: World) -> None:
    """However often a request names a provider, its key is promoted once, and requests are counted."""
    ann = world.caller("ann")
    world.set(ann, key(world, "ann"))
    names = ["openai"] * 1000
    assert world.service.promote(ann, names) == {"promoted": ["openai"], "kept": []}
    for _ in range(18):
        world.service.promote(ann, names)
    with pytest.raises(RateLimitedError):
        world.service.promote(ann, names)


# audit


def test_the_log_tells_what_people_do(world: World) -> None:
    """Whatever somebody signed in does with keys is in the chain of the keys' owner, with its outcome and no key."""
    ann = world.caller("ann", request_id="r-1")
    world.set(ann, key(world, "ann"), persist=True)
    world.set(ann, key(world, "session"))
    with pytest.raises(KeyRefusedError):
        world.set(ann, key(world, "ann", "bad"))
    world.service.validate(ann, "openai")
    world.service.clear(ann, "openai")
    actions = [("set", "done"), ("set", "done"), ("set", "invalid"), ("validate", "valid")]
    actions += [("clear", "done"), ("clear", "done")]
    assert world.logged("user:ann") == [("user:ann", *action) for action in actions]
    entries = world.accounts.audit.entries("user:ann")
    assert {entry.request_id for entry in entries} == {"r-1"}
    assert len({e.fingerprint for e in entries if e.action == "set"}) == 3
    assert "sk-" not in repr(entries)
    assert world.accounts.audit.verify() == []


def test_visitors_are_not_logged(world: World) -> None:
    """What a visitor does is in no log, as there is no one to name; a check of a shared key leaves its verdict."""
    visitor = world.caller()
    world.set(visitor, key(world, "x"))
    world.service.validate(visitor, "openai")
    world.service.clear(visitor, "openai")
    assert world.accounts.audit.entries() == []
    world.keep("system", key(world, "system"))
    assert world.service.validate(visitor, "openai").verdict == Verdict.VALID
    assert world.logged("system") == [("cli", "set", "done")]
    assert world.accounts.find(["system"])[0].current_validity() is not None


def test_what_cannot_be_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Without the audit log a session's key is not stored; it is removed, and the process log says so."""
    ann = world.caller("ann")
    world.set(ann, key(world, "before"))
    with world.documents.engine.begin() as connection:
        connection.execute(text("ALTER TABLE byok_audit RENAME TO away"))
    with pytest.raises(ByokError):
        world.set(ann, key(world, "after"))
    assert world.record(ann).hint[-4:] == key(world, "before")[-4:]
    assert world.service.clear(ann, "openai", "session")[0] == ["session"]
    assert "user:ann removed the session's key for openai" in caplog.text
