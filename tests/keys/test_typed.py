"""What a person typed, before anything else sees it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok.catalog import Catalog, Field, ProviderSpec
from flask_byok.errors import (
    ByokError,
    EndpointNotAllowedError,
    InvalidFieldError,
    MalformedApiKeyError,
)
from flask_byok.keys.expiry import read_expiry
from flask_byok.keys.typed import (
    NewKey,
    NewSecret,
    Typed,
    check_place,
    check_shown,
    clean_text,
    read_replacement,
    read_typed,
)
from flask_byok.model.credential import CredentialRecord, Secret, utcnow
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
#: Control characters, direction marks, a zero width space, a tag, a line separator, half a character.
INVISIBLE = ["\x9b2J", "\u202e", "\u2066", "\u200b", "\U000e0041", "\u2028", "\ud800", "\0", "\n"]


def take(
    spec: ProviderSpec, base_url: str | None = None, settings: Settings = OPEN, **fields: str
) -> Typed:
    """Take in fields as typed."""
    secrets = {name: Secret(value) for name, value in fields.items()}
    return read_typed(spec, secrets, base_url, settings)


def test_key_is_cleaned_and_goes_to_the_catalog() -> None:
    """A key is cleaned, and goes to the provider's own address."""
    typed = take(OPENAI, api_key=f'  "{API_KEY}"\n')
    assert typed.revealed() == {"api_key": API_KEY}
    assert typed.base_url is None
    assert (typed.endpoint.base_url, typed.endpoint.trust) == (OPENAI.base_url, "catalog")


def test_what_is_secret_is_told_apart() -> None:
    """Of several fields, those that nobody may see are known."""
    typed = take(REGIONAL, api_key=API_KEY, region="eu-central")
    assert (set(typed.fields), set(typed.secrets)) == ({"api_key", "region"}, {"api_key"})


def test_operator_chooses_the_endpoint() -> None:
    """The operator's address for a provider takes the place of the catalog's."""
    settings = Settings(base_urls={"openai": "http://127.0.0.1:9/v1"})
    endpoint = take(OPENAI, settings=settings, api_key=API_KEY).endpoint
    assert (endpoint.base_url, endpoint.trust) == ("http://127.0.0.1:9/v1", "operator")


@pytest.mark.parametrize("beside", [True, False])
def test_address_of_a_custom_provider(beside: bool) -> None:
    """A person's own address counts, whether it is given beside the key or as a field."""
    url = "https://LLM.example:443/v1/"
    secrets = {"api_key": Secret(API_KEY)} | ({} if beside else {"base_url": Secret(url)})
    typed = read_typed(CUSTOM, secrets, url if beside else None, OPEN)
    assert typed.base_url == typed.endpoint.base_url == "https://llm.example/v1"
    assert typed.endpoint.trust == "personal"
    assert typed.revealed() == {"api_key": API_KEY}


def test_address_that_would_not_be_used() -> None:
    """An address for a provider that has its own is refused, not dropped: the key would go elsewhere than said."""
    with pytest.raises(EndpointNotAllowedError, match="leave out the base URL"):
        take(OPENAI, base_url="https://gateway.example/v1", api_key=API_KEY)


def test_custom_is_off_by_default() -> None:
    """Nobody may give an address unless the operator allows it."""
    with pytest.raises(EndpointNotAllowedError, match="is not allowed"):
        take(CUSTOM, base_url="https://llm.example/v1", settings=Settings(), api_key=API_KEY)


@pytest.mark.parametrize(
    "url", ["http://llm.example/v1", "https://127.0.0.1/v1", "https://localhost", "nonsense"]
)
def test_addresses_that_are_refused(url: str) -> None:
    """An address that is not public https is refused with the provider's name, and is not repeated."""
    with pytest.raises(EndpointNotAllowedError) as caught:
        take(CUSTOM, base_url=url, api_key=API_KEY)
    assert caught.value.provider == "custom"
    assert url not in str(caught.value)


def test_private_addresses_where_allowed() -> None:
    """The operator can let people use addresses in the own network."""
    settings = Settings(allow_custom_providers=True, allow_private_endpoints=True)
    typed = take(CUSTOM, base_url="http://127.0.0.1:11434/v1", settings=settings, api_key=API_KEY)
    assert typed.base_url == "http://127.0.0.1:11434/v1"


