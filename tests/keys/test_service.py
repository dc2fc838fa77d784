"""The verbs, on a real store and against real servers; no Flask."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flask_byok.catalog import Field, ProviderSpec
from flask_byok.errors import (
    ByokError,
    EndpointNotAllowedError,
    KeyRefusedError,
    MalformedApiKeyError,
    MissingCredentialError,
    OwnerRequiredError,
    ProviderLockedError,
    RejectedCredentialError,
    SessionRequiredError,
    StoreError,
    UnreadableCredentialError,
)
from flask_byok.keys.typed import NewKey
from flask_byok.model.credential import Secret, Verdict, utcnow
from flask_byok.model.owner import Caller
from flask_byok.sealing.keyring import Keyring, generate_encryption_key
from flask_byok.testing import FakeProviders
from tests.worlds import ENV_KEY, SECRET_KEY, World, registered

MakeWorld = Callable[..., World]
NOWHERE = "http://127.0.0.1:1/v1"


@pytest.fixture(scope="module")
def providers() -> Iterator[FakeProviders]:
    """Run one set of fake providers for this module."""
    with FakeProviders() as fake:
        fake.slow_seconds = 0.4
        yield fake


@pytest.fixture
def fake(providers: FakeProviders) -> FakeProviders:
    """Offer the fake providers with nothing recorded."""
    providers.clear_calls()
    return providers


@pytest.fixture
def make_world(tmp_path: Path, fake: FakeProviders) -> MakeWorld:
    """Make a world with the operator's settings and environment."""

    def make(environ: dict[str, str] | None = None, **config: Any) -> World:
        return World(tmp_path, fake, config, environ or {})

    return make


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """Make a world with default settings."""
    return make_world()


def key(world: World, behaviour: str = "good", provider: str = "openai", owner: Any = None) -> str:
    """Return a key that the fake provider treats so."""
    return world.fake.api_key(provider, behaviour, owner)


# set, resolve


def test_alias_is_the_provider(world: World) -> None:
    """A key set under an alias is the provider's."""
    ann = world.caller()
    world.set(ann, key(world, provider="google"), "gemini")
    assert world.service.resolve(ann, "google_gemini").provider == "google"
    assert world.service.clear(ann, "google")[0] == ["session"]


# modes of validation


def test_off_stores_unseen(make_world: MakeWorld) -> None:
    """With checks off a key is stored as it is, and nobody is asked."""
    world = make_world(BYOK_VALIDATE_ON_SET="off")
    status, validation = world.set(world.caller(), key(world, "bad"))
    assert validation is None
    assert (status["state"], status["validity"]) == ("active", None)
    assert world.fake.calls == []


@pytest.mark.parametrize("behaviour", ["restricted", "broke", "rate_limited"])
@pytest.mark.parametrize("mode", ["warn", "require"])
def test_good_keys_in_trouble_are_stored(world: World, behaviour: str, mode: Any) -> None:
    """A good key with narrow rights, without credit or over its rate is stored and reported, in every mode."""
    status, validation = world.set(world.caller(), key(world, behaviour), validate=mode)
    assert validation is not None
    assert validation.valid
    assert status["validity"]["verdict"] == validation.verdict.value != "valid"
    assert status["state"] == "active"


def test_unreachable_provider(make_world: MakeWorld) -> None:
    """Where nothing was learnt, warn stores and says so, require does not store."""
    world = make_world(BYOK_BASE_URLS={"groq": NOWHERE})
    ann = world.caller()
    with pytest.raises(KeyRefusedError) as caught:
        world.set(ann, "gsk_some-key-of-mine", "groq", validate="require")
    assert caught.value.validation.verdict is Verdict.UNREACHABLE
    assert world.status(ann, "groq")["has_key"] is False
    status, validation = world.set(ann, "gsk_some-key-of-mine", "groq")
    assert validation is not None
    assert (validation.valid, status["state"]) == (None, "active")
    assert status["validity"]["verdict"] == "unreachable"


