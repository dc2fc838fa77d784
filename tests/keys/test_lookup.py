"""Which key serves: the tiers in order, with one decision for every path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok.catalog import Catalog, ProviderSpec
from flask_byok.errors import (
    ByokError,
    CredentialError,
    MissingCredentialError,
    RejectedCredentialError,
    StoreError,
    UnreadableCredentialError,
)
from flask_byok.keys.lookup import Candidate, Found, Lookup
from flask_byok.keys.status import Status, build_status, storage_sentence
from flask_byok.model.credential import (
    Credential,
    CredentialRecord,
    RecordedVerdict,
    Secret,
    Verdict,
    utcnow,
)
from flask_byok.model.owner import OPERATOR_TIERS, Caller, Tier
from flask_byok.sealing.keyring import Keyring
from flask_byok.settings import FallbackReason, Settings

NOW = utcnow()
KEYRING = Keyring("f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e")
OPENAI, GROQ = Catalog().get("openai"), Catalog().get("groq")
REASONS: tuple[FallbackReason, ...] = get_args(FallbackReason)
ANYBODY = Caller(user="1")


def make_candidate(tier: Tier, kind: str, spec: ProviderSpec = OPENAI) -> Candidate:
    """Make what a tier has; the kind is a state, or a verdict on an active key."""
    is_verdict = kind in set(Verdict)
    verdict = RecordedVerdict(Verdict(kind), utcnow(), "v1") if is_verdict else None
    record = CredentialRecord(
        spec.id, "owner", "sealed", f"…{tier}", "v1", NOW, NOW, validity=verdict
    )
    credential = Credential(
        spec.id, tier, "owner", {"api_key": Secret(f"key-of-{tier}")}, "https://x"
    )
    opened = credential if kind not in ("unreadable", "waiting") else None
    state: Any = "active" if is_verdict else kind
    return Candidate(tier, state, opened, None if tier in OPERATOR_TIERS else record)


@dataclass(eq=False)
class FixedTier:
    """A tier that has what it is given, and counts how often it is asked."""

    tier: Tier
    kinds: Sequence[str] = ()
    failure: ByokError | None = None
    asked: list[list[str]] = field(default_factory=list)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Return the one tier."""
        return (self.tier,)

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return what the tier has for every provider it is asked about."""
        self.asked.append([spec.id for spec in specs])
        if self.failure is not None:
            raise self.failure
        return {
            (self.tier, spec.id): [make_candidate(self.tier, kind, spec) for kind in self.kinds]
            for spec in specs
        }


def serving_tier(settings: Settings, *tiers: FixedTier) -> str:
    """Name the tier that serves, or the code of the error that stands in the way."""
    try:
        return str(Lookup(tiers, settings).resolve(ANYBODY, OPENAI).source)
    except ByokError as error:
        return error.code


# G6


@pytest.mark.parametrize(
    ("kind", "outcome", "reason"),
    [
        *((kind, "env", None) for kind in ("inactive", "expired", "waiting", None)),
        ("unreadable", "key_unreadable", "unreadable"),
        ("rejected", "key_rejected", "rejected"),
        *((kind, "session", None) for kind in ("valid", "valid_restricted", "unchecked")),
        ("valid_no_credit", "session", "no_credit"),
        ("valid_rate_limited", "session", "rate_limited"),
        ("unreachable", "session", "unreachable"),
    ],
)
def test_when_the_next_tier_serves(
    kind: str | None, outcome: str, reason: FallbackReason | None
) -> None:
    """The next tier serves where the first has nothing usable, or what is wrong with its key is named."""
    first, second = FixedTier(Tier.SESSION, [kind] if kind else []), FixedTier(Tier.ENV, ["active"])
    for number in range(6):
        for named in itertools.combinations(REASONS, number):
            settings = Settings(fallback_on=frozenset(named))
            expected = "env" if reason in named else outcome
            assert serving_tier(settings, first, second) == expected
            # Where nothing comes after it, what was passed over for a fault serves, or says what is wrong with it.
            alone = "key_missing" if outcome == "env" else outcome
            assert serving_tier(settings, first) == alone


def test_errors_say_what_to_do() -> None:
    """Each error names provider and tier, and says where to mend it."""
    for kinds, error, words in (
        ([], MissingCredentialError, "Add one in the API key settings"),
        (["rejected"], RejectedCredentialError, "Replace it"),
        (["unreadable"], UnreadableCredentialError, "Save it again"),
    ):
        with pytest.raises(error, match=words) as caught:
            Lookup([FixedTier(Tier.SESSION, kinds)], Settings()).resolve(ANYBODY, OPENAI)
        assert caught.value.provider == "openai"
        assert caught.value.tier == ("session" if kinds else None)
        assert "OpenAI" in str(caught.value)


def test_refused_key_can_be_found_for_a_check() -> None:
    """A refused key can be asked about again, an unreadable one cannot."""
    refused = Lookup([FixedTier(Tier.SESSION, ["rejected"])], Settings())
    assert refused.resolve(ANYBODY, OPENAI, rejected=True).source == "session"
    unreadable = Lookup([FixedTier(Tier.SESSION, ["unreadable"])], Settings())
    with pytest.raises(UnreadableCredentialError):
        unreadable.resolve(ANYBODY, OPENAI, rejected=True)


# G2

KINDS = ["active", "inactive", "expired", "waiting", "unreadable", "rejected"]
VERDICTS = [verdict.value for verdict in Verdict if verdict.valid is not False]
OPERATOR_KINDS = st.lists(st.sampled_from(["active", "unreadable"]), max_size=1)
PERSONAL_KINDS = st.lists(st.sampled_from(KINDS + VERDICTS), max_size=2)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Settings, list[FixedTier]]:
    """Draw an operator's settings, and what lies in the tiers."""
    order = draw(st.permutations(list(Tier)).flatmap(lambda t: st.sampled_from([t, t[:3], t[:1]])))
    settings = Settings(
        precedence=tuple(order),
        fallback_on=draw(st.frozensets(st.sampled_from(REASONS))),
        locked_providers=draw(st.sampled_from([frozenset(), frozenset({"openai"})])),
        on_store_failure=draw(st.sampled_from(["fail", "skip"])),
    )
    tiers = [
        FixedTier(
            tier,
            draw(OPERATOR_KINDS if tier in OPERATOR_TIERS else PERSONAL_KINDS),
            draw(st.sampled_from([None, None, None, StoreError(tier=tier)])),
        )
        for tier in order
    ]
    return settings, tiers


