"""What a person typed, before anything else sees it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok.accounts.changes import NewSecret, check_place, read_replacement
from flask_byok.catalog import Catalog, Field, ProviderSpec
from flask_byok.errors import (
    ByokError,
    EndpointNotAllowedError,
    InvalidFieldError,
    MalformedApiKeyError,
)
from flask_byok.keys.typed import (
    NewKey,
    Typed,
    clean_text,
    read_expiry,
    read_typed,
)
from flask_byok.model.credential import Secret, utcnow
from flask_byok.settings import Settings

OPENAI, CUSTOM = Catalog().get("openai"), Catalog().get("custom")
REGIONAL = ProviderSpec(
    id="regional",
    name="Regional",
    base_url="https://regional.example",
    fields=(Field(), Field("region", "Region", secret=False), Field("extra", required=False)),
)
OPEN = Settings(allow_custom_providers=True)
API_KEY = "sk-proj-CANARY-4711-abcdefgh"
PLAIN_KEY = "0123456789CANARY"
STORED, EXTRA = {"api_key": "stored-12345678", "region": "north"}, {"extra": "extra-12345678"}
#: Control characters, direction marks, a zero width space, a tag, a line separator, half a character.
INVISIBLE = ["\x9b2J", "\u202e", "\u2066", "\u200b", "\U000e0041", "\u2028", "\ud800", "\0", "\n"]


def take(
    spec: ProviderSpec, base_url: str | None = None, settings: Settings = OPEN, **fields: str
) -> Typed:
    """Take in fields as typed."""
    secrets = {name: Secret(value) for name, value in fields.items()}
    return read_typed(spec, secrets, base_url, settings)


def test_custom_is_off_by_default() -> None:
    """An address of one's own is refused unless the operator allows it."""
    with pytest.raises(EndpointNotAllowedError, match="is not allowed"):
        take(CUSTOM, base_url="https://llm.example/v1", settings=Settings(), api_key=API_KEY)


@pytest.mark.parametrize(
    ("spec", "fields", "error", "message"),
    [
        (OPENAI, {"api_key": "CANARY with spaces"}, MalformedApiKeyError, "ASCII"),
        (OPENAI, {"api_key": API_KEY, "CANARY": "x"}, InvalidFieldError, "no such field"),
        (CUSTOM, {"api_key": API_KEY}, InvalidFieldError, "Base URL is missing"),
        (REGIONAL, {"api_key": API_KEY}, InvalidFieldError, "Region is missing"),
        (REGIONAL, {"api_key": API_KEY, "region": "eu\r\nCANARY: 1"}, InvalidFieldError, "ASCII"),
        (REGIONAL, {"api_key": API_KEY, "region": "é"}, InvalidFieldError, "ASCII"),
        (REGIONAL, {"api_key": API_KEY, "region": "x" * 501}, InvalidFieldError, "500"),
    ],
)
def test_what_is_refused(
    spec: ProviderSpec, fields: dict[str, str], error: type[ByokError], message: str
) -> None:
    """Missing, odd and unknown fields are refused by name, and nothing typed is repeated."""
    with pytest.raises(error, match=message) as caught:
        read_typed(spec, {name: Secret(value) for name, value in fields.items()}, None, OPEN)
    assert caught.value.provider == spec.id
    assert "CANARY" not in f"{caught.value!r}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_further_fields() -> None:
    """Other fields than the key are taken as they are, known as no secrets, and left out where they are optional."""
    typed = take(REGIONAL, api_key=API_KEY, region=" eu west ")
    assert typed.revealed() == {"api_key": API_KEY, "region": "eu west"}
    assert set(typed.secrets) == {"api_key"}


@given(text=st.text(max_size=80))
def test_any_text_is_taken_or_refused(text: str) -> None:
    """Any text is taken clean or refused with one of our errors."""
    try:
        typed = take(REGIONAL, api_key=text, region=text)
    except (MalformedApiKeyError, InvalidFieldError):
        return
    assert all(" " <= char <= "~" for value in typed.revealed().values() for char in value)


def test_typed_does_not_show_the_key() -> None:
    """Neither what was typed nor what is wanted shows the key."""
    new = NewKey(fields={"api_key": Secret(API_KEY)})
    assert "CANARY" not in f"{take(OPENAI, api_key=API_KEY)!r}{new!r}"


# expiry