@pytest.mark.parametrize("asked", [None, "off", "warn"])
def test_request_cannot_ask_for_less_than_required(make_world: MakeWorld, asked: Any) -> None:
    """Where the operator requires a check, a request cannot do without."""
    world = make_world(BYOK_VALIDATE_ON_SET="require", BYOK_BASE_URLS={"groq": NOWHERE})
    with pytest.raises(KeyRefusedError):
        world.set(world.caller(), "gsk_some-key-of-mine", "groq", validate=asked)


def test_request_can_ask_for_another_mode(make_world: MakeWorld) -> None:
    """Otherwise a request may ask for more, or for less."""
    world = make_world(BYOK_VALIDATE_ON_SET="off")
    with pytest.raises(KeyRefusedError):
        world.set(world.caller(), key(world, "bad"), validate="warn")
    assert (
        world.with_config(BYOK_VALIDATE_ON_SET="warn").set(
            world.caller(), key(world, "bad"), validate="off"
        )[1]
        is None
    )


@pytest.mark.parametrize("mode", ["off", "warn", "require"])
@pytest.mark.parametrize(
    ("provider", "prefix"),
    [("openai", "sk-admin-"), ("anthropic", "sk-ant-admin01-"), ("xai", "xai-token-")],
)
def test_admin_keys_are_never_stored(
    make_world: MakeWorld, mode: str, provider: str, prefix: str
) -> None:
    """An admin key is refused in every mode, and is not sent anywhere to find out."""
    world = make_world(BYOK_VALIDATE_ON_SET=mode)
    ann = world.caller()
    with pytest.raises(KeyRefusedError) as caught:
        world.set(ann, f"{prefix}CANARY-4711-abcdefgh", provider)
    assert caught.value.validation.verdict is Verdict.ADMIN_KEY_REFUSED
    assert "CANARY" not in str(caught.value)
    assert world.status(ann, provider)["tiers"] == []
    assert world.fake.calls == []


# who may set


def test_session_and_sign_in_are_asked_for(make_world: MakeWorld) -> None:
    """A visitor without a session must get one first; where sign-in is required, no verb works without."""
    world = make_world()
    with pytest.raises(SessionRequiredError):
        world.set(Caller(), key(world))
    with pytest.raises(OwnerRequiredError):
        world.service.promote(world.caller())
    closed = make_world(BYOK_REQUIRE_LOGIN=True)
    visitor, user = closed.caller(), closed.caller(user="7")
    verbs: list[Callable[[Caller], Any]] = [
        closed.service.get,
        lambda caller: closed.service.get_one(caller, "openai"),
        lambda caller: closed.set(caller, key(world)),
        lambda caller: closed.service.resolve(caller, "openai"),
        lambda caller: closed.service.resolve_many(caller, ["openai"]),
        lambda caller: closed.service.validate(caller, "openai"),
        lambda caller: closed.service.provider(caller, "openai"),
        lambda caller: closed.service.clear(caller, "openai"),
        closed.service.promote,
    ]
    for verb in verbs:
        with pytest.raises(OwnerRequiredError):
            verb(visitor)
    for verb in verbs:
        verb(user)


@pytest.mark.parametrize(
    ("config", "environ", "locked"),
    [
        ({"BYOK_LOCKED_PROVIDERS": ["openai"]}, {}, True),
        ({"BYOK_PRECEDENCE": "env_first"}, {"OPENAI_API_KEY": ENV_KEY}, True),
        ({"BYOK_PRECEDENCE": "env_first"}, {}, False),
        ({"BYOK_PRECEDENCE": "user_first"}, {"OPENAI_API_KEY": ENV_KEY}, False),
        ({"BYOK_PRECEDENCE": ["env"]}, {}, True),
    ],
)
def test_locked_providers(
    make_world: MakeWorld, config: dict[str, Any], environ: dict[str, str], locked: bool
) -> None:
    """A provider is locked by the operator's list, or by an operator's key that comes first."""
    world = make_world(environ, **config)
    ann = world.caller()
    assert world.status(ann)["can_override"] is not locked
    if not locked:
        world.set(ann, key(world))
        assert world.service.resolve(ann, "openai").source == "session"
        return
    with pytest.raises(ProviderLockedError) as caught:
        world.set(ann, key(world))
    assert caught.value.provider == "openai"
    assert world.fake.calls == []


