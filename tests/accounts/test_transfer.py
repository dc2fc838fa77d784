"""Keys on their way between two databases, under two encryption keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flask_byok.accounts import export_file, open_accounts
from flask_byok.accounts.export_file import SealedFileError, encrypt
from flask_byok.accounts.transfer import (
    Copied,
    Destination,
    Imported,
    Importer,
    MovedKey,
    copy_keys,
    export_keys,
    from_file,
)
from flask_byok.catalog import Catalog
from flask_byok.errors import StoreError
from flask_byok.keys.operator import EnvironmentKeys, SecretFileKeys
from flask_byok.keys.ports import AuditEvent
from flask_byok.keys.save import new_record
from flask_byok.model.credential import CredentialRecord, Secret, utcnow
from flask_byok.model.owner import Tier
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

    def actions(self, owner: str) -> list[str]:
        """Return what was done to an owner's keys at the command line, the oldest first."""
        entries = reversed(self.accounts.audit.entries(owner, limit=10_000))
        return [entry.event.action for entry in entries if entry.event.actor == "cli"]


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Make an empty database."""
    place = Place(request.getfixturevalue(request.param), "aa" * 32)
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


# export


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


# import


def test_again_adds_what_is_missing(old: Place, new: Place) -> None:
    """An import that ended half way is finished by another; keys that are there already stay untouched."""
    keys = old.export()
    new.take(keys[:2])
    before = {r.id: r.version for r in new.accounts.page(None)[0]}
    assert new.take(keys) == Imported(added=2, unchanged=2)
    assert new.take(keys, replace=True) == Imported(unchanged=4)
    after = {r.id: r.version for r in new.accounts.page(None)[0]}
    assert before.items() <= after.items()


@pytest.mark.parametrize("ciphertext", [None, "byok1.x.f.x"])
def test_conflicts(old: Place, new: Place, ciphertext: str | None) -> None:
    """A different key, or one that does not open, stays or is replaced, as asked; a dry run only counts."""
    facts = {"ciphertext": ciphertext} if ciphertext else {}
    new.save(ANN, "openai", "sk-proj-anns-newer-key-9999", **facts)
    keys = old.export()
    (before,) = new.accounts.find([ANN])
    assert new.take(keys, replace=True, dry_run=True) == Imported(added=3, replaced=1)
    assert (new.accounts.page(None)[0], new.actions("system")) == ([before], [])
    assert new.take(keys) == Imported(added=3, kept=1)
    assert new.accounts.find([ANN])[0] == before
    assert new.take(keys, replace=True) == Imported(replaced=1, unchanged=3)
    assert new.opened() == old.opened()


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


def test_a_database_that_is_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not answer ends the import; the keys stored by then stay."""
    create, answers = place.accounts.create, [1]

    def fail(*args: Any, **options: Any) -> CredentialRecord:
        if not answers:
            raise StoreError
        answers.pop()
        return create(*args, **options)

    monkeypatch.setattr(place.accounts, "create", fail)
    with pytest.raises(StoreError):
        place.take([KEY, replace(KEY, owner=RED)])
    assert list(place.opened()) == [(ANN, "openai", "")]


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
            "A base URL of your own is not allowed.",
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


# the operator's keys


OPENAI, OTHER, GEMINI = "sk-proj-operators-0001", "sk-proj-operators-0002", "AIza-operators-0003"


def copy(
    place: Place, files: Path, environ: Mapping[str, str] | None = None, **options: Any
) -> list[Copied]:
    """Copy the keys of files, then of these variables (by default one for OpenAI), for the system."""
    environ = {"OPENAI_API_KEY": OPENAI} if environ is None else environ
    settings = Settings(secrets_dir=files)
    sources = [SecretFileKeys(settings, environ), EnvironmentKeys(settings, environ)]
    destination = place.destination(settings=Settings())
    return list(copy_keys(destination, sources, "system", **options))


def stored(place: Place) -> dict[str, str]:
    """Return the system's keys in plain, by provider and slot."""
    return {f"{name}/{slot}": key for (_, name, slot), key in place.opened().items()}


def summary(copied: list[Copied]) -> list[tuple[str, str, bool]]:
    """Return each key's place, outcome, and whether the place can be cleared."""
    return [(Path(each.name).name, each.outcome, each.removable) for each in copied]