@pytest.mark.parametrize("wanted", [None, timedelta(days=31), timedelta(days=29)])
def test_expiry_under_a_cap(wanted: timedelta | None) -> None:
    """The operator's cap shortens what is longer, holds where nothing is said, and leaves what is shorter."""
    now = utcnow()
    cap = timedelta(days=30)
    moment = None if wanted is None else now + wanted
    expires = read_expiry(moment, OPENAI.id, Settings(max_key_lifetime=cap))
    assert expires is not None
    expected = min(wanted or cap, cap)
    assert timedelta(0) <= expires - (now + expected) < timedelta(seconds=5)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (datetime(2020, 1, 1, tzinfo=UTC), "in the past"),
        (datetime.fromisoformat("9999-12-31T23:59:59-14:00"), "too far away"),
        (datetime(2999, 1, 1), "time zone"),  # noqa: DTZ001  (what is refused)
    ],
)
def test_expiry_that_is_refused(wanted: Any, message: str) -> None:
    """A time in the past or without a zone is refused."""
    with pytest.raises(InvalidFieldError, match=message):
        read_expiry(wanted, OPENAI.id, Settings())


@pytest.mark.parametrize(
    ("spec", "typed", "becomes", "address"),
    [
        (REGIONAL, EXTRA, STORED | EXTRA, None),
        (REGIONAL, EXTRA | {"region": " north ", "api_key": " "}, STORED | EXTRA, None),
        (REGIONAL, {"api_key": API_KEY}, STORED | {"api_key": API_KEY}, None),
        (REGIONAL, EXTRA | {"api_key": API_KEY, "region": "south"}, None, None),
        (OPENAI, {"api_key": API_KEY}, None, None),
        (CUSTOM, {"api_key": API_KEY}, None, "https://own.example/v1"),
    ],
)
def test_blank_fields_keep_what_is_stored(
    spec: ProviderSpec, typed: dict[str, str], becomes: dict[str, str] | None, address: str | None
) -> None:
    """What is typed takes its place; what is blank stays, of fields that there still are, and so does the address."""
    stored = {name: Secret(value) for name, value in (STORED | {"gone": "no field"}).items()}
    secret = NewSecret(fields={name: Secret(value) for name, value in typed.items()})
    found = read_replacement(spec, secret, lambda: (stored, "https://own.example/v1"), OPEN)
    assert (found.revealed(), found.base_url) == (becomes or typed, address)


# the texts beside a key


def text_of(text: str | None, **fields: str) -> str | None:
    """Clean a label."""
    secrets = {name: Secret(value) for name, value in fields.items()}
    return clean_text(text, "label", secrets, Catalog())


@pytest.mark.parametrize(
    "text",
    [
        "my sk-learn list of the year",
        "gsk_ and xai-keys are kept elsewhere",
        *(
            "हिन्दी: मेरी कुंजी",
            "한국어 열쇠",
            "👩\u200d💻",
            "می\u200cخواهم",
            "❤\ufe0f",
            "日本語",
            "שלום",
        ),
    ],
)
def test_texts_that_people_write(text: str) -> None:
    """Words, emoji and all scripts stay as they were typed, with the joiners that they need."""
    assert text_of(text, api_key=PLAIN_KEY) == text
    check_place(f"team:{text}", "", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 101, "up to 100 printable"),
        *((f"a{invisible}b", "printable") for invisible in INVISIBLE),
        (f"my key {API_KEY}", "seems to hold"),
        ("sk-ant-CANARY-0123456789abcdef", "seems to hold"),
        ("sk-admin-CANARY-0123456789abcdef", "seems to hold"),
        ("it is 0123456789CANARY!", "seems to hold"),
    ],
)
def test_texts_that_are_refused(text: str, message: str) -> None:
    """A label with invisible characters or a key in it is refused and not repeated."""
    with pytest.raises(InvalidFieldError, match=message) as caught:
        text_of(text, api_key=f" {PLAIN_KEY}", base_url="https://x.example")
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("owner", "slot", "message"),
    [
        *((f"team:a{invisible}b", "", "'owner' has printable") for invisible in INVISIBLE),
        (f"team:{API_KEY}", "", "'owner' seems to hold"),
        (f"team:{PLAIN_KEY}", "", "'owner' seems to hold"),
        ("user:ann", API_KEY, "'slot' seems to hold"),
        ("system", f"my_{API_KEY}", "'slot' seems to hold"),
        ("system", PLAIN_KEY, "'slot' seems to hold"),
    ],
)
def test_places_that_are_refused(owner: str, slot: str, message: str) -> None:
    """A slot or a team's id is shown too, so neither may hold a key or invisible characters."""
    with pytest.raises(InvalidFieldError, match=message) as caught:
        check_place(owner, slot, {"api_key": Secret(PLAIN_KEY)}, Catalog())
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("id", [f"x{PLAIN_KEY}", API_KEY, "a\x9bb"])
def test_users_ids_are_the_hosts(id: str) -> None:
    """Users do not choose their ids, and no id is refused."""
    check_place(f"user:{id}", "second", {"api_key": Secret(PLAIN_KEY)}, Catalog())
