"""Keys on their way between two databases, in files that are encrypted with a passphrase."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from flask_byok.accounts import export_file
from flask_byok.accounts.export_file import SealedFileError, decrypt, encrypt
from flask_byok.accounts.store import AuditEvent
from flask_byok.accounts.transfer import (
    Imported,
    Importer,
    KeyTransfer,
    MovedKey,
    export_keys,
    from_file,
)
from flask_byok.accounts.wing import open_accounts
from flask_byok.catalog import Catalog
from flask_byok.catalog.endpoints import MOST_ENDPOINTS
from flask_byok.errors import StoreError
from flask_byok.http import Endpoint
from flask_byok.keys.save import new_record
from flask_byok.keys.typed import NewKey, Typed
from flask_byok.model.credential import CredentialRecord, Secret, utcnow
from flask_byok.sealing.keyring import Context, Keyring
from flask_byok.settings import Settings
from tests.app import OTHER_ENCRYPTION_KEY
from tests.worlds import core_on

from .account_kinds import open_key

WORDS = "correct horse battery staple"
ANN, RED = "user:ann", "team:red"
CATALOG, SETTINGS = Catalog(), Settings(keys_per_provider=50)
FIRST = datetime.fromisoformat("0001-01-01T00:00:00+14:00")
LAST = datetime.fromisoformat("9999-12-31T23:59:59-14:00")
NO_ROOM = "There is no room for another one: BYOK_KEYS_PER_PROVIDER is {}."
KEY = MovedKey(owner=ANN, provider="openai", fields={"api_key": "sk-1-anns"}, created_at=utcnow())


class Place:
    """A database with an encryption key of its own."""

    def __init__(self, url: str, encryption_key: str) -> None:
        self.keyring = Keyring(encryption_key)
        self.accounts = open_accounts(url, self.keyring)

    def save(self, owner: str, provider: str, api_key: str, slot: str = "", **facts: Any) -> None:
        """Store a key."""
        context = Context("account", owner, provider, slot)
        own = facts.pop("base_url", None)
        fields = {"api_key": Secret(api_key)}
        typed = Typed(fields, fields, own, Endpoint(own or "", "catalog"))
        spec, new = CATALOG.get(provider), NewKey(fields=fields)
        record = new_record(self.keyring, context, spec, typed, new)
        self.accounts.put(replace(record, **facts), AuditEvent("cli", "set"))

    def destination(self, settings: Settings = SETTINGS) -> KeyTransfer:
        """Return the accounts as commands see them."""
        return KeyTransfer(*core_on(self.accounts, self.keyring, CATALOG, settings))

    def export(self, owner: str | None = None) -> list[MovedKey]:
        """Return the exported keys; all of them open."""
        keys, unreadable = export_keys(self.destination(), owner)
        assert unreadable == []
        return keys

    def take(
        self, keys: Sequence[MovedKey], settings: Settings = SETTINGS, **options: Any
    ) -> Imported:
        """Import keys."""
        return Importer(self.destination(settings), **options).run(keys)

    def opened(self) -> dict[tuple[str, str, str], str]:
        """Return all keys in plain, by their places."""
        return {
            (r.owner, r.provider, r.slot): open_key(r, self.keyring)
            for r in self.accounts.page(None, limit=10_000)[0]
        }


@pytest.fixture
def place(sqlite_url: str) -> Iterator[Place]:
    """Make an empty database."""
    place = Place(sqlite_url, "961b6dd3ede3cb8ecbaacbd68de040cd78eb2ed5889130cceb4c49268ea4d506")
    yield place
    assert place.accounts.audit.verify() == []
    place.accounts.engine.dispose()


@pytest.fixture
def old(place: Place) -> Place:
    """Make a database with keys of three owners."""
    place.save("system", "openai", "sk-proj-systems-own-0001")
    place.save(RED, "groq", "gsk_teams-own-key-0002")
    place.save(ANN, "openai", "sk-proj-anns-own-key-0003", label="Ann's", description="for work")
    place.save(ANN, "openai", "sk-proj-anns-own-key-0004", slot="2", active=False)
    return place


@pytest.fixture
def new(tmp_path: Any) -> Iterator[Place]:
    """Make an empty database elsewhere, with another encryption key."""
    place = Place(
        f"sqlite:///{tmp_path / 'new.sqlite'}",
        OTHER_ENCRYPTION_KEY,
    )
    yield place
    assert place.accounts.audit.verify() == []
    place.accounts.engine.dispose()


def test_facts_move(old: Place, new: Place) -> None:
    """The owner's words about a key, its state and its times move with it; its use and verdict do not."""
    ends = utcnow() + timedelta(days=3)
    began = utcnow() - timedelta(days=100)
    own = "https://llm.example.com/v1"
    old.save(ANN, "custom", "custom-key-1234567", base_url=own, expires_at=ends, created_at=began)
    settings = Settings(allow_custom_providers=True, keys_per_provider=2)
    assert new.take(old.export(), settings=settings).added == 5
    record = new.accounts.find([ANN], ["custom"])[0]
    assert (record.expires_at, record.created_at) == (ends, began)
    assert (record.usage_count, record.validity, record.version) == (0, None, "1")
    assert new.keyring.open_record(ANN, record)[1] == own
    first, second = new.accounts.find([ANN], ["openai"])
    assert (first.label, first.description, first.active) == ("Ann's", "for work", True)
    assert (second.slot, second.active) == ("2", False)


