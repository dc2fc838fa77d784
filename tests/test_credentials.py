"""Secrets that do not show, hints, and what is stored of a key."""

from __future__ import annotations

import copy
import copyreg
import dataclasses
import gc
import json
import pickle
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok.errors import MalformedApiKeyError
from flask_byok.model.credential import (
    Credential,
    CredentialRecord,
    RecordedVerdict,
    Secret,
    Verdict,
    all_alive,
    clean_api_key,
    isoformat,
    make_hint,
    utcnow,
)
from flask_byok.model.owner import Tier
from tests.patience import soon

API_KEY = "sk-proj-CANARY-4711-never-to-be-seen"
PRINTABLE = string.ascii_letters + string.digits + string.punctuation
NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def make_credential() -> Credential:
    """Make a credential that holds the canary."""
    return Credential(
        provider="openai",
        source=Tier.SESSION,
        owner="session:1",
        fields={"api_key": Secret(API_KEY)},
        base_url="https://api.openai.com/v1",
        hint="sk-proj-…seen",
    )


def make_record(**changes: Any) -> CredentialRecord:
    """Make a stored credential."""
    facts: dict[str, Any] = {
        "provider": "openai",
        "owner": "session:1",
        "ciphertext": "sealed",
        "hint": "sk-…1234",
        "version": "v1",
        "created_at": NOW,
        "updated_at": NOW,
    }
    return CredentialRecord(**(facts | changes))


# what is secret stays secret


REFUSED: dict[str, Callable[[Any], Any]] = {
    "json": json.dumps,
    "msgspec": msgspec.json.encode,
    "msgspec builtins": msgspec.to_builtins,
    "pickle": pickle.dumps,
    "pickle 0": lambda value: pickle.dumps(value, protocol=0),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "vars": vars,
    "iterate": list,
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
}