def test_secret_file_locks_under_env_first(make_world: MakeWorld) -> None:
    """A mounted secret file locks as a variable does, and comes before it."""
    world = make_world({"OPENAI_API_KEY": ENV_KEY}, BYOK_PRECEDENCE="env_first")
    world.secret_file("openai_api_key", SECRET_KEY)
    assert world.status(world.caller())["locked"]
    assert world.service.resolve(Caller(), "openai").api_key == SECRET_KEY


# base URLs


def test_custom_provider_goes_to_its_own_address(make_world: MakeWorld) -> None:
    """A key for a server of one's own goes to that server, for the check and for use."""
    world = make_world(BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_ALLOW_PRIVATE_ENDPOINTS=True)
    ann, url = world.caller(), world.fake.base_url("custom")
    custom = key(world, provider="custom")
    world.set(ann, custom, "custom", base_url=url)
    credential = world.service.resolve(ann, "custom")
    assert (credential.base_url, credential.trust) == (url, "personal")
    assert {call.api_key for call in world.fake.calls_for("custom")} == {custom}
    assert world.service.validate(ann, "custom").verdict is Verdict.VALID


def test_address_needs_its_key(make_world: MakeWorld) -> None:
    """An address of one's own without a key is refused: no other key is ever sent there."""
    world = make_world(
        {"OPENAI_API_KEY": ENV_KEY},
        BYOK_ALLOW_CUSTOM_PROVIDERS=True,
        BYOK_ALLOW_PRIVATE_ENDPOINTS=True,
    )
    ann, url = world.caller(), world.fake.hostile_url("redirect")
    with pytest.raises(MalformedApiKeyError):
        world.service.set(ann, "custom", NewKey(fields={}, base_url=url))
    with pytest.raises(EndpointNotAllowedError):
        world.set(ann, key(world), base_url=url)
    with pytest.raises(EndpointNotAllowedError):
        world.service.validate(ann, "openai", {"api_key": Secret(key(world))}, url)
    assert world.fake.calls == []


def test_record_without_an_address_does_not_stop_the_list(make_world: MakeWorld) -> None:
    """A key that was saved for an operator's address which is gone is unreadable; the list goes on."""
    own = ProviderSpec(
        id="own", name="Own", fields=(Field("base_url", secret=False, required=False), Field())
    )
    world = make_world(BYOK_BASE_URLS={"own": NOWHERE}, BYOK_VALIDATE_ON_SET="off")
    world = dataclasses.replace(world, catalog=registered(own))
    ann = world.caller()
    world.set(ann, "own-key-12345", "own")
    later = world.with_config(BYOK_BASE_URLS={})
    assert later.status(ann, "own")["state"] == "unreadable"
    with pytest.raises(UnreadableCredentialError):
        later.service.resolve(ann, "own")


def test_key_for_ones_own_address_follows_no_operators(make_world: MakeWorld) -> None:
    """A key saved for a person's own server goes nowhere else, even where the operator sets an address later."""
    world = make_world(
        BYOK_ALLOW_CUSTOM_PROVIDERS=True,
        BYOK_ALLOW_PRIVATE_ENDPOINTS=True,
        BYOK_VALIDATE_ON_SET="off",
        BYOK_BASE_URLS={},
    )
    ann = world.caller()
    world.set(ann, key(world, provider="custom"), "custom", base_url=world.fake.base_url("custom"))
    later = world.with_config(BYOK_BASE_URLS={"custom": NOWHERE})
    assert later.status(ann, "custom")["state"] == "unreadable"
    with pytest.raises(UnreadableCredentialError):
        later.service.resolve(ann, "custom")


# expiry


def test_expired_key_is_not_opened(world: World) -> None:
    """An expired key passes on even if it does not open any more."""
    ann = world.caller()
    world.set(ann, key(world))
    world.tamper(ann, ciphertext="gone", expires_at=utcnow() - timedelta(seconds=1))
    assert world.status(ann)["state"] == "expired"
    with pytest.raises(MissingCredentialError):
        world.service.resolve(ann, "openai")