def endpoint(owner: str, name: str) -> MovedKey:
    """Return somebody's named endpoint without a key."""
    fields = {"name": name, "model": "small"}
    id = f"custom/{name.lower().replace(' ', '-')}"
    return replace(KEY, owner=owner, provider=id, fields=fields, base_url="https://llm.example/v1")


def test_named_endpoints_move(place: Place, new: Place) -> None:
    """A named endpoint arrives with its name, model and address; more than an owner may have are left out."""
    settings, bob = Settings(allow_custom_providers=True), "user:bob"
    full = [endpoint(bob, f"Box {number}") for number in range(MOST_ENDPOINTS)]
    assert place.take([endpoint(ANN, "My vLLM"), *full], settings).added == MOST_ENDPOINTS + 1
    keys = place.export()
    taken = new.take([*keys, endpoint(bob, "One more"), endpoint(ANN, "Another")], settings)
    assert (taken.added, taken.left_out.total()) == (MOST_ENDPOINTS + 2, 1)
    assert "There are 20 named endpoints" in next(iter(taken.left_out))[1]
    assert new.take(keys, settings).unchanged == len(keys)
    (moved,) = (key for key in new.export(ANN) if key.provider == "custom/my-vllm")
    assert moved.fields == {"name": "My vLLM", "model": "small"}
    assert moved.base_url == "https://llm.example/v1"