#: What pickle and copy ask an object for.
ASKED: dict[str, Callable[[Any], Any]] = {
    "getstate": lambda value: value.__getstate__(),
    "reduce": object.__reduce__,
    "reduce_ex": lambda value: object.__reduce_ex__(value, 2),
    "copyreg": lambda value: copyreg.__reduce_ex__(value, 2),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize(
    ("way", "make"),
    [
        *((way, make_credential) for way in REFUSED.values()),
        *((way, lambda: Secret(API_KEY)) for way in (REFUSED | ASKED).values()),
    ],
)
def test_no_way_of_copying_copies_the_key(
    way: Callable[[Any], Any], make: Callable[[], Any]
) -> None:
    """What would copy or store a secret is refused, and the refusal does not show it either."""
    with pytest.raises(TypeError) as caught:
        way(make())
    assert "CANARY" not in str(caught.value)


def test_credential_gives_its_fields_when_asked() -> None:
    """The repr names provider, source and hint; the one way to a value is to ask for it by name."""
    credential = make_credential()
    shown = "Credential(provider='openai', source='session', hint='sk-proj-…seen')"
    assert repr(credential) == str(credential) == f"{credential}" == shown
    assert "CANARY" not in f"{Secret(API_KEY)!r} {Secret(API_KEY)} {dir(Secret(API_KEY))}"
    assert credential.api_key == credential.reveal("api_key") == API_KEY
    assert credential.reveal("region") == ""
    assert Secret(API_KEY).reveal() == API_KEY


def test_credential_cannot_change() -> None:
    """Neither a credential nor its fields can be changed, and the mapping it was made from is let go."""
    fields = {"api_key": Secret(API_KEY)}
    credential = dataclasses.replace(make_credential(), fields=fields)
    fields["api_key"] = Secret("another key")
    assert credential.api_key == API_KEY
    with pytest.raises(TypeError):
        credential.fields["api_key"] = Secret("another key")  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        credential.owner = "user:1"  # type: ignore[misc]


def test_secrets_compare_by_value_among_themselves() -> None:
    """Two secrets are equal if their values are; no secret equals a string."""
    assert Secret(API_KEY) == Secret(API_KEY)
    assert Secret(API_KEY) != Secret(API_KEY + "x")
    assert Secret(API_KEY) != API_KEY


def test_live_secrets_end_with_their_objects() -> None:
    """The redactor hears of a secret as long as it lives, and no longer."""
    secret = Secret("redact-me-while-i-live")
    assert "redact-me-while-i-live" in {one.reveal() for one in all_alive()}
    del secret
    gc.collect()
    assert "redact-me-while-i-live" not in {one.reveal() for one in all_alive()}


# cleaning


@given(st.text(max_size=200) | st.text(PRINTABLE + " \t\n\"'\u200b", max_size=60))
def test_what_passes_is_printable_ascii(text: str) -> None:
    """What passes is printable ASCII of a key's length, found in the text, and passes again unchanged."""
    try:
        api_key = clean_api_key(text)
    except MalformedApiKeyError:
        return
    assert 8 <= len(api_key) <= 4096
    assert set(api_key) <= set(PRINTABLE)
    assert api_key in text
    assert clean_api_key(api_key) == api_key


@given(
    api_key=st.text(PRINTABLE, min_size=8, max_size=100).filter(lambda t: t.strip("\"'`") == t),
    before=st.text(" \t\r\n\"'`“\u200b\ufeff\u00a0", max_size=6),
    after=st.text(" \t\r\n\"'`”\u200b\u00ad\u3000", max_size=6),
)
def test_pasted_wrapping_is_stripped(api_key: str, before: str, after: str) -> None:
    """White space, quotes and invisible marks around a key are stripped, and nothing of the key."""
    assert clean_api_key(before + api_key + after) == api_key


@pytest.mark.parametrize(
    ("length", "fits"), [(0, False), (7, False), (8, True), (4096, True), (4097, False)]
)
def test_length_of_a_key(length: int, fits: bool) -> None:
    """A key has 8 to 4,096 characters; what is around it does not count."""
    text = f"\n  '{'k' * length}'  \n"
    if fits:
        assert clean_api_key(text) == "k" * length
    else:
        with pytest.raises(MalformedApiKeyError, match=r"8 to 4,096 characters"):
            clean_api_key(text)


def test_cleaning_takes_one_pass() -> None:
    """A long text of quotes and spaces by turns costs no more than any other of its length."""
    with soon(), pytest.raises(MalformedApiKeyError):
        clean_api_key("\" '" * 300_000)


# hints


@pytest.mark.parametrize(
    ("api_key", "hint"),
    [
        ("sk-proj-abcdefgh1234", "sk-proj-…1234"),
        ("sk-abcdefghijk1234", "sk-…1234"),
        ("abcdefghijklmnop", "…mnop"),
        ("abcdefgh1234", "…1234"),
        ("abcdefg1234", "…"),
        ("sk-proj-1234", "sk-proj-…"),
        ("sk-12345", "sk-…"),
    ],
)
def test_hints(api_key: str, hint: str) -> None:
    """A hint is the longest public prefix and the last four, with no tail where too little stays hidden."""
    assert make_hint(api_key, ("sk-", "sk-proj-")) == hint


@given(st.text(PRINTABLE, min_size=8, max_size=200))
def test_hint_hides_at_least_four(api_key: str) -> None:
    """Besides its public prefix at most four characters show, and at least as many stay hidden."""
    prefixes = ("sk-", "sk-proj-")
    public, _, tail = make_hint(api_key, prefixes).partition("…")
    assert public in ("", *prefixes)
    assert api_key.startswith(public)
    assert api_key.endswith(tail)
    assert len(tail) in (0, 4)
    if tail:
        assert len(api_key) - len(public) - len(tail) >= 4
        assert len(api_key) >= 12


# verdicts and records


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "active"),
        ({"expires_at": NOW + timedelta(seconds=1)}, "active"),
        ({"expires_at": NOW}, "expired"),
        ({"active": False}, "inactive"),
        ({"active": False, "expires_at": NOW}, "inactive"),
        ({"validity": RecordedVerdict(Verdict.VALID_NO_CREDIT, NOW, "v1")}, "active"),
        ({"validity": RecordedVerdict(Verdict.UNREACHABLE, NOW, "v1")}, "active"),
        ({"validity": RecordedVerdict(Verdict.INVALID, NOW, "v1")}, "rejected"),
        ({"validity": RecordedVerdict(Verdict.DISABLED, NOW, "v1")}, "rejected"),
        ({"validity": RecordedVerdict(Verdict.INVALID, NOW, "v0")}, "active"),
        ({"validity": RecordedVerdict(Verdict.INVALID, NOW, "v1"), "expires_at": NOW}, "expired"),
    ],
)
def test_state_of_a_record(changes: dict[str, Any], state: str) -> None:
    """A record is what its switch, its end and a verdict on this very version make it."""
    assert make_record(**changes).state(NOW) == state


def test_times() -> None:
    """Times are UTC in whole milliseconds, written with a Z."""
    assert utcnow().tzinfo is UTC
    assert utcnow().microsecond % 1000 == 0
    east = NOW.astimezone(timezone(timedelta(hours=9)))
    assert isoformat(east) == "2026-05-01T12:00:00.000Z"
    assert isoformat(None) is None


@pytest.mark.parametrize(
    ("left", "soon"),
    [
        (None, False),
        (timedelta(0), False),
        (timedelta(milliseconds=1), True),
        (timedelta(days=7), True),
        (timedelta(days=7, milliseconds=1), False),
        (timedelta(days=365), False),
    ],
)
def test_expires_soon(left: timedelta | None, soon: bool) -> None:
    """A key expires soon for the last seven days that it works, not before and not after."""
    ends = None if left is None else NOW + left
    assert make_record(expires_at=ends).expires_soon(NOW) is soon