def test_cap_on_lifetime(make_world: MakeWorld) -> None:
    """With a cap every key ends, however long it was asked for."""
    world = make_world(BYOK_MAX_KEY_LIFETIME=timedelta(days=7))
    ann, latest = world.caller(), utcnow() + timedelta(days=7, minutes=1)
    for wanted in (None, utcnow() + timedelta(days=999)):
        world.set(ann, key(world), expires_at=wanted)
        expires_at = world.record(ann).expires_at
        assert expires_at is not None
        assert latest - timedelta(minutes=2) < expires_at < latest


# validate


def test_validate_operators_key(make_world: MakeWorld) -> None:
    """The operator's key can be checked too; nothing is noted about it, and it is not shown."""
    world = make_world({"OPENAI_API_KEY": ENV_KEY})
    world.fake.add_key("openai", ENV_KEY)
    ann = world.caller()
    assert world.service.validate(ann, "openai").verdict is Verdict.VALID
    assert world.status(ann)["validity"] is None
    assert "CANARY" not in f"{world.service.get(ann)}{world.events}"


# G8


@pytest.mark.parametrize("late", ["good", "bad"])
def test_verdict_dies_with_its_version(world: World, late: str) -> None:
    """A slow check of the old key that ends after a new one was set says nothing about the new one."""
    ann, old = world.caller(), key(world, "slow")
    world.set(ann, old, validate="off")
    if late == "bad":
        world.fake.add_key("openai", old, "bad")
        world.fake.latency = 0.4
    found: list[Verdict] = []
    check = threading.Thread(
        target=lambda: found.append(world.service.validate(ann, "openai").verdict)
    )
    check.start()
    while not world.fake.calls_for("openai"):
        time.sleep(0.01)
    world.fake.latency = 0.0
    status, validation = world.set(ann, key(world, "restricted"))
    assert check.is_alive()
    check.join()
    world.fake.add_key("openai", old, "slow")
    assert found == [Verdict.VALID if late == "good" else Verdict.INVALID]
    assert world.status(ann) == status
    assert validation is not None
    assert status["validity"]["verdict"] == "valid_restricted"
    assert world.service.resolve(ann, "openai").api_key == key(world, "restricted")


def test_late_refusal_in_use(world: World) -> None:
    """A refusal of the old key in real traffic leaves the new key and its verdict alone."""
    ann = world.caller()
    world.set(ann, key(world))
    report = partial(world.service.checks.rejected, ann, world.service.resolve(ann, "openai"))
    status, _ = world.set(ann, key(world, owner="new"))
    report(Verdict.INVALID)
    assert world.status(ann) == status
    assert world.names()[-1] == "key_rejected"


def test_report_after_the_end_of_the_session(world: World) -> None:
    """A refusal that comes in after sign-out is told, and harms nothing."""
    ann = world.caller()
    world.set(ann, key(world))
    report = partial(world.service.checks.rejected, ann, world.service.resolve(ann, "openai"))
    assert ann.session is not None
    world.store.end(ann.session)
    report(Verdict.INVALID)
    assert world.names()[-1] == "key_rejected"


def test_refusal_in_a_stream_marks_the_key(make_world: MakeWorld) -> None:
    """A key that its provider refuses in a stream is shown as rejected, and the operator's does not step in."""
    world = make_world({"OPENAI_API_KEY": ENV_KEY})
    ann, mine = world.caller(), key(world, owner="streams")
    world.set(ann, mine)
    provider = world.service.provider(ann, "openai")
    assert "".join(provider.stream_chat([{"role": "user", "content": "hi"}]))
    world.fake.add_key("openai", mine, "bad")
    with pytest.raises(RejectedCredentialError):
        list(world.service.provider(ann, "openai").stream_chat([{"role": "user", "content": "hi"}]))
    assert (world.status(ann)["source"], world.status(ann)["state"]) == ("session", "rejected")
    with pytest.raises(RejectedCredentialError):
        world.service.provider(ann, "openai")
    assert ENV_KEY not in {call.api_key for call in world.fake.calls}
    world.fake.add_key("openai", mine, "good")


