"""Keys on their way between two databases, under two encryption keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from flask_byok.accounts import export_file, open_accounts
from flask_byok.accounts.export_file import SealedFileError, encrypt
from flask_byok.accounts.transfer import (
    Destination,
    Imported,
    Importer,
    MovedKey,
    export_keys,
    from_file,
)
from flask_byok.catalog import Catalog
from flask_byok.errors import StoreError
from flask_byok.keys.ports import AuditEvent
from flask_byok.keys.save import new_record
from flask_byok.model.credential import CredentialRecord, Secret, utcnow
from flask_byok.sealing.keyring import Context, Keyring
from flask_byok.settings import Settings
from tests.worlds import core_on

WORDS = "correct horse battery staple"
ANN, RED = "user:ann", "team:red"
CATALOG, SETTINGS = Catalog(), Settings(keys_per_provider=50)
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
        record = new_record(self.keyring, context, CATALOG.get(provider), fields, own)
        self.accounts.put(replace(record, **facts), AuditEvent("cli", "set"))

    def destination(self, catalog: Catalog = CATALOG, settings: Settings = SETTINGS) -> Destination:
        """Return the accounts as commands see them."""
        return Destination(*core_on(self.accounts, self.keyring, catalog, settings))

    def export(self, owner: str | None = None) -> list[MovedKey]:
        """Return the exported keys; all of them open."""
        keys, unreadable = export_keys(self.destination(), owner)
        assert unreadable == []
        return keys

    def take(
        self,
        keys: Sequence[MovedKey],
        catalog: Catalog = CATALOG,
        settings: Settings = SETTINGS,
        **options: Any,
    ) -> Imported:
        """Import keys."""
        return Importer(self.destination(catalog, settings), **options).run(keys)

    def opened(self) -> dict[tuple[str, str, str], str]:
        """Return all keys in plain, by their places."""
        return {
            (r.owner, r.provider, r.slot): self.keyring.open_record("account", r.owner, r)[0][
                "api_key"
            ].reveal()
            for r in self.accounts.page(None, limit=10_000)[0]
        }


@pytest.fixture
def place(sqlite_url: str) -> Iterator[Place]:
    """Make an empty database."""
    place = Place(sqlite_url, "aa" * 32)
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
    place = Place(f"sqlite:///{tmp_path / 'new.sqlite'}", "bb" * 32)
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
    assert new.keyring.open_record("account", ANN, record)[1] == own
    first, second = new.accounts.find([ANN], ["openai"])
    assert (first.label, first.description, first.active) == ("Ann's", "for work", True)
    assert (second.slot, second.active) == ("2", False)


def test_export_is_logged_first(old: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key is opened whose export cannot be logged."""

    def fail(*_: object) -> None:
        raise StoreError

    opened: list[object] = []
    monkeypatch.setattr(old.accounts.audit, "note", fail)
    monkeypatch.setattr(Destination, "open", lambda self, record: opened.append(record))
    with pytest.raises(StoreError):
        export_keys(old.destination())
    assert opened == []


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "session:1"},
        {"owner": "user:"},
        {"owner": "systemd"},
        {"slot": "a b"},
        {"slot": "x" * 41},
        {"slot": "a\n"},
        {"created_at": "yesterday"},
        {"expires_at": "2030-01-01T00:00:00"},
        {"fields": {"api_key": 5}},
        {"fields": "sk-proj-1234567890"},
        {"active": None},
    ],
)
def test_file_that_holds_something_else(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is no key is refused, and nothing of it is repeated."""
    monkeypatch.setattr(export_file, "WORK_FACTOR", 1)
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
        (
            {"expires_at": datetime.fromisoformat("9999-12-31T23:59:59-14:00")},
            "expires_at is too far away.",
        ),
        (
            {"created_at": datetime.fromisoformat("0001-01-01T00:00:00+14:00")},
            "created_at is too far away.",
        ),
        ({"fields": {"api_key": "sk-admin-CANARY-0001"}}, "admin key"),
        ({"provider": "of-another-app"}, "This provider is not available here"),
        (
            {"provider": "custom", "base_url": "https://llm.example.com/v1"},
            "A base URL of your own is not allowed here.",
        ),
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
    ("slots", "taken"),
    [
        (["10", "b", "2", ""], {"", "2"}),
        (["10", "3", "2"], {"2", "3"}),
        (["2", "b"], {"2", "b"}),
    ],
)
def test_the_keys_that_serve_get_the_room(place: Place, slots: list[str], taken: set[str]) -> None:
    """If there is no room for all, the keys that serve first are stored, wherever they are in the file."""
    keys = [replace(KEY, slot=slot) for slot in slots]
    result = place.take(keys, settings=Settings(keys_per_provider=2))
    assert {slot for _, _, slot in place.opened()} == taken
    assert {slot for _, _, slot in result.without_room} == set(slots) - taken


@pytest.mark.parametrize(
    "idle", [{"active": False}, {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}]
)
def test_the_key_that_served_gets_the_room(place: Place, idle: dict[str, Any]) -> None:
    """A key that is off or has expired takes no room from the one that serves in its stead."""
    keys = [replace(KEY, **idle), replace(KEY, slot="2")]
    place.take(keys, settings=Settings(keys_per_provider=1))
    assert list(place.opened()) == [(ANN, "openai", "2")]


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
