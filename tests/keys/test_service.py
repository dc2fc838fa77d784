"""The verbs, on a real store and against real servers; no Flask."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from flask_byok.catalog import Field, ProviderSpec
from flask_byok.catalog.verdicts import Judgement
from flask_byok.errors import (
    ByokError,
    KeyRefusedError,
    MissingCredentialError,
    OwnerRequiredError,
    ProviderLockedError,
    RejectedCredentialError,
    UnreadableCredentialError,
)
from flask_byok.keys.checks import LATER, PAUSE
from flask_byok.keys.typed import NewKey
from flask_byok.model.credential import Secret, Verdict, utcnow
from flask_byok.model.owner import Caller
from flask_byok.sealing.keyring import Keyring, generate_encryption_key
from tests.worlds import ENV_KEY, SECRET_KEY, World, registered

from .conftest import MakeWorld

NOWHERE = "http://127.0.0.1:1/v1"


def key(world: World, behaviour: str = "good", provider: str = "openai", owner: Any = None) -> str:
    """Return a key that the fake provider treats so."""
    return world.fake.api_key(provider, behaviour, owner)


# what is stored

#: The operator's mode, what a request asks for, a key, and what becomes of it: it is refused, or stored with a verdict
#: or with none.
MODES = [
    ("off", None, "bad", None),
    ("warn", "off", "bad", None),
    ("off", "warn", "bad", "refused"),
    *((mode, None, "restricted", "valid_restricted") for mode in ("warn", "require")),
    *((mode, None, "broke", "valid_no_credit") for mode in ("warn", "require")),
    *((mode, None, "rate_limited", "valid_rate_limited") for mode in ("warn", "require")),
    ("warn", None, "overloaded", "unreachable"),
    ("warn", "require", "overloaded", "refused"),
    *(("require", asked, "overloaded", "refused") for asked in (None, "off", "warn")),
]


@pytest.mark.parametrize(("mode", "asked", "behaviour", "outcome"), MODES)
def test_modes_of_validation(
    make_world: MakeWorld, mode: str, asked: Any, behaviour: str, outcome: str | None
) -> None:
    """A request may ask for another mode than the operator's, but not for less than a required check."""
    world = make_world(BYOK_VALIDATE_ON_SET=mode)
    ann, api_key = world.caller(), key(world, behaviour)
    if outcome == "refused":
        with pytest.raises(KeyRefusedError):
            world.set(ann, api_key, validate=asked)
        assert world.status(ann)["has_key"] is False
        return
    status, validation = world.set(ann, api_key, validate=asked)
    assert (validation.verdict if validation else None) == outcome
    assert (status["validity"]["verdict"] if status["validity"] else None) == outcome
    assert status["state"] == "active"
    assert bool(world.fake.calls) is (outcome is not None)


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


def test_sign_in_is_asked_for(make_world: MakeWorld) -> None:
    """Where sign-in is required, no verb works without it."""
    world = make_world(BYOK_REQUIRE_LOGIN=True)
    verbs: list[Callable[[Caller], Any]] = [
        world.service.get,
        lambda caller: world.set(caller, key(world)),
        lambda caller: world.service.resolve(caller, "openai"),
        lambda caller: world.service.resolve_many(caller, ["openai"]),
        lambda caller: world.service.validate(caller, "openai"),
        lambda caller: world.service.provider(caller, "openai"),
        lambda caller: world.service.clear(caller, "openai"),
        world.service.promote,
    ]
    for verb in verbs:
        with pytest.raises(OwnerRequiredError):
            verb(world.caller())
    for verb in verbs:
        verb(world.caller(user="7"))


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


OWN_FIELDS = (Field("base_url", secret=False, required=False), Field())


@pytest.mark.parametrize(
    ("provider", "before", "after"), [("own", NOWHERE, None), ("custom", None, NOWHERE)]
)
def test_key_goes_where_it_was_saved_for(
    make_world: MakeWorld, provider: str, before: str | None, after: str | None
) -> None:
    """A key for an operator's address that is gone, or for one's own where the operator sets one now, is unreadable."""
    allowed = ("BYOK_ALLOW_CUSTOM_PROVIDERS", "BYOK_ALLOW_PRIVATE_ENDPOINTS")
    urls = {provider: before} if before else {}
    world = make_world(
        BYOK_BASE_URLS=urls, BYOK_VALIDATE_ON_SET="off", **dict.fromkeys(allowed, True)
    )
    catalog = registered(ProviderSpec(id="own", name="Own", fields=OWN_FIELDS))
    world, ann = dataclasses.replace(world, catalog=catalog), world.caller()
    own_url = None if before else world.fake.base_url("custom")
    world.set(ann, "own-key-12345", provider, base_url=own_url)
    later = world.with_config(BYOK_BASE_URLS={provider: after} if after else {})
    assert later.status(ann, provider)["state"] == "unreadable"
    with pytest.raises(UnreadableCredentialError):
        later.service.resolve(ann, provider)