def test_new_keys_are_stored(place: Place, tmp_path: Path) -> None:
    """A key is stored for the system and logged as an import, but not by a dry run; a second run keeps it."""
    planned = copy(place, tmp_path, dry_run=True)
    assert (stored(place), place.accounts.audit.entries()) == ({}, [])
    (copied,) = copy(place, tmp_path)
    assert planned == [copied]
    assert summary([copied]) == [("OPENAI_API_KEY", "added", True)]
    assert (copied.tier, copied.hint) == (Tier.ENV, "sk-proj-…0001")
    assert stored(place) == {"openai/": OPENAI}
    (entry,) = place.accounts.audit.entries("system")
    assert (entry.event.actor, entry.event.action) == ("cli", "import")
    fields = {"api_key": Secret(OPENAI)}
    assert entry.event.fingerprint == place.accounts.audit.fingerprint(fields)
    again = copy(place, tmp_path, {"OPENAI_API_KEY": f" {OPENAI}\n"})
    assert summary(again) == [("OPENAI_API_KEY", "kept", True)]


@pytest.mark.parametrize(
    ("api_key", "facts"),
    [
        (OTHER, {}),
        (OPENAI, {"active": False}),
        (OPENAI, {"expires_at": utcnow() - timedelta(days=1)}),
    ],
)
def test_a_key_is_stored_already(
    place: Place, tmp_path: Path, api_key: str, facts: dict[str, Any]
) -> None:
    """A stored key that differs or does not serve stays, unless it is to be replaced."""
    place.save("system", "openai", api_key, **facts)
    assert summary(copy(place, tmp_path)) == [("OPENAI_API_KEY", "kept", False)]
    assert stored(place) == {"openai/": api_key}
    (planned,) = copy(place, tmp_path, replace=True, dry_run=True)
    (copied,) = copy(place, tmp_path, replace=True)
    assert planned == copied
    assert summary([copied]) == [("OPENAI_API_KEY", "added", True)]
    assert stored(place) == {"openai/": OPENAI}
    assert summary(copy(place, tmp_path)) == [("OPENAI_API_KEY", "kept", True)]


def test_every_variable_is_found(place: Place, tmp_path: Path) -> None:
    """Of several variables the first is copied; another one can be removed if it holds the same key."""
    (tmp_path / "openai_api_key").write_text(f"{OPENAI}\n")
    environ = {"OPENAI_API_KEY": OTHER, "GEMINI_API_KEY": GEMINI, "GOOGLE_API_KEY": GEMINI}
    assert summary(copy(place, tmp_path, environ)) == [
        ("openai_api_key", "added", True),
        ("OPENAI_API_KEY", "kept", False),
        ("GEMINI_API_KEY", "added", True),
        ("GOOGLE_API_KEY", "kept", True),
    ]
    assert stored(place) == {"openai/": OPENAI, "google/": GEMINI}


def test_unusable_values(place: Place, tmp_path: Path) -> None:
    """A value that cannot be a key, and an admin key, are named and stop no other; nothing of them is repeated."""
    (tmp_path / "openai_api_key").write_text("sk-admin-far-too-powerful-0001")
    environ = {
        "OPENAI_API_KEY": OPENAI,
        "GROQ_API_KEY": "no key at all",
        "XAI_API_KEY_FILE": str(tmp_path / "nowhere"),
        "GEMINI_API_KEY": "",
        "GOOGLE_API_KEY": GEMINI,
    }
    copied = copy(place, tmp_path, environ)
    assert summary(copied) == [
        ("openai_api_key", "skipped", False),
        ("OPENAI_API_KEY", "added", True),
        ("GOOGLE_API_KEY", "added", True),
        ("GROQ_API_KEY", "skipped", False),
        ("XAI_API_KEY", "skipped", False),
    ]
    assert "admin key" in copied[0].reason
    assert not any("powerful" in repr(each) or "no key" in repr(each) for each in copied)


@pytest.mark.parametrize("there", [True, False])
def test_no_room(
    place: Place, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key without room is not stored, not even if the one that it was to replace is gone meanwhile."""
    store = Destination.store

    def store_late(self: Destination, key: MovedKey, *, replace: bool) -> None:
        place.accounts.clear("system", ["openai"], AuditEvent("cli", "clear"))
        monkeypatch.undo()
        place.save("system", "openai", GEMINI, slot="b")
        store(self, key, replace=replace)

    if there:
        place.save("system", "openai", OTHER)
        monkeypatch.setattr(Destination, "store", store_late)
    else:
        place.save("system", "openai", GEMINI, slot="b")
    copied = copy(place, tmp_path, replace=True)
    assert summary(copied) == [("OPENAI_API_KEY", "skipped", False)]
    assert stored(place) == {"openai/b": GEMINI}
