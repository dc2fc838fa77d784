"""Keys go from the session into the account, each once, and nobody's but the user's."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flask_byok.accounts.store import AuditEvent
from flask_byok.errors import StoreError
from flask_byok.keys.documents import SessionView
from flask_byok.model.credential import CredentialRecord, Secret, Verdict, utcnow
from flask_byok.model.owner import Caller
from flask_byok.sealing.keyring import Context, Keyring, generate_encryption_key
from flask_byok.testing import FakeProviders
from tests.app import browser, make_app
from tests.worlds import ENV_KEY, World

#: Session keys come first in this order, and after the account's in that.
ORDERS = (["session", "user", "env"], ["user", "session", "env"])
WAITING, OWN, ACCOUNTS = "sk-visitors-key-0001", "sk-users-session-key-0002", "sk-accounts-key-0003"


@pytest.fixture
def world(tmp_path: Path, fake: FakeProviders) -> World:
    """Make a host that checks no key when it is saved."""
    return World(tmp_path, fake, {"BYOK_VALIDATE_ON_SET": "off"})


def sign_in(world: World, *providers: str) -> Caller:
    """Let a visitor save keys and sign in."""
    visitor = world.caller()
    for provider in providers:
        world.set(visitor, WAITING, provider)
    user = dataclasses.replace(visitor, user="7")
    world.service.signed_in(user)
    return user


def view(world: World, caller: Caller) -> SessionView:
    """Return what the session holds."""
    assert caller.session is not None
    return world.service.sessions.read(caller.session, caller.identity, ["openai", "groq", "xai"])


def in_session(world: World, caller: Caller) -> tuple[list[str], list[str]]:
    """Return the providers with a key of the user's own in the session, and those with one that waits."""
    found = view(world, caller)
    return sorted(found.records), sorted(found.visitor_records)


def used(world: World, caller: Caller, provider: str = "openai") -> str:
    """Return the key that serves."""
    return world.service.resolve(caller, provider).api_key


def kept(world: World, caller: Caller) -> dict[str, CredentialRecord]:
    """Return what is in the account."""
    return {record.provider: record for record in world.accounts.find([caller.identity])}


@pytest.mark.parametrize(
    ("own", "on_conflict", "answer", "serves", "left"),
    [
        (False, "keep", ([], ["openai"]), ACCOUNTS, ([], ["openai"])),
        (False, "replace", (["openai"], []), WAITING, ([], [])),
        (True, "keep", ([], ["openai"]), OWN, (["openai"], ["openai"])),
        (True, "replace", (["openai"], []), WAITING, ([], [])),
    ],
)
def test_conflict_with_the_account(
    world: World, own: bool, on_conflict: str, answer: Any, serves: str, left: Any
) -> None:
    """With keep the account's key stays and the session's too; with replace what waited comes before either."""
    user = sign_in(world, "openai")
    world.keep("user:7", ACCOUNTS)
    if own:
        world.set(user, OWN)
    promoted, stayed = answer
    done = world.service.promote(user, None, on_conflict)
    assert done == {"promoted": promoted, "kept": stayed}
    assert used(world, user) == serves
    assert in_session(world, user) == left
    assert len(kept(world, user)) == 1