# expiry


def test_expired_key_is_not_opened(world: World) -> None:
    """An expired key passes on even if it does not open any more."""
    ann = world.caller()
    world.set(ann, key(world))
    world.tamper(ann, ciphertext="gone", expires_at=utcnow() - timedelta(seconds=1))
    assert world.status(ann)["state"] == "expired"
    with pytest.raises(MissingCredentialError):
        world.service.resolve(ann, "openai")


# validate


def test_validate_operators_key(make_world: MakeWorld) -> None:
    """The operator's key can be checked too; nothing is noted about it, and it is not shown."""
    world = make_world({"OPENAI_API_KEY": ENV_KEY})
    world.fake.add_key("openai", ENV_KEY)
    ann = world.caller()
    assert world.service.validate(ann, "openai").verdict is Verdict.VALID
    assert world.status(ann)["validity"] is None
    assert "CANARY" not in f"{world.service.get(ann)}{world.events}"


def test_report_after_the_end_of_the_session(world: World) -> None:
    """A refusal that comes in after sign-out is reported, and harms nothing."""
    ann = world.caller()
    world.set(ann, key(world))
    report = partial(world.service.checks.of_traffic, ann, world.service.resolve(ann, "openai"))
    assert ann.session is not None
    world.store.end(ann.session)
    world.fake.revoke("openai", key(world))
    report(Judgement(Verdict.INVALID, "key_rejected", "No."))
    assert world.names()[-1] == "key_rejected"


def _refused(world: World, caller: Caller) -> bool:
    """Call with the key in use, and return True if that was refused."""
    provider = world.service.provider(caller, "openai")
    try:
        return not "".join(provider.stream_chat([{"role": "user", "content": "hi"}]))
    except RejectedCredentialError:
        return True


#: What a gateway answers for a while, whoever asks.
GATEWAY_FAULT = {"error": {"message": "upstream auth unavailable", "code": "invalid_api_key"}}


def test_a_gateways_fault_locks_nobody_out(world: World) -> None:
    """A shared key serves on though a call and a check at once were refused; it is marked if that is so later too."""
    world.keep("system", key(world, owner="shared"))
    ann, checks, later = world.caller("ann"), world.service.checks, timedelta(0)
    checks.clock = lambda: 1000.0 + later.total_seconds()
    for _ in range(2):
        world.fake.answer_next("openai", 401, GATEWAY_FAULT)
    assert (_refused(world, ann), _refused(world, ann), _refused(world, ann)) == (True, True, False)
    world.fake.revoke("openai", key(world, owner="shared"))
    assert _refused(world, ann)
    assert world.status(ann)["state"] == "active"
    world.fake.clear_calls()
    later = timedelta(days=3)
    assert _refused(world, ann)
    assert len(world.fake.calls) == 1
    later += timedelta(hours=20)
    assert _refused(world, ann)
    assert len(world.fake.calls) == 3
    assert world.status(ann)["state"] == "rejected"
    assert world.names()[-1] == "key_rejected"


def test_a_second_opinion_is_not_asked_for_again_and_again(world: World) -> None:
    """While its calls are refused and checks of it are not, a shared key is checked twice a minute at most."""
    world.keep("system", key(world, owner="shared"))
    ann, now = world.caller("ann"), 0.0
    world.service.checks.clock = lambda: now
    checks = []
    for now in map(float, range(0, 120, 2)):
        world.fake.clear_calls()
        world.fake.answer_next("openai", 401, GATEWAY_FAULT)
        assert _refused(world, ann)
        checks += [now] * (len(world.fake.calls) - 1)
    assert checks == [LATER, LATER + PAUSE, LATER + 2 * PAUSE, LATER + 3 * PAUSE]
    assert world.status(ann)["state"] == "active"