@given(worlds())
def test_what_is_shown_is_what_is_used(world: tuple[Settings, list[FixedTier]]) -> None:
    """In any world, the source that status shows is the tier that serves, or the one that stands in the way."""
    settings, tiers = world
    resolver = Lookup(tiers, settings)
    served: Credential | ByokError
    try:
        served = resolver.resolve(ANYBODY, OPENAI)
    except (CredentialError, StoreError) as error:
        served = error
    try:
        candidates = resolver.survey(ANYBODY, [OPENAI])["openai"]
    except StoreError:
        # Nothing is shown at all. A call may still be served by a tier that comes before the broken one.
        return
    status = build_status(ANYBODY, OPENAI, candidates, resolver)
    assert not isinstance(served, StoreError)
    if isinstance(served, Credential):
        assert (status["source"], status["has_key"]) == (served.source, True)
        assert status["state"] == "active"
    elif isinstance(served, MissingCredentialError):
        assert (status["source"], status["has_key"]) == (None, False)
    else:
        assert status["source"] == served.tier
        assert f"key_{status['state']}" == served.code
    assert status["locked"] == resolver.locked(ANYBODY, OPENAI)


# what is said


def status_of(tier: Tier, caller: Caller) -> Status:
    """Build the status of a provider with a key of the operator."""
    fields = {"api_key": Secret("sk-CANARY-operator")}
    credential = Credential("openai", tier, "system", fields, "https://x", hint="sk-…ator")
    found = [Candidate(tier, "active", credential, operator_name="OPENAI_API_KEY")]
    lookup = Lookup([], Settings())
    return build_status(caller, OPENAI, found, lookup)


@pytest.mark.parametrize("tier", sorted(OPERATOR_TIERS))
def test_operators_key(tier: Tier) -> None:
    """Of an operator's key members see that it exists: no hint, no name of a variable; admins see the name."""
    status = status_of(tier, Caller(user="1"))
    assert (status["source"], status["has_key"], status["hint"]) == (tier, True, None)
    assert "OPENAI_API_KEY" not in f"{status}"
    admin = status_of(tier, Caller(user="1", admin=True))
    assert admin["operator_names"] == ["OPENAI_API_KEY"]


@pytest.mark.parametrize(
    ("ttl", "words"),
    [
        (timedelta(hours=24), "24 hours"),
        (timedelta(days=30), "30 days"),
        (timedelta(hours=1), "60 minutes"),
        (timedelta(minutes=90), "90 minutes"),
        (timedelta(seconds=45), "45 seconds"),
    ],
)
def test_storage_sentence(ttl: timedelta, words: str) -> None:
    """The storage sentence follows from the settings."""
    sentence = storage_sentence(Settings(session_ttl=ttl), Caller(), "Redis")
    assert "kept in Redis; they are deleted when you sign out" in sentence
    assert f"after {words} without use" in sentence
    assert "account" not in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "account stay in the database until you remove them. Keys for this session"),
        ({"max_key_lifetime": timedelta(days=90)}, "remove them, for 90 days at most."),
        ({"precedence": (Tier.USER,)}, "provider. Keys in your account stay in the database until"),
        ({"precedence": (Tier.SYSTEM, Tier.ENV)}, "It stores no keys of yours."),
        ({"precedence": (Tier.SESSION, Tier.ENV)}, "Keys for this session are kept in Redis"),
        ({"allow_custom_providers": True}, "or the address set for it"),
    ],
)
def test_storage_sentence_with_an_account(changes: dict[str, Any], words: str) -> None:
    """A signed-in user reads what happens to keys in the account, if there are any."""
    settings = Settings(**changes)
    sentence = storage_sentence(settings, Caller(user="ann"), "Redis")
    assert words in sentence
    assert ("Keys in your account" in sentence) is (Tier.USER in settings.precedence)
