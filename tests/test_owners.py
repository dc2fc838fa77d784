"""Who is asking, and whose a credential is."""

from __future__ import annotations

import dataclasses

import pytest

from flask_byok.model.owner import OPERATOR_TIERS, Caller, SessionRef, Tier, session_owner

SESSION = SessionRef("sid", "4f1c")


@pytest.mark.parametrize(
    ("caller", "authenticated", "identity", "owner"),
    [
        (Caller(), False, "", None),
        (Caller(session=SESSION), False, "", "session:4f1c"),
        (Caller(user="7", session=SESSION), True, "user:7", "user:7"),
        (Caller(user="7"), True, "user:7", "user:7"),
        (Caller(user=""), True, "user:", "user:"),
    ],
)
def test_who_a_caller_is(
    caller: Caller, authenticated: bool, identity: str, owner: str | None
) -> None:
    """The user counts before the session, and nobody is no owner at all."""
    assert caller.authenticated is authenticated
    assert caller.identity == identity
    assert caller.owner == owner


def test_owner_of_a_session_record() -> None:
    """A visitor's and a user's records of one session have different owners."""
    assert session_owner(SESSION, "") == "session:4f1c"
    assert session_owner(SESSION, "user:7") == "session:4f1c/user:7"


def test_operator_tiers() -> None:
    """Three of the six tiers hold the operator's keys."""
    assert {Tier.SYSTEM, Tier.SECRET, Tier.ENV} == OPERATOR_TIERS
    assert [str(tier) for tier in Tier] == ["session", "user", "team", "system", "secret", "env"]


def test_caller_cannot_change() -> None:
    """Nobody becomes somebody else within a call."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Caller(user="7").user = "8"  # type: ignore[misc]