@pytest.mark.parametrize(
    ("spec", "fields", "error", "message"),
    [
        (OPENAI, {}, MalformedApiKeyError, "API key is missing"),
        (OPENAI, {"api_key": " \n"}, MalformedApiKeyError, "API key is missing"),
        (OPENAI, {"api_key": "short"}, MalformedApiKeyError, "8 to 4,096"),
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
    """Other fields than the key are taken as they are, and optional ones may be left out."""
    typed = take(REGIONAL, api_key=API_KEY, region=" eu west ")
    assert typed.revealed() == {"api_key": API_KEY, "region": "eu west"}


@given(text=st.text(max_size=80))
def test_any_text_is_taken_or_refused(text: str) -> None:
    """Whatever is typed is taken clean or refused with one of our errors."""
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


def test_expiry_as_wanted() -> None:
    """Without a cap a key expires when it was said, in any time zone, or never."""
    wanted = utcnow() + timedelta(days=400)
    assert read_expiry(wanted, OPENAI.id, Settings()) == wanted
    assert read_expiry(None, OPENAI.id, Settings()) is None


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


def replace(
    spec: ProviderSpec, address: str | None = None, **fields: str
) -> tuple[dict[str, str], str | None]:
    """Type fields in the place of a stored key: return the new fields and their address."""
    stored = {"api_key": "stored-12345678", "region": "north", "gone": "no field any more"}
    secret = NewSecret(
        fields={name: Secret(value) for name, value in fields.items()}, base_url=address
    )
    typed = read_replacement(
        spec,
        secret,
        lambda: ({name: Secret(value) for name, value in stored.items()}, "https://own.example/v1"),
        OPEN,
    )
    return typed.revealed(), typed.base_url


def test_blank_fields_keep_what_is_stored() -> None:
    """What is blank or left out stays, of fields that there still are; what is typed takes its place."""
    kept = {"api_key": "stored-12345678", "region": "north", "extra": "extra-12345678"}
    assert replace(REGIONAL, extra="extra-12345678") == (kept, None)
    assert replace(REGIONAL, extra="extra-12345678", region=" north ", api_key=" ") == (
        kept,
        None,
    )
    assert replace(REGIONAL, api_key=API_KEY) == (
        {"api_key": API_KEY, "region": "north"},
        None,
    )
    typed = {"api_key": API_KEY, "region": "south", "extra": "extra-12345678"}
    assert replace(REGIONAL, **typed) == (typed, None)
    assert replace(OPENAI, api_key=API_KEY) == ({"api_key": API_KEY}, None)


def test_a_new_key_goes_to_the_stored_address() -> None:
    """A key without an address goes where the one before it went."""
    assert replace(CUSTOM, api_key=API_KEY) == (
        {"api_key": API_KEY},
        "https://own.example/v1",
    )


def test_another_address_needs_the_key() -> None:
    """The stored key is sent to no other address; with a new key the address changes."""
    there = "https://other.example/v1"
    for fields in ({}, {"api_key": ""}):
        with pytest.raises(MalformedApiKeyError, match="type the key too"):
            replace(CUSTOM, there, **fields)
        with pytest.raises(MalformedApiKeyError, match="type the key too"):
            replace(CUSTOM, None, base_url=there, **fields)
    assert replace(CUSTOM, there, api_key=API_KEY) == ({"api_key": API_KEY}, there)


def test_what_is_no_secret_changes_with_the_key_only() -> None:
    """A stored key is used with no other region, host or whatever else is no secret: it may be sent there."""
    for fields in ({"region": "south"}, {"region": "south", "extra": "extra-12345678"}):
        with pytest.raises(MalformedApiKeyError, match="type the key too"):
            replace(REGIONAL, **fields)
    typed = {"api_key": API_KEY, "region": "south"}
    assert replace(REGIONAL, **typed) == (typed, None)


@pytest.mark.parametrize(
    ("fields", "base_url", "typed"),
    [
        ({}, None, False),
        ({"api_key": " \t"}, None, False),
        ({"api_key": "x"}, None, True),
        ({}, "https://x.example", True),
        ({"base_url": "https://x.example"}, None, True),
    ],
)
def test_what_counts_as_typed(fields: dict[str, str], base_url: str | None, typed: bool) -> None:
    """An empty form replaces nothing."""
    secrets = {name: Secret(value) for name, value in fields.items()}
    assert NewSecret(fields=secrets, base_url=base_url).is_typed is typed


# the texts beside a key


def text_of(text: str | None, **fields: str) -> str | None:
    """Clean a label."""
    secrets = {name: Secret(value) for name, value in fields.items()}
    return clean_text(text, "label", secrets, Catalog())


def test_texts() -> None:
    """A label is stored without the space around it; a blank one is none."""
    assert text_of(" Work: sk-learn, task-list-of-the-whole-year ") is not None
    assert text_of("  é ") == "é"
    assert [text_of(None), text_of(" ")] == [None, None]


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


@pytest.mark.parametrize("name", ["label", "description", "slot", "owner"])
def test_stored_texts_are_compared_with_a_new_key(name: str) -> None:
    """A new key is refused if a text shown beside it holds it; other stored texts stay as they are."""
    fields, now = {"api_key": Secret(PLAIN_KEY)}, utcnow()
    record = CredentialRecord(
        provider="openai",
        owner="team:red",
        ciphertext="",
        hint="",
        version="1",
        created_at=now,
        updated_at=now,
    )
    check_shown(dataclasses.replace(record, **{name: f"team:old-\x9b-{API_KEY}"}), fields)
    with pytest.raises(InvalidFieldError, match=f"'{name}' seems to hold") as caught:
        check_shown(dataclasses.replace(record, **{name: f"team:{PLAIN_KEY}"}), fields)
    assert "CANARY" not in str(caught.value)