def test_export_is_logged_first(old: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key is opened whose export cannot be logged."""

    def fail(*_: object) -> None:
        raise StoreError

    opened: list[object] = []
    monkeypatch.setattr(old.accounts.audit, "note", fail)
    monkeypatch.setattr(KeyTransfer, "open", lambda self, record: opened.append(record))
    with pytest.raises(StoreError):
        export_keys(old.destination())
    assert opened == []


@pytest.mark.usefixtures("_cheap")
def test_file_that_holds_something_else() -> None:
    """A line that is no key is refused, and nothing of it is repeated."""
    for changes in (
        *({"owner": "session:1"}, {"owner": "user:"}, {"owner": "systemd"}),
        *({"slot": "a b"}, {"slot": "x" * 41}, {"slot": "a\n"}, {"active": None}),
        *({"created_at": "yesterday"}, {"expires_at": "2030-01-01T00:00:00"}),
        *({"fields": {"api_key": 5}}, {"fields": "sk-proj-1234567890"}),
    ):
        content = encrypt(msgspec.json.encode(msgspec.to_builtins(KEY) | changes), WORDS)
        with pytest.raises(SealedFileError, match="something that is not a key") as caught:
            from_file(content, WORDS)
        assert "1234567890" not in str(caught.value)


@pytest.mark.parametrize("slot", ["", "b"])
def test_a_key_saved_meanwhile_stays(
    place: Place, slot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that its owner saves during the import stays, and takes the room that there was."""
    find, missed = place.accounts.find, [1]

    def look_early(*args: Any) -> list[CredentialRecord]:
        return [] if missed and missed.pop() else find(*args)

    place.save(ANN, "openai", "sk-1-saved-just-now", slot=slot)
    monkeypatch.setattr(place.accounts, "find", look_early)
    result = place.take([KEY], settings=Settings(keys_per_provider=1))
    assert (result.added, result.kept, len(result.without_room)) == (0, not slot, bool(slot))
    assert place.opened() == {(ANN, "openai", slot): "sk-1-saved-just-now"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label": "a\0b"}, "The field 'label' has up to 100 printable characters."),
        ({"description": "x" * 501}, "The field 'description' has up to 500"),
        ({"label": "it is sk-1-anns"}, "The field 'label' seems to hold an API key"),
        ({"owner": "user:a\0b"}, "The owner's id has characters that cannot be printed."),
        ({"owner": "user:a\n"}, "The owner's id has characters that cannot be printed."),
        ({"slot": "is_sk-1-anns"}, "The field 'slot' seems to hold an API key"),
        ({"slot": "sk-proj-CANARY-0123456789"}, "The field 'slot' seems to hold an API key"),
        ({"owner": "team:sk-proj-CANARY-0123456789"}, "The field 'owner' seems to hold"),
        ({"owner": "team:a\u202eb"}, "The field 'owner' has printable characters only."),
        ({"expires_at": LAST}, "expires_at is too far away."),
        ({"created_at": FIRST}, "created_at is too far away."),
        ({"fields": {"api_key": "sk-admin-CANARY-0001"}}, "admin key"),
        ({"provider": "of-another-app"}, "This provider is not available here"),
        ({"provider": "custom", "base_url": "https://x.example/v1"}, "is not allowed."),
    ],
)
def test_keys_that_cannot_be_taken(place: Place, changes: dict[str, Any], reason: str) -> None:
    """A key that could not be typed here is counted with the reason and left out; the others are taken."""
    result = place.take([replace(KEY, **changes), replace(KEY, provider="groq")])
    assert (result.added, result.left_out.total(), result.total) == (1, 1, 2)
    ((provider, why),) = result.left_out
    assert provider == changes.get("provider", "openai")
    assert reason in why
    assert "CANARY" not in why
    assert list(place.opened()) == [(ANN, "groq", "")]


@pytest.mark.parametrize("replace_all", [False, True])
def test_no_more_keys_than_there_may_be(place: Place, replace_all: bool) -> None:
    """BYOK_KEYS_PER_PROVIDER holds for imported keys, and a dry run says so."""
    place.save(ANN, "openai", "sk-1-stored-before")
    keys = [*(replace(KEY, slot=slot) for slot in ("", *"abc")), replace(KEY, owner=RED)]
    settings = Settings(keys_per_provider=2)
    for dry_run in (True, False):
        result = place.take(keys, settings=settings, replace=replace_all, dry_run=dry_run)
        assert (result.added, result.replaced, result.kept) == (2, replace_all, not replace_all)
        assert result.left_out == {("openai", NO_ROOM.format(2)): 2}
    assert {slot for owner, _, slot in place.opened() if owner == ANN} == {"", "a"}