def test_ones_own_key_at_the_operators_address(world: World) -> None:
    """A refusal at an address of the operator's, which may be a gateway's, marks a person's key if a check agrees."""
    ann, mine = world.caller("ann"), key(world, owner="ann")
    world.set(ann, mine)
    world.fake.answer_next("openai", 401, GATEWAY_FAULT)
    assert _refused(world, ann)
    assert world.status(ann)["state"] == "active"
    world.service.checks.clock = lambda: time.monotonic() + PAUSE
    world.fake.revoke("openai", mine)
    assert _refused(world, ann)
    assert world.status(ann)["state"] == "rejected"


def test_looking_for_faults_writes_nothing(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With BYOK_FALLBACK_ON the store is asked for an operator's key's fault once a second, and nothing is inserted."""
    world = make_world({"OPENAI_API_KEY": ENV_KEY}, BYOK_FALLBACK_ON=["no_credit"])
    ann, asked, find = world.caller("ann"), list[str](), world.documents.find
    monkeypatch.setattr(world.documents, "find", lambda name: [asked.append(name), find(name)][1])
    world.service.faults.clock = lambda: 0.0
    with world.documents.engine.connect() as connection:
        tables = ("byok_canary", "byok_session_names")
        count = [text(f"SELECT count(*) FROM {table}") for table in tables]
        before = [connection.execute(each).scalar() for each in count]
        for _ in range(20):
            assert world.service.resolve(ann, "openai").source == "env"
            assert world.status(ann)["source"] == "env"
        assert asked == ["fault:env:openai"]
        assert [connection.execute(each).scalar() for each in count] == before


def test_a_refusal_after_signing_in_ends_nothing(make_world: MakeWorld) -> None:
    """A visitor's call that is refused after a user has signed in marks that key, and takes no other away."""
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
    assert world.status(user)["validity"]["verdict"] == "invalid"


def sign_in(world: World, *providers: str) -> tuple[Caller, Caller]:
    """Let a visitor save keys, then sign in; return the visitor and the user."""
    visitor = world.caller()
    for provider in providers:
        world.set(visitor, key(world, provider=provider, owner="visitor"), provider)
    return visitor, dataclasses.replace(visitor, user="7")


def test_promote_leaves_what_does_not_open(world: World) -> None:
    """One key that does not open holds up no other, is not wiped, and is an error when it is the only one."""
    visitor = world.caller()
    world.set(visitor, key(world))
    world.set(visitor, key(world, provider="groq"), "groq")
    world.tamper(visitor, ciphertext=world.record(visitor, "groq").ciphertext)
    user = dataclasses.replace(visitor, user="7")
    assert world.service.promote(user) == {"promoted": ["groq"], "kept": []}
    assert not world.status(user)["promotable"]
    with pytest.raises(UnreadableCredentialError):
        world.service.promote(user)


def test_promote_of_what_the_operator_took_away(world: World) -> None:
    """Keys for providers that are locked or off now hold up no other."""
    _, user = sign_in(world, "openai", "groq", "xai")
    later = world.with_config(BYOK_LOCKED_PROVIDERS=["openai"])
    later = dataclasses.replace(later, catalog=later.catalog.only(["openai", "groq"]))
    assert later.service.promote(user) == {"promoted": ["groq"], "kept": []}


def test_clear_takes_what_waits_too(world: World) -> None:
    """Clearing removes a key that waits."""
    _, user = sign_in(world, "openai")
    cleared, status = world.service.clear(user, "openai")
    assert (cleared, status["promotable"]) == (["session"], False)


# what is said


def test_encryption_key_retired_too_early(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The operator's log tells a retired encryption key from any other key that does not open."""
    ann, encryption_key = world.caller(), generate_encryption_key()
    world.with_keyring(Keyring(encryption_key)).set(ann, key(world))
    later = world.with_keyring(Keyring(generate_encryption_key()))
    assert later.status(ann)["state"] == "unreadable"
    assert "BYOK_ENCRYPTION_KEY_FALLBACKS" in caplog.text
    assert encryption_key not in caplog.text
    caplog.clear()
    later.tamper(ann, ciphertext="byok1.x")
    assert later.status(ann)["state"] == "unreadable"
    assert caplog.text == ""


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
    """Neither the error nor what led to it repeats the key."""
    world = make_world(BYOK_ALLOW_CUSTOM_PROVIDERS=custom)
    with pytest.raises(ByokError) as caught:
        harm(world, world.caller(user="7"))
    error: BaseException | None = caught.value
    while error is not None:
        assert "CANARY" not in f"{error!r}{error}{vars(error)}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert "CANARY" not in f"{world.events}"