def test_a_refusal_of_the_sdks_client_marks_the_key(make_world: MakeWorld) -> None:
    """What is done with the SDK's client marks the very key that was refused, and says so once."""
    world = make_world()
    visitor, first, second = world.caller(), key(world, owner="first"), key(world, owner="second")
    world.set(visitor, first, validate="off")
    client = world.service.provider(visitor, "openai", max_retries=0).client
    world.fake.add_key("openai", first, "bad")
    with pytest.raises(Exception, match="401"):
        client.models.list()
    assert world.status(visitor)["validity"]["verdict"] == "invalid"
    assert world.status(visitor)["state"] == "rejected"
    with pytest.raises(RejectedCredentialError):
        world.service.provider(visitor, "openai")
    assert world.names().count("key_rejected") == 1
    world.set(visitor, second, validate="off")
    with pytest.raises(Exception, match="401"):
        client.models.list()
    assert (world.status(visitor)["state"], world.status(visitor)["validity"]) == ("active", None)
    world.fake.add_key("openai", first, "good")


def test_a_refusal_after_signing_in_ends_nothing(make_world: MakeWorld) -> None:
    """A visitor's call that is refused when somebody has signed in marks that key, and takes no other away."""
    world = make_world(BYOK_PRECEDENCE=["session", "env"])
    visitor, refused = world.caller(), key(world, owner="refused")
    world.set(visitor, refused, validate="off")
    provider = world.service.provider(visitor, "openai", max_retries=0)
    user = dataclasses.replace(visitor, user="7")
    world.set(user, key(world, provider="groq"), "groq", validate="off")
    world.fake.add_key("openai", refused, "bad")
    for call in (
        provider.client.models.list,
        lambda: list(provider.stream_chat([{"role": "user", "content": "hi"}])),
    ):
        with pytest.raises(Exception, match=r"."):
            call()
        assert world.status(user, "groq")["source"] == "session"
    world.service.promote(user)
    assert world.status(user)["state"] == "rejected"
    world.fake.add_key("openai", refused, "good")


# a visitor signs in


def sign_in(world: World, *providers: str) -> tuple[Caller, Caller]:
    """Let a visitor save keys, then sign in; return the visitor and the user."""
    visitor = world.caller()
    for provider in providers:
        world.set(visitor, key(world, provider=provider, owner="visitor"), provider)
    return visitor, dataclasses.replace(visitor, user="7")


def test_visitors_keys_wait(make_world: MakeWorld) -> None:
    """What a visitor saved is offered to the user with its hint, and not used before the user keeps it."""
    world = make_world({"OPENAI_API_KEY": ENV_KEY})
    _, user = sign_in(world, "openai")
    status = world.status(user)
    assert (status["source"], status["promotable"]) == ("env", True)
    assert status["promotable_hint"] == f"sk-proj-…{key(world, owner='visitor')[-4:]}"
    assert world.service.resolve(user, "openai").api_key == ENV_KEY
    world.fake.clear_calls()
    world.service.validate(user, "openai")
    assert {call.api_key for call in world.fake.calls} == {ENV_KEY}
    assert world.status(user)["promotable"]


def test_promoted_key_is_sealed_for_the_user(world: World) -> None:
    """Without accounts a promoted record is bound to the user: the visitor's ciphertext in its place does not open."""
    world = world.with_config(BYOK_PRECEDENCE=["session", "env"])
    visitor, user = sign_in(world, "openai")
    theirs = world.store.read(user.session, user.identity, ["openai"]).visitor_records["openai"]  # type: ignore[arg-type]
    world.service.promote(user)
    world.tamper(user, ciphertext=theirs.ciphertext)
    assert world.status(user)["state"] == "unreadable"
    assert visitor.identity == ""


def test_promote_leaves_what_does_not_open(world: World) -> None:
    """One key that does not open holds up no other, is not wiped, and is an error when it is the only one."""
    visitor = world.caller()
    world.set(visitor, key(world))
    world.set(visitor, key(world, provider="groq"), "groq")
    world.tamper(visitor, ciphertext=world.record(visitor, "groq").ciphertext)
    user = dataclasses.replace(visitor, user="7")
    assert world.service.promote(user) == {"promoted": ["groq"], "kept": []}
    assert world.status(user)["promotable"]
    with pytest.raises(UnreadableCredentialError):
        world.service.promote(user)