@pytest.mark.parametrize("slot", ["", "2"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("promote", ["ask", "on_login"])
def test_the_very_key_of_the_account(world: World, own: bool, slot: str, promote: str) -> None:
    """Of a key that the account has already, only the session's copy goes; the account's stays as it is."""
    world = world.with_config(BYOK_KEYS_PER_PROVIDER=2, BYOK_PROMOTE=promote)
    before = world.keep("user:7", WAITING, slot=slot, label="mine")
    user = world.caller("7") if own else sign_in(world, "openai")
    if own:
        world.set(user, WAITING)
    if own or promote == "ask":
        assert world.service.promote(user) == {"promoted": ["openai"], "kept": []}
    assert world.status(user)["label"] == "mine"
    assert world.accounts.find(["user:7"]) == [before]
    assert in_session(world, user) == ([], [])
    assert not world.status(user)["promotable"]
    assert ("user:7", "clear", "done") in world.logged("user:7")


def test_the_very_key_beside_another(world: World) -> None:
    """What the session has beside the account's key is not taken for that key, and waits on."""
    user = sign_in(world, "openai")
    world.set(user, OWN)
    world.keep("user:7", OWN)
    assert world.service.promote(user) == {"promoted": [], "kept": ["openai"]}
    assert in_session(world, user) == (["openai"], ["openai"])


@pytest.mark.parametrize("why", ["inactive", "alike", "address", "unreadable"])
def test_a_key_that_only_looks_the_same(world: World, why: str) -> None:
    """A key with the same hint, or one that is switched off in the account, is another one."""
    world = world.with_config(BYOK_ALLOW_CUSTOM_PROVIDERS=True)
    user = sign_in(world, "openai")
    kept_key = WAITING.replace("visitors", "accounts") if why == "alike" else WAITING
    record = world.keep("user:7", kept_key)
    if why == "inactive":
        world.accounts.change(record.id, ["user:7"], {"active": False}, AuditEvent("cli", "change"))
    elif why in ("address", "unreadable"):
        there, fields = Context("account", "user:7", "openai"), {"api_key": Secret(WAITING)}
        elsewhere = world.keyring.seal_fields(there, fields, "https://x.example/v1")
        sealed = elsewhere if why == "address" else "byok1.x.fernet.y"
        facts = {"ciphertext": sealed, "hint": record.hint}
        world.accounts.change(record.id, ["user:7"], facts, AuditEvent("cli", "set"))
    hint = view(world, user).visitor_records["openai"].hint
    assert world.accounts.find(["user:7"])[0].hint == hint
    assert world.service.promote(user) == {"promoted": [], "kept": ["openai"]}
    assert in_session(world, user) == ([], ["openai"])


def test_a_slot_that_is_called_as_the_key(world: World) -> None:
    """A key does not go to a slot that is called by it: it stays in the session, and so does what it would replace."""
    user = sign_in(world, "openai")
    world.set(user, OWN)
    before = world.keep("user:7", ACCOUNTS, slot=WAITING)
    done = world.service.promote(user, None, "replace")
    assert done == {"promoted": [], "kept": ["openai"]}
    assert world.accounts.find(["user:7"]) == [before]
    assert used(world, user) == OWN
    assert in_session(world, user) == (["openai"], ["openai"])
    world.accounts.clear("user:7", ["openai"], AuditEvent("cli", "clear"))
    assert world.service.promote(user, None, "replace")["promoted"] == ["openai"]
    assert used(world, user) == WAITING


@pytest.mark.parametrize("promote", ["ask", "on_login"])
def test_a_promoted_key_ends_as_a_new_one_does(world: World, promote: str) -> None:
    """What was saved before BYOK_MAX_KEY_LIFETIME was set is cut short when promoted, and never made longer."""
    cap = timedelta(days=30)
    visitor, days = world.caller(), {"openai": None, "groq": 300, "xai": 3}
    for provider, number in days.items():
        ends = None if number is None else utcnow() + timedelta(days=number)
        world.set(visitor, WAITING, provider, expires_at=ends)
    saved = view(world, visitor).records
    user = dataclasses.replace(visitor, user="7")
    later = world.with_config(BYOK_MAX_KEY_LIFETIME=cap, BYOK_PROMOTE=promote)
    earliest = utcnow() + cap - timedelta(seconds=1)
    if promote == "ask":
        later.service.promote(user)
    else:
        later.service.signed_in(user)
    promoted = kept(later, user)
    assert promoted["xai"].expires_at == saved["xai"].expires_at
    for provider in ("openai", "groq"):
        ends = promoted[provider].expires_at
        assert ends is not None
        assert earliest < ends <= utcnow() + cap


def test_what_is_known_of_a_key_goes_along(world: World, fake: FakeProviders) -> None:
    """Label, description, end, birth and verdict are the same in the account, and a late verdict finds nothing."""
    visitor = world.caller()
    ends = utcnow() + timedelta(days=3)
    api_key = fake.api_key("openai", "restricted")
    facts: dict[str, Any] = {"label": "Work", "description": "…", "expires_at": ends}
    world.set(visitor, api_key, validate="warn", **facts)
    before = world.record(visitor)
    user = dataclasses.replace(visitor, user="7")
    world.service.promote(user)
    record = kept(world, user)["openai"]
    for name in ("label", "description", "expires_at", "created_at", "updated_at", "hint"):
        assert getattr(record, name) == getattr(before, name)
    verdict = record.current_validity()
    assert verdict is not None
    assert verdict.verdict is Verdict.VALID_RESTRICTED
    assert (record.owner, record.version, record.leaving) == ("user:7", "1", False)


def test_promotion_is_logged_with_fingerprints(world: World) -> None:
    """Each promoted key is one event of its owner's, with the fingerprint of that key, and kept ones are none."""
    user = dataclasses.replace(sign_in(world, "openai", "groq"), request_id="r1")
    world.keep("user:7", ACCOUNTS, "groq")
    world.service.promote(user)
    world.service.promote(user)
    events = [e for e in world.accounts.audit.entries("user:7") if e.action == "promote"]
    assert [(e.provider, e.credential_id) for e in events] == [
        ("openai", kept(world, user)["openai"].id)
    ]
    expected = world.accounts.canary.fingerprint({"api_key": Secret(WAITING)})
    assert (events[0].fingerprint, events[0].request_id) == (expected, "r1")
    assert events[0].actor == "user:7"


def test_never_wipes_what_visitors_left_only(world: World) -> None:
    """With never a visitor's key is wiped, and the user's own one in the session stays, on its way out or not."""
    world = world.with_config(BYOK_PROMOTE="never")
    user = sign_in(world, "openai")
    world.set(user, OWN, "groq")
    assert user.session is not None
    sessions = world.service.sessions
    there = sessions.read(user.session, user.identity, ["groq"])
    assert sessions.mark_leaving(user.session, user.identity, there.records.values())
    world.service.get(user)
    assert in_session(world, user) == (["groq"], [])
    assert used(world, user, "groq") == OWN
    assert world.service.promote(user)["promoted"] == ["groq"]


def test_never_takes_nothing_that_comes_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With never, a visitor's request that ends after the sign-in adds nothing to what is promoted."""
    world = world.with_config(BYOK_PROMOTE="never")
    user = sign_in(world, "openai")
    monkeypatch.setattr(world.store, "clear", lambda *args, **kwargs: [])
    assert world.service.promote(user, None, "replace") == {"promoted": [], "kept": []}
    assert kept(world, user) == {}


@pytest.mark.parametrize(
    ("config", "promotable"),
    [
        ({}, True),
        ({"BYOK_PRECEDENCE": ["session", "team", "env"]}, False),
        ({"BYOK_PRECEDENCE": ["session", "env", "user"]}, False),
        ({"BYOK_LOCKED_PROVIDERS": ["openai"]}, False),
    ],
)
def test_what_can_be_kept_is_told(world: World, config: Any, promotable: bool) -> None:
    """A session's own key is promotable where the account's would be used, and then only is it promoted."""
    world = dataclasses.replace(world, environ={"OPENAI_API_KEY": ENV_KEY})
    user = world.caller("7")
    world.set(user, OWN)
    world = world.with_config(**config)
    status = world.status(user)
    assert status["promotable"] is promotable
    assert (status["promotable_hint"] is not None) is promotable
    assert bool(world.service.promote(user)["promoted"]) is promotable
    assert not world.status(user)["promotable"]
    assert not world.status(world.caller(sid="sid-2"))["promotable"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("visitor", [False, True])
def test_key_on_its_way_counts_until_it_is_over(
    world: World, order: list[str], visitor: bool
) -> None:
    """A key that is leaving counts as before; once its version is over it counts no longer, and is deleted."""
    world = world.with_config(BYOK_PRECEDENCE=order)
    user = sign_in(world, *["openai"] * visitor)
    if not visitor:
        world.set(user, OWN)
    assert user.session is not None
    before = world.status(user)
    found = view(world, user)
    record = (found.visitor_records if visitor else found.records)["openai"]
    assert world.service.sessions.mark_leaving(user.session, user.identity, [record])
    assert world.status(user) == before
    world.service.accounts.note(user, "x", "openai", ended=[record.version])
    assert not world.status(user)["has_key"]
    assert not world.status(user)["promotable"]
    assert in_session(world, user) == ([], [])


def test_reading_costs_no_statement_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where something is leaving are the accounts asked what is over."""
    user = sign_in(world, "openai")
    world.set(user, OWN)
    monkeypatch.setattr(world.accounts, "over", _failing)
    world.service.get(user)
    assert used(world, user) == OWN


def test_without_accounts_it_stays_in_the_session(world: World) -> None:
    """Where users have no account tier, what waited becomes the session's own, and only that."""
    world = world.with_config(BYOK_PRECEDENCE=["session", "system", "env"])
    user = sign_in(world, "openai")
    world.set(user, OWN, "groq")
    assert world.service.promote(user) == {"promoted": ["openai"], "kept": []}
    assert kept(world, user) == {}
    assert in_session(world, user) == (["groq", "openai"], [])
    assert world.logged("user:7")[-1] == ("user:7", "promote", "done")


@pytest.fixture
def rotated(world: World) -> tuple[World, World]:
    """Make a host before and after a change of the encryption key."""
    old, new = generate_encryption_key(), generate_encryption_key()
    return world.with_keyring(Keyring(old)), world.with_keyring(Keyring(new, [old]))


@pytest.mark.parametrize("user", [None, "7"])
def test_session_keys_are_sealed_again_with_use(
    rotated: tuple[World, World], monkeypatch: pytest.MonkeyPatch, user: str | None
) -> None:
    """After a rotation each key that a session uses is sealed again, once that works, and changes in nothing else."""
    before, after = rotated
    caller = before.caller(user)
    before.set(caller, OWN, label="Work")
    old = view(before, caller).records["openai"]
    with monkeypatch.context() as failing:
        failing.setattr(after.service.sessions, "reseal", _failing)
        assert used(after, caller) == OWN
    assert view(after, caller).records["openai"] == old
    assert used(after, caller) == OWN
    new = view(after, caller).records["openai"]
    assert after.keyring.needs_rotation(old.ciphertext)
    assert not after.keyring.needs_rotation(new.ciphertext)
    assert new == dataclasses.replace(old, ciphertext=new.ciphertext)
    assert used(after, caller) == OWN
    assert view(after, caller).records["openai"] == new


def _failing(*_: Any, **__: Any) -> bool:
    raise StoreError(tier="session")


@pytest.mark.parametrize(("promote", "source"), [("on_login", "user"), ("never", None)])
def test_the_policy_is_applied_at_the_first_call_after_signing_in(
    tmp_path: Path, fake: FakeProviders, promote: str, source: str | None
) -> None:
    """Over HTTP, BYOK_PROMOTE decides about a visitor's key once, when its session has a user."""
    app = make_app(tmp_path, fake, BYOK_PROMOTE=promote)
    client = browser(app)
    assert client.save(fake.api_key("openai")).status_code == 200
    client.post("/sign-in/ann")
    if source is not None:
        assert client.get("/used/openai").get_json()["source"] == source
    status = client.status()
    assert (status["source"], status["promotable"]) == (source, False)
