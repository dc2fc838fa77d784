"""Which key serves: the tiers in order, with one decision for every path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
    SessionRequiredError,
    StoreError,
    UnreadableCredentialError,
)
from flask_byok.keys.lookup import Candidate, Found, Lookup
from flask_byok.keys.status import build_status
from flask_byok.model.credential import (
    Credential,
    CredentialRecord,
    RecordedVerdict,
    Secret,
    Verdict,
)
from flask_byok.model.owner import OPERATOR_TIERS, Caller, Tier
from flask_byok.sealing.keyring import Keyring
from flask_byok.settings import FallbackReason, Settings

NOW = datetime(2026, 5, 1, tzinfo=UTC)
KEYRING = Keyring("00" * 32)
OPENAI, GROQ = Catalog().get("openai"), Catalog().get("groq")
REASONS: tuple[FallbackReason, ...] = get_args(FallbackReason)
ANYBODY = Caller(user="1")


def make_candidate(tier: Tier, kind: str, spec: ProviderSpec = OPENAI) -> Candidate:
    """Make what a tier has; the kind is a state, or a verdict on an active key."""
    is_verdict = kind in set(Verdict)
    verdict = RecordedVerdict(Verdict(kind), NOW, "v1") if is_verdict else None
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


@pytest.mark.parametrize("kind", ["inactive", "expired", "waiting", None])
@pytest.mark.parametrize("named", [(), REASONS])
def test_nothing_usable_passes_on(kind: str | None, named: tuple[FallbackReason, ...]) -> None:
    """Where the first tier has nothing usable, the next one serves, whatever the operator named."""
    settings = Settings(fallback_on=frozenset(named))
    first = FixedTier(Tier.SESSION, [kind] if kind else [])
    assert serving_tier(settings, first, FixedTier(Tier.ENV, ["active"])) == "env"
    assert serving_tier(settings, first) == "key_missing"


@pytest.mark.parametrize(
    ("kind", "reason", "code"),
    [("unreadable", "unreadable", "key_unreadable"), ("rejected", "rejected", "key_rejected")],
)
def test_what_stops_unless_named(kind: str, reason: FallbackReason, code: str) -> None:
    """An unreadable or refused key stops the search; only its own reason in BYOK_FALLBACK_ON lets it go on."""
    first, second = FixedTier(Tier.SESSION, [kind]), FixedTier(Tier.ENV, ["active"])
    for named in itertools.chain.from_iterable(
        itertools.combinations(REASONS, n) for n in range(6)
    ):
        expected = "env" if reason in named else code
        assert serving_tier(Settings(fallback_on=frozenset(named)), first, second) == expected


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("valid", None),
        ("valid_restricted", None),
        ("unchecked", None),
        ("valid_no_credit", "no_credit"),
        ("valid_rate_limited", "rate_limited"),
        ("unreachable", "unreachable"),
    ],
)
def test_what_serves_unless_named(kind: str, reason: FallbackReason | None) -> None:
    """A key that is not refused serves; one in trouble is passed over only if its reason is named."""
    first, second = FixedTier(Tier.SESSION, [kind]), FixedTier(Tier.ENV, ["active"])
    for named in itertools.chain.from_iterable(
        itertools.combinations(REASONS, n) for n in range(6)
    ):
        expected = "env" if reason in named else "session"
        assert serving_tier(Settings(fallback_on=frozenset(named)), first, second) == expected


def test_refused_key_of_the_last_tier() -> None:
    """A refused key that was passed over is not used after all when nothing comes after it."""
    settings = Settings(fallback_on=frozenset({"rejected"}))
    assert serving_tier(settings, FixedTier(Tier.SESSION, ["rejected"])) == "key_missing"


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


# order


def test_survey_asks_each_tier_once() -> None:
    """The list of all providers asks each tier one time for all of them."""
    tiers = [FixedTier(Tier.SESSION, ["active"]), FixedTier(Tier.ENV)]
    found = Lookup(tiers, Settings()).survey(ANYBODY, [OPENAI, GROQ])
    assert [tier.asked for tier in tiers] == [[["openai", "groq"]]] * 2
    assert {provider: len(candidates) for provider, candidates in found.items()} == {
        "openai": 1,
        "groq": 1,
    }


# locks


# G10


def test_session_that_ended() -> None:
    """An ended session holds nothing; who must establish another one can ask to be told."""
    ended = FixedTier(Tier.SESSION, failure=SessionRequiredError())
    resolver = Lookup([ended, FixedTier(Tier.ENV, ["active"])], Settings())
    assert resolver.resolve(ANYBODY, OPENAI).source == "env"
    assert len(resolver.survey(ANYBODY, [OPENAI])["openai"]) == 1
    with pytest.raises(SessionRequiredError):
        resolver.survey(ANYBODY, [OPENAI], need_session=True)


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
    status = build_status(OPENAI, candidates, caller=ANYBODY, lookup=resolver, keyring=KEYRING)
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
