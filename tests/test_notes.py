"""What is kept beside a key and shown."""

from __future__ import annotations

import dataclasses

import pytest

from flask_byok.catalog import Catalog
from flask_byok.errors import InvalidFieldError
from flask_byok.keys.notes import check_place, check_shown, clean_note
from flask_byok.model.credential import CredentialRecord, Secret, utcnow

API_KEY = "sk-proj-CANARY-4711-abcdefgh"
PLAIN_KEY = "0123456789CANARY"
#: A C1 control, a direction override and an isolate, a zero width space, a tag, a line separator, half a character.
#: Joiners, a variation selector and an accent: allowed in a text, but no way to hide a key in it.
BETWEEN = ["\u200c", "\u200d", "\ufe0f", "\u0301", "\u0903", "\u17b4", "\u2800"]
#: Of all widths; they too leave a key readable.
SPACES = [" ", "\u00a0", "\u2009", "\u3000"]
#: Letters of Hangul that have no shape.
FILLERS = ["\u115f", "\u1160", "\u3164", "\uffa0"]
UNSEEN = [
    *FILLERS,
    "\x9b2J",
    "\u202e",
    "\u2066",
    "\u200b",
    "\U000e0041",
    "\u2028",
    "\ud800",
    "\0",
    "\n",
]
NOW = utcnow()
RECORD = CredentialRecord(
    provider="openai",
    owner="team:red",
    ciphertext="",
    hint="",
    version="1",
    created_at=NOW,
    updated_at=NOW,
)


def note(text: str | None, **fields: str) -> str | None:
    """Take in a label."""
    secrets = {name: Secret(value) for name, value in fields.items()}
    return clean_note(text, "label", secrets, Catalog())


def test_notes() -> None:
    """A label is taken without the space around it; a blank one is none."""
    assert note(" Work: sk-learn, task-list-of-the-whole-year ") is not None
    assert note("  é ") == "é"
    assert [note(None), note(" ")] == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "my sk-learn list of the year",
        "my\u3000sk-learn\u2009list of the year",
        "a task-list of all that is to be done",
        "gsk_ and xai-keys are kept elsewhere",
    ],
)
def test_words_that_begin_as_keys_do(text: str) -> None:
    """Words stay words where spaces part them: only the key itself is looked for across spaces."""
    assert note(text, api_key=PLAIN_KEY) == text


@pytest.mark.parametrize("between", BETWEEN + SPACES + FILLERS)
def test_a_new_key_hidden_in_what_stays(between: str) -> None:
    """What was kept before a key is compared with it as it reads."""
    record = dataclasses.replace(RECORD, label="it is " + between.join(PLAIN_KEY))
    with pytest.raises(InvalidFieldError, match="'label' seems to hold"):
        check_shown(record, {"api_key": Secret(PLAIN_KEY)})


@pytest.mark.parametrize(
    "text",
    ["हिन्दी: मेरी कुंजी", "한국어 열쇠", "👩\u200d💻", "می\u200cخواهم", "❤\ufe0f", "日本語", "שלום"],
)
def test_what_people_write(text: str) -> None:
    """Emoji and all scripts stay as they were typed, with the joiners that they need."""
    assert note(text) == text
    check_place(f"team:{text}", "", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 101, "up to 100 printable"),
        *((f"a{unseen}b", "printable") for unseen in UNSEEN),
        (f"my key {API_KEY}", "seems to hold"),
        ("sk-ant-CANARY-0123456789abcdef", "seems to hold"),
        ("sk-admin-CANARY-0123456789abcdef", "seems to hold"),
        ("it is 0123456789CANARY!", "seems to hold"),
        *(
            ("it is 0123456789" + between + "CANARY", "seems to hold")
            for between in BETWEEN + SPACES
        ),
        *((between.join("0123456789CANARY"), "seems to hold") for between in BETWEEN + SPACES),
        *((between.join(API_KEY), "seems to hold") for between in BETWEEN),
        ("\N{FULLWIDTH DIGIT ZERO}123456789CANARY", "seems to hold"),
    ],
)
def test_notes_that_are_refused(text: str, message: str) -> None:
    """A label with what is not seen, or with a key in it, is refused and not repeated."""
    with pytest.raises(InvalidFieldError, match=message) as caught:
        note(text, api_key=f" {PLAIN_KEY}", base_url="https://x.example")
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("owner", "slot", "message"),
    [
        *((f"team:a{unseen}b", "", "'owner' has printable") for unseen in UNSEEN),
        (f"team:{API_KEY}", "", "'owner' seems to hold"),
        (f"team:{PLAIN_KEY}", "", "'owner' seems to hold"),
        ("user:ann", API_KEY, "'slot' seems to hold"),
        ("system", f"my_{API_KEY}", "'slot' seems to hold"),
        ("system", PLAIN_KEY, "'slot' seems to hold"),
    ],
)
def test_places_that_are_refused(owner: str, slot: str, message: str) -> None:
    """A slot or a team's id is shown too: neither holds a key or what is not seen."""
    with pytest.raises(InvalidFieldError, match=message) as caught:
        check_place(owner, slot, {"api_key": Secret(PLAIN_KEY)}, Catalog())
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("id", [f"x{PLAIN_KEY}", API_KEY, "a\x9bb"])
def test_users_ids_are_the_hosts(id: str) -> None:
    """A user cannot choose the id, and is not refused for it."""
    check_place(f"user:{id}", "second", {"api_key": Secret(PLAIN_KEY)}, Catalog())


@pytest.mark.parametrize("name", ["label", "description", "slot", "owner"])
def test_what_stays_is_compared_with_a_new_key(name: str) -> None:
    """A new key that stands in what its record shows is refused; what stays otherwise is left as it is."""
    fields = {"api_key": Secret(PLAIN_KEY)}
    check_shown(dataclasses.replace(RECORD, **{name: f"team:old-\x9b-{API_KEY}"}), fields)
    with pytest.raises(InvalidFieldError, match=f"'{name}' seems to hold") as caught:
        check_shown(dataclasses.replace(RECORD, **{name: f"team:{PLAIN_KEY}"}), fields)
    assert "CANARY" not in str(caught.value)