def test_promote_of_what_the_operator_took_away(world: World) -> None:
    """Keys for providers that are locked or off now hold up no other."""
    _, user = sign_in(world, "openai", "groq", "xai")
    later = world.with_config(BYOK_LOCKED_PROVIDERS=["openai"])
    later = dataclasses.replace(later, catalog=later.catalog.only(["openai", "groq"]))
    assert later.service.promote(user) == {"promoted": ["groq"], "kept": []}


def test_promote_on_login(make_world: MakeWorld) -> None:
    """With on_login a visitor's keys serve the user once that visitor has signed in, and the user's own win."""
    world = make_world({"GROQ_API_KEY": "gsk_operators-own"}, BYOK_PROMOTE="on_login")
    _, user = sign_in(world, "openai", "groq")
    world.service.signed_in(user)
    assert world.service.resolve(user, "groq").api_key == key(
        world, provider="groq", owner="visitor"
    )
    world.set(user, key(world, owner="user"))
    assert world.service.resolve(user, "openai").api_key == key(world, owner="user")
    assert {row["provider"] for row in world.service.get(user)["providers"] if row["has_key"]} == {
        "openai",
        "groq",
    }


def test_promote_never(make_world: MakeWorld) -> None:
    """With never a visitor's key is shown to no user and kept for none, whichever is asked for first."""
    world = make_world(BYOK_PROMOTE="never")
    for first in ("promote", "look"):
        visitor, user = sign_in(world, "openai")
        assert world.status(visitor)["has_key"]
        if first == "promote":
            assert world.service.promote(user) == {"promoted": [], "kept": []}
        else:
            world.service.signed_in(user)
        assert not world.status(user)["promotable"]
        assert world.service.promote(user) == {"promoted": [], "kept": []}
        world.store.end(user.session)


def test_clear_takes_what_waits_too(world: World) -> None:
    """Clearing removes a key that waits."""
    _, user = sign_in(world, "openai")
    cleared, status = world.service.clear(user, "openai")
    assert (cleared, status["promotable"]) == (["session"], False)


# G5


def test_unreadable_record_is_shown(make_world: MakeWorld) -> None:
    """A ciphertext from elsewhere is shown as unreadable; the list answers, and no other key steps in."""
    world = make_world({"OPENAI_API_KEY": ENV_KEY})
    ann, ben = world.caller(), world.caller(sid="sid-2")
    world.set(ann, key(world))
    world.set(ben, key(world, owner="ben"))
    world.tamper(ann, ciphertext=world.record(ben).ciphertext)
    status = world.status(ann)
    assert (status["source"], status["state"], status["has_key"]) == ("session", "unreadable", True)
    assert len(world.service.get(ann)["providers"]) == 7
    for use in (world.service.resolve, world.service.validate, world.service.provider):
        with pytest.raises(UnreadableCredentialError) as caught:
            use(ann, "openai")
        assert caught.value.tier == "session"
    forgiving = world.with_config(BYOK_FALLBACK_ON=["unreadable"])
    assert forgiving.service.resolve(ann, "openai").api_key == ENV_KEY
    world.set(ann, key(world))
    assert world.status(ann)["state"] == "active"