@pytest.mark.parametrize(
    ("most", "there", "taken"),
    [
        (2, [{"slot": slot} for slot in ("10", "b", "2", "")], {"", "2"}),
        (2, [{"slot": slot} for slot in ("10", "3", "2")], {"2", "3"}),
        (2, [{"slot": slot} for slot in ("2", "b")], {"2", "b"}),
        (1, [{"active": False}, {"slot": "2"}], {"2"}),
        (1, [{"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, {"slot": "2"}], {"2"}),
    ],
)
def test_the_keys_that_serve_get_the_room(
    place: Place, most: int, there: list[dict[str, Any]], taken: set[str]
) -> None:
    """If there is no room for all, the keys that serve first are stored, wherever they are in the file."""
    keys = [replace(KEY, **facts) for facts in there]
    result = place.take(keys, settings=Settings(keys_per_provider=most))
    assert {slot for _, _, slot in place.opened()} == taken
    assert {slot for _, _, slot in result.without_room} == {key.slot for key in keys} - taken


def test_longest_lifetime(place: Place) -> None:
    """BYOK_MAX_KEY_LIFETIME cuts short what lives longer; a second run finds that unchanged."""
    soon = utcnow() + timedelta(days=3)
    keys = [
        KEY,
        replace(KEY, provider="groq", expires_at=datetime(2100, 1, 1, tzinfo=UTC)),
        replace(KEY, provider="xai", expires_at=soon),
    ]
    settings = Settings(max_key_lifetime=timedelta(days=30))
    assert place.take(keys, settings=settings) == Imported(added=3)
    ends = {record.provider: record.expires_at for record in place.accounts.find([ANN])}
    for provider in ("openai", "groq"):
        end = ends[provider]
        assert end is not None
        assert timedelta(days=29) < end - utcnow() <= timedelta(days=30)
    assert ends["xai"] == soon
    assert place.take(keys, settings=settings, replace=True) == Imported(unchanged=3)


def test_what_was_cut_short_and_has_expired(place: Place) -> None:
    """A key that has expired meanwhile is not the same as one that has not, and can be replaced."""
    settings = Settings(max_key_lifetime=timedelta(days=30))
    place.save(ANN, "openai", "sk-1-anns", expires_at=utcnow() - timedelta(days=1))
    assert place.take([KEY], settings=settings, replace=True) == Imported(replaced=1)
    assert place.accounts.find([ANN])[0].state(utcnow()) == "active"


# the files, in the format of age


CHUNK, SEALED = 65_536, 65_552
#: Made by rage 0.12.1 (https://github.com/str4d/rage), another implementation of the format, with these values.
FROM_RAGE = base64.b64decode(
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCA3Z2lLZUo0b01raHVUZVdQWkN1Ry9BIDEyCndpcXdYZENpMzNzT1FNY3RG"
    "U014MVZlRnVJc1JPbHVOd1VmSnVuTHNydTAKLS0tIGVCMnRBbjlyTGp2Wis2RHFIbHp3OUtzNXVPbWIvL0RmZW1uSjB5Q0wzdXcK"
    "FzJny64l9kxpnUkox22f69DsSYjsk+gEkrPMBa7jIRxuH47v"
)
FILE_KEY, SALT = "bcc4c70adf819240ddb72d0f78608250", "ee088a789e2832486e4de58f642b86fc"
NONCE = "173267cbae25f64c699d4928c76d9feb"


@pytest.fixture
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in no time."""
    monkeypatch.setattr(export_file, "WORK_FACTOR", 1)


def test_format_is_that_of_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another implementation's file opens, and is what we write with the same random values."""
    assert decrypt(FROM_RAGE, WORDS) == b"sk-\n"
    drawn = iter(map(bytes.fromhex, (FILE_KEY, SALT, NONCE)))
    monkeypatch.setattr(os, "urandom", lambda size: next(drawn))
    monkeypatch.setattr(export_file, "WORK_FACTOR", 12)
    assert encrypt(b"sk-\n", WORDS) == FROM_RAGE


@pytest.mark.usefixtures("_cheap")
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 200_001])
def test_what_was_encrypted_opens(size: int) -> None:
    """A text of any length comes back, and each file of it differs."""
    plaintext = bytes(number % 251 for number in range(size))
    content = encrypt(plaintext, WORDS)
    assert decrypt(content, WORDS) == plaintext
    assert encrypt(plaintext, WORDS) != content


def test_cost_is_as_owasp_asks() -> None:
    """A guess costs what OWASP's Password Storage Cheat Sheet asks for at least (N = 2**17)."""
    content = encrypt(b"x", WORDS)
    assert content.split(b"\n")[1].endswith(b" 17")
    assert decrypt(content, WORDS) == b"x"


@pytest.mark.usefixtures("_cheap")
def test_passphrases() -> None:
    """A wrong passphrase is named as such; an accent may be composed or apart."""
    with pytest.raises(SealedFileError, match="passphrase is wrong"):
        decrypt(encrypt(b"text", WORDS), WORDS + " ")
    content = encrypt(b"text", "caf\u00e9 am see und so")
    assert decrypt(content, "cafe\u0301 am see und so") == b"text"


@pytest.mark.usefixtures("_cheap")
def test_damaged_files() -> None:
    """A file that was cut off, altered, added to, or whose chunks moved does not open."""
    content = encrypt(bytes(2 * CHUNK + 100), WORDS)
    # The chunks begin after the header and a nonce.
    start = content.index(b"\n", content.index(b"\n---") + 1) + 1 + 16
    factor = content.index(b" 1\n")
    chunks = [content[at : at + SEALED] for at in range(start, len(content), SEALED)]
    ends = [*range(0, start, 7), start, start + SEALED, start + 2 * SEALED, len(content) - 1]
    orders = [(1, 0, 2), (0, 2, 1), (0, 0, 1, 2), (0, 2), (1, 2), (0, 1, 1, 2)]
    damaged = [content[:end] for end in ends]
    damaged += [content[:start] + b"".join(chunks[n] for n in order) for order in orders]
    # Other work factors would cost time.
    for at in [*range(factor), *range(factor + 2, start), *range(start, len(content), 4_999)]:
        changed = bytearray(content)
        changed[at] ^= 1
        damaged.append(bytes(changed))
    for each in [*damaged, content + b"\0"]:
        with pytest.raises(SealedFileError):
            decrypt(each, WORDS)


@pytest.mark.parametrize("factor", [b"19", b"99"])
def test_hostile_work_factor(factor: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that asks for much memory is refused before any is used."""
    monkeypatch.delattr(export_file, "Scrypt")
    with pytest.raises(SealedFileError, match="too much memory"):
        decrypt(FROM_RAGE.replace(b" 12\n", b" %b\n" % factor), WORDS)


@pytest.mark.usefixtures("_cheap")
def test_large_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file over the limit is neither written nor opened."""
    content = encrypt(bytes(1_000), WORDS)
    monkeypatch.setattr(export_file, "LARGEST_FILE", 1_000)
    with pytest.raises(SealedFileError, match="one file for each --owner"):
        encrypt(bytes(1_000), WORDS)
    with pytest.raises(SealedFileError, match="too much memory"):
        decrypt(content, WORDS)


def test_other_files() -> None:
    """A file of another kind is named as such, and nothing of it is repeated."""
    for content in (
        *(b"", b"sk-proj-1234567890", b"\xff" * 1000, base64.b64encode(FROM_RAGE)),
        b"age-encryption.org/v1\n-> X25519 " + b"A" * 43 + b"\n" + b"A" * 43 + b"\n---",
        *(FROM_RAGE.replace(b" 12\n", other) for other in (b" 012\n", b" 0\n")),
        FROM_RAGE.replace(b"\n", b"\r\n"),
    ):
        with pytest.raises(SealedFileError, match="not a file that 'flask byok export'") as caught:
            decrypt(content, WORDS)
        assert "1234567890" not in str(caught.value)