def test_encryption_key_retired_too_early(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """To the person a retired encryption key is one more unreadable key; the operator's log says what it is."""
    ann, encryption_key = world.caller(), generate_encryption_key()
    first = world.with_keyring(Keyring(encryption_key))
    first.set(ann, key(world))
    later = world.with_keyring(Keyring(generate_encryption_key()))
    with caplog.at_level(logging.WARNING, "flask_byok"):
        assert later.status(ann)["state"] == "unreadable"
    assert "BYOK_ENCRYPTION_KEY_FALLBACKS" in caplog.text
    assert encryption_key not in caplog.text
    caplog.clear()
    later.tamper(ann, ciphertext="byok1.x")
    assert later.status(ann)["state"] == "unreadable"
    assert caplog.text == ""
    kept = world.with_keyring(Keyring(generate_encryption_key(), [encryption_key]))
    first.set(ann, key(world))
    assert kept.service.resolve(ann, "openai").api_key == key(world)


# stores that fail


class BrokenStore:
    """A store that never answers."""

    name = "a broken store"

    def __getattr__(self, verb: str) -> Any:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise StoreError(tier="session")

        return fail


def test_store_that_does_not_answer(make_world: MakeWorld) -> None:
    """A store that does not answer is an error in every verb; with skip, what needs no store goes on."""
    good = make_world({"OPENAI_API_KEY": ENV_KEY})
    ann = good.caller()
    world = dataclasses.replace(good, other_store=BrokenStore())
    verbs: list[Callable[[World], Any]] = [
        lambda w: w.set(ann, key(world)),
        lambda w: w.service.clear(ann, "openai"),
        lambda w: w.service.resolve(ann, "openai"),
        lambda w: w.service.get(ann),
    ]
    for verb in verbs:
        with pytest.raises(StoreError) as caught:
            verb(world)
        assert caught.value.retry_after >= 1
    skipping = world.with_config(BYOK_ON_STORE_FAILURE="skip")
    assert skipping.service.resolve(ann, "openai").api_key == ENV_KEY
    assert skipping.status(ann)["source"] == "env"
    with pytest.raises(StoreError):
        verbs[0](skipping)


# several at once


class CountingStore:
    """Passes everything on, and counts the reads."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.reads = 0

    def __getattr__(self, verb: str) -> Any:
        self.reads += verb == "read"
        return getattr(self._store, verb)


def test_one_round_of_look_ups(make_world: MakeWorld) -> None:
    """Several keys, and the status of all providers, cost one read of the store each."""
    world = make_world({"GROQ_API_KEY": "gsk_operators-own"})
    ann = world.caller()
    world.set(ann, key(world))
    counting = CountingStore(world.store)
    world = dataclasses.replace(world, other_store=counting)
    found = world.service.resolve_many(ann, ["openai", "groq", "xai"])
    assert {name: str(each.source) for name, each in found.items()} == {
        "openai": "session",
        "groq": "env",
    }
    assert counting.reads == 1
    world.service.get(ann)
    assert counting.reads == 2
    world.service.resolve(ann, "openai")
    assert counting.reads == 3


# what is told


def test_events_are_safe_facts(world: World) -> None:
    """Each verb tells what happened, after it happened, with no key in it."""
    ann = world.caller()
    world.set(ann, key(world))
    world.service.resolve(ann, "openai")
    world.service.validate(ann, "openai")
    world.service.clear(ann, "openai")
    assert world.names() == ["key_set", "key_used", "key_validated", "key_cleared"]
    assert all(facts["provider"] == "openai" for _, facts in world.events)
    assert key(world) not in f"{world.events}"


CANARY = "sk-CANARY-4711-never-to-be-seen"
HARMFUL: list[Callable[[World, Caller], Any]] = [
    lambda w, c: w.set(c, CANARY),
    lambda w, c: w.set(c, f"{CANARY} {CANARY}"),
    lambda w, c: w.set(c, CANARY * 200),
    lambda w, c: w.set(c, CANARY, CANARY),
    lambda w, c: w.set(c, CANARY, base_url=f"https://{CANARY}.example/{CANARY}"),
    lambda w, c: w.set(c, CANARY, "custom", base_url=f"http://{CANARY}@10.0.0.1/{CANARY}"),
    lambda w, c: w.service.set(c, "openai", NewKey(fields={CANARY: Secret(CANARY)})),
    lambda w, c: w.service.validate(c, CANARY, {"api_key": Secret(CANARY)}),
    lambda w, c: w.service.validate(c, "openai", {"api_key": Secret(f"{CANARY}\0")}),
    lambda w, c: w.service.clear(c, CANARY),
    lambda w, c: w.service.resolve(c, CANARY),
    lambda w, c: w.service.promote(c, [CANARY]),
]


@pytest.mark.parametrize("harm", HARMFUL)
@pytest.mark.parametrize("custom", [True, False])
def test_no_error_repeats_what_was_typed(
    make_world: MakeWorld, harm: Callable[[World, Caller], Any], custom: bool
) -> None:
    """Whatever goes wrong, neither the error nor what led to it repeats the key."""
    world = make_world(BYOK_ALLOW_CUSTOM_PROVIDERS=custom)
    with pytest.raises(ByokError) as caught:
        harm(world, world.caller(user="7"))
    error: BaseException | None = caught.value
    while error is not None:
        assert "CANARY" not in f"{error!r}{error}{vars(error)}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert "CANARY" not in f"{world.events}"
