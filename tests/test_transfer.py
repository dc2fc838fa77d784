"""Keys on their way between two databases, under two encryption keys."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from flask_byok.accounts import export_file as passphrase
from flask_byok.accounts import importer, open_accounts, transfer
from flask_byok.accounts.export_file import SealedFileError, SealedReader, SealedWriter
from flask_byok.accounts.importer import Imported, Importer
from flask_byok.accounts.transfer import Exported, MovedKey, export_keys, read_keys
from flask_byok.catalog import Catalog
from flask_byok.errors import StoreError
from flask_byok.keys.session_store import AuditEvent
from flask_byok.model.credential import CredentialRecord, Secret, utcnow
from flask_byok.sealing.keyring import Context, Keyring
from flask_byok.sealing.records import new_record
from flask_byok.settings import Settings
from flask_byok.storage.tables import credentials

WORDS = "correct horse battery staple"
ANN, RED = "user:ann", "team:red"
CATALOG, SETTINGS = Catalog(), Settings(keys_per_provider=50)
NO_ROOM = "There is no room for another one: BYOK_KEYS_PER_PROVIDER is 1."


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

    def export(self, owner: str | None = None) -> tuple[Exported, bytes]:
        """Return what was exported, and the file."""
        file = io.BytesIO()
        result = export_keys(self.accounts, self.keyring, SealedWriter(file, WORDS), owner=owner)
        return result, file.getvalue()

    def take(self, content: bytes, catalog: Catalog = CATALOG, **options: Any) -> Imported:
        """Import a file."""
        settings = options.pop("settings", SETTINGS)
        taking = Importer(self.accounts, self.keyring, catalog, settings, **options)
        return taking.run(moved(content))

    def opened(self) -> dict[tuple[str, str, str], str]:
        """Return all keys in plain, by their places."""
        return {
            (r.owner, r.provider, r.slot): self.keyring.open_record("account", r.owner, r)[0][
                "api_key"
            ].reveal()
            for r in self.accounts.page(None, limit=10_000)[0]
        }

    def actions(self, owner: str) -> list[tuple[str, str]]:
        """Return who did what to an owner's keys, the oldest first."""
        entries = reversed(self.accounts.audit.entries(owner, limit=10_000))
        return [(entry.event.actor, entry.event.action) for entry in entries]


def moved(content: bytes) -> Iterator[MovedKey]:
    """Open a file."""
    return read_keys(SealedReader(io.BytesIO(content), WORDS))


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in no time."""
    monkeypatch.setattr(passphrase, "COST", (2, 8, 1))


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def old(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Make a database with keys of three owners."""
    place = Place(request.getfixturevalue(request.param), "aa" * 32)
    place.save("system", "openai", "sk-proj-systems-own-0001")
    place.save(RED, "groq", "gsk_teams-own-key-0002")
    place.save(ANN, "openai", "sk-proj-anns-own-key-0003", label="Ann's", description="for work")
    place.save(ANN, "openai", "sk-proj-anns-own-key-0004", slot="2", active=False)
    yield place
    assert place.accounts.audit.verify() == []
    place.accounts.engine.dispose()


@pytest.fixture
def new(tmp_path: Any) -> Iterator[Place]:
    """Make an empty database elsewhere, with another encryption key."""
    place = Place(f"sqlite:///{tmp_path / 'new.sqlite'}", "bb" * 32)
    yield place
    assert place.accounts.audit.verify() == []
    place.accounts.engine.dispose()


def test_all_keys_move(old: Place, new: Place) -> None:
    """Every owner's keys come out on the other side, under the other encryption key."""
    result, content = old.export()
    assert (result.keys, result.unreadable) == (4, [])
    assert new.take(content) == Imported(added=4)
    assert new.opened() == old.opened()
    assert len(old.opened()) == 4
    assert {r.ciphertext.split(".")[1] for r in new.accounts.find([ANN])} == {
        new.keyring.key_ids[0]
    }


def test_facts_move(old: Place, new: Place) -> None:
    """What the owner said of a key, its state and times move with it; its use and verdict do not."""
    ends = utcnow() + timedelta(days=3)
    began = utcnow() - timedelta(days=100)
    own = "https://llm.example.com/v1"
    old.save(ANN, "custom", "custom-key-1234567", base_url=own, expires_at=ends, created_at=began)
    settings = Settings(allow_custom_providers=True, keys_per_provider=2)
    assert new.take(old.export()[1], settings=settings).added == 5
    record = new.accounts.find([ANN], ["custom"])[0]
    assert (record.expires_at, record.created_at) == (ends, began)
    assert (record.usage_count, record.validity, record.version) == (0, None, "1")
    assert new.keyring.open_record("account", ANN, record)[1] == own
    first, second = new.accounts.find([ANN], ["openai"])
    assert (first.label, first.description, first.active) == ("Ann's", "for work", True)
    assert (second.slot, second.active) == ("2", False)


def test_one_owners_keys(old: Place, new: Place) -> None:
    """One owner's keys can be exported alone."""
    result, content = old.export(ANN)
    assert result.keys == 2
    new.take(content)
    assert {owner for owner, _, _ in new.opened()} == {ANN}


def test_nothing_to_move(new: Place, old: Place) -> None:
    """An export of nothing is a good file."""
    result, content = new.export()
    assert result.keys == 0
    assert old.take(content) == Imported()


def test_no_key_in_plain(old: Place) -> None:
    """The file shows neither keys nor whose they are."""
    content = old.export()[1]
    for word in (b"sk-proj", b"own-key", b"user:ann", b"openai"):
        assert word not in content


def test_many_keys_in_pages(old: Place, new: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """More keys than are read at a time all move, and each owner's log says so once."""
    monkeypatch.setattr(transfer, "PAGE", 3)
    monkeypatch.setattr(importer, "PAGE", 3)
    for number in range(20):
        old.save(ANN, "groq", f"gsk_anns-key-{number:06}", slot=str(number))
    assert new.take(old.export()[1]).added == 24
    assert new.opened() == old.opened()
    assert old.actions(ANN).count(("cli", "export")) == 1


def test_both_are_logged(old: Place, new: Place) -> None:
    """Each owner's chain says what happened to their keys, with the key's fingerprint; that of system has it whole."""
    new.take(old.export()[1])
    for owner in ("system", ANN, RED):
        assert old.actions(owner)[-1] == ("cli", "export")
    assert new.actions("system") == [("cli", "import"), ("cli", "import")]
    assert new.actions(ANN) == [("cli", "import"), ("cli", "import")]
    entry = new.accounts.audit.entries(RED)[0]
    fields = {"api_key": Secret("gsk_teams-own-key-0002")}
    assert entry.event.fingerprint == new.accounts.audit.fingerprint(fields)
    assert (entry.provider, entry.slot) == ("groq", "")


def test_export_is_logged_first(old: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be logged is not exported."""

    def fail(*_: object) -> None:
        raise StoreError

    monkeypatch.setattr(old.accounts.audit, "note", fail)
    file = io.BytesIO()
    sealed = SealedWriter(file, WORDS)
    with pytest.raises(StoreError):
        export_keys(old.accounts, old.keyring, sealed)
    sealed.close()
    assert list(moved(file.getvalue())) == []


def test_unreadable_keys_are_named(old: Place) -> None:
    """A key that does not open is left out and named, and the others are exported."""
    with old.accounts.engine.begin() as connection:
        statement = update(credentials).where(credentials.c.owner == RED)
        connection.execute(statement.values(ciphertext="byok1.x.f.x"))
    result, content = old.export()
    assert (result.keys, result.unreadable) == (3, [(RED, "groq", "")])
    assert len(list(moved(content))) == 3
    assert [finding.owner for finding in old.accounts.audit.verify()] == [RED]
    old.accounts.clear(RED, ["groq"], AuditEvent("cli", "clear"))


def test_again_adds_what_is_missing(old: Place, new: Place) -> None:
    """An import that ended half way is finished by another; what is there already stays untouched."""
    content = old.export()[1]
    Importer(new.accounts, new.keyring, CATALOG, SETTINGS).run(list(moved(content))[:2])
    before = {r.id: r.version for r in new.accounts.page(None)[0]}
    assert new.take(content) == Imported(added=2, unchanged=2)
    assert new.take(content, replace=True) == Imported(unchanged=4)
    after = {r.id: r.version for r in new.accounts.page(None)[0]}
    assert before.items() <= after.items()


def test_conflicts(old: Place, new: Place) -> None:
    """Where a different key is stored it stays, or is replaced, as asked."""
    new.save(ANN, "openai", "sk-proj-anns-newer-key-9999")
    content = old.export()[1]
    assert new.take(content) == Imported(added=3, kept=1)
    assert new.opened()[ANN, "openai", ""] == "sk-proj-anns-newer-key-9999"
    assert new.take(content, replace=True) == Imported(replaced=1, unchanged=3)
    assert new.opened() == old.opened()


def test_conflict_with_what_does_not_open(old: Place, new: Place) -> None:
    """A stored key that does not open counts as a different one."""
    new.save(ANN, "openai", "sk-proj-anns-own-key-0003", ciphertext="byok1.x.f.x")
    content = old.export(ANN)[1]
    assert new.take(content) == Imported(added=1, kept=1)
    assert new.take(content, replace=True) == Imported(replaced=1, unchanged=1)


def test_a_key_saved_meanwhile_stays(
    old: Place, new: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that its owner saves while the import runs is not overwritten."""
    monkeypatch.setattr(Importer, "_present", lambda self, batch: {})
    new.save(ANN, "openai", "sk-proj-anns-newer-key-9999")
    assert new.take(old.export()[1]) == Imported(added=3, kept=1)
    assert new.opened()[ANN, "openai", ""] == "sk-proj-anns-newer-key-9999"


def test_a_place_that_is_gone_meanwhile(
    old: Place, new: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is to replace one that was deleted meanwhile is left out where others took the room."""
    new.save(RED, "groq", "gsk_teams-newer-key-9999")
    look = Importer._present

    def look_early(self: Importer, batch: list[MovedKey]) -> Any:
        present = look(self, batch)
        new.accounts.clear(RED, ["groq"], AuditEvent("cli", "clear"))
        new.save(RED, "groq", "gsk_teams-other-key-8888", slot="b")
        return present

    monkeypatch.setattr(Importer, "_present", look_early)
    settings = Settings(keys_per_provider=1)
    result = new.take(old.export(RED)[1], replace=True, settings=settings)
    assert result == Imported(
        left_out=Counter({("groq", NO_ROOM): 1}), without_room=[(RED, "groq", "")]
    )
    assert new.opened() == {(RED, "groq", "b"): "gsk_teams-other-key-8888"}


@pytest.mark.parametrize("done", [True, False])
def test_a_database_that_is_slow_once(
    old: Place, new: Place, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """A key whose writing was not acknowledged, though it may be done, is looked up and tried again."""
    create, faults = new.accounts.create, [1, 1]

    def slow(
        record: CredentialRecord, event: AuditEvent, *, at_most: int | None
    ) -> CredentialRecord:
        if faults:
            faults.pop()
            if done:
                create(record, event, at_most=at_most)
            raise StoreError
        return create(record, event, at_most=at_most)

    monkeypatch.setattr(importer, "PAUSE", 0)
    monkeypatch.setattr(new.accounts, "create", slow)
    result = new.take(old.export()[1])
    assert result == (Imported(added=2, unchanged=2) if done else Imported(added=4))
    assert new.opened() == old.opened()


def test_a_database_that_is_away(old: Place, new: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that stays away ends the import."""

    def fail(*_: object, **__: object) -> None:
        raise StoreError

    monkeypatch.setattr(importer, "PAUSE", 0)
    content = old.export()[1]
    monkeypatch.setattr(new.accounts, "create", fail)
    with pytest.raises(StoreError):
        new.take(content)
    assert new.opened() == {}


def test_dry_run(old: Place, new: Place) -> None:
    """Only counting writes nothing, not even to the log."""
    new.save(ANN, "openai", "sk-proj-anns-newer-key-9999")
    before = new.opened()
    result = new.take(old.export()[1], replace=True, dry_run=True)
    assert result == Imported(added=3, replaced=1)
    assert new.opened() == before
    assert new.actions("system") == []


def test_what_the_app_cannot_take(old: Place, new: Place) -> None:
    """Keys of providers that are off there, or of addresses that are not allowed, are counted and left out."""
    old.save(ANN, "custom", "custom-key-1234567", base_url="https://llm.example.com/v1")
    result = new.take(old.export()[1], Catalog().only(["openai", "custom"]))
    assert result.added == 3
    assert result.left_out == {
        ("groq", "This provider is not available here"): 1,
        ("custom", "A base URL of your own is not allowed here."): 1,
    }
    assert result.total == 5


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
def test_file_that_holds_something_else(changes: dict[str, Any]) -> None:
    """What is no key is refused, and nothing of it is repeated."""
    now = utcnow()
    key = MovedKey(ANN, "openai", "", {"api_key": "sk-1"}, None, None, None, True, None, now)
    file = io.BytesIO()
    sealed = SealedWriter(file, WORDS)
    sealed.write(msgspec.json.encode(msgspec.to_builtins(key) | changes))
    sealed.close()
    with pytest.raises(SealedFileError, match="something that is not a key") as caught:
        list(moved(file.getvalue()))
    assert "1234567890" not in str(caught.value)


def file_with(*lines: dict[str, Any]) -> bytes:
    """Seal a file with these keys, of which only what is given is odd."""
    now = utcnow()
    key = MovedKey(ANN, "openai", "", {"api_key": "sk-1-anns"}, None, None, None, True, None, now)
    file = io.BytesIO()
    sealed = SealedWriter(file, WORDS)
    for changes in lines:
        sealed.write(msgspec.json.encode(msgspec.to_builtins(key) | changes) + b"\n")
    sealed.close()
    return file.getvalue()


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Make an empty database."""
    place = Place(request.getfixturevalue(request.param), "aa" * 32)
    yield place
    place.accounts.engine.dispose()


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
        ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at is too far away."),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "created_at is too far away."),
        ({"fields": {"api_key": "sk-admin-CANARY-0001"}}, "admin key"),
    ],
)
def test_keys_that_cannot_be_taken(place: Place, changes: dict[str, Any], reason: str) -> None:
    """What nobody could type here is counted with the reason and left out; the others are taken."""
    content = file_with(changes, {"provider": "groq"})
    result = place.take(content)
    assert (result.added, result.left_out.total(), result.total) == (1, 1, 2)
    ((provider, why),) = result.left_out
    assert provider == "openai"
    assert reason in why
    assert "CANARY" not in why
    assert list(place.opened()) == [(ANN, "groq", "")]


def test_last_moment_that_there_is(place: Place) -> None:
    """A key may expire at the end of time."""
    place.take(file_with({"expires_at": "9999-12-31T23:59:59.999999Z"}))
    assert place.accounts.find([ANN])[0].expires_at is not None


@pytest.mark.parametrize("replace_all", [False, True])
def test_no_more_keys_than_there_may_be(place: Place, replace_all: bool) -> None:
    """BYOK_KEYS_PER_PROVIDER holds for what is imported, as a dry run says too."""
    place.save(ANN, "openai", "sk-1-stored-before")
    content = file_with({}, *({"slot": slot} for slot in "abc"), {"owner": RED})
    settings = Settings(keys_per_provider=2)
    for dry_run in (True, False):
        result = place.take(content, settings=settings, replace=replace_all, dry_run=dry_run)
        assert (result.added, result.replaced, result.kept) == (2, replace_all, not replace_all)
        assert result.left_out == {
            ("openai", "There is no room for another one: BYOK_KEYS_PER_PROVIDER is 2."): 2
        }
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
    """Where there is not room for all, those are taken that serve first, wherever they are in the file."""
    content = file_with(*({"slot": slot} for slot in slots))
    result = place.take(content, settings=Settings(keys_per_provider=2))
    assert {slot for _, _, slot in place.opened()} == taken
    assert {slot for _, _, slot in result.without_room} == set(slots) - taken


@pytest.mark.parametrize("idle", [{"active": False}, {"expires_at": "2020-01-01T00:00:00Z"}])
def test_the_key_that_served_gets_the_room(place: Place, idle: dict[str, Any]) -> None:
    """A key that is off or has expired takes no room from the one that serves in its stead."""
    place.take(file_with(idle, {"slot": "2"}), settings=Settings(keys_per_provider=1))
    assert list(place.opened()) == [(ANN, "openai", "2")]


def test_no_more_keys_by_a_race(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds also where a key is saved while the import runs."""
    place.save(ANN, "openai", "sk-1-saved-just-now", slot="b")
    monkeypatch.setattr(Importer, "_present", lambda self, batch: {})
    left_out = Counter({("openai", NO_ROOM): 1})
    result = place.take(file_with({}), settings=Settings())
    assert result == Imported(left_out=left_out, without_room=[(ANN, "openai", "")])
    assert list(place.opened()) == [(ANN, "openai", "b")]


def test_longest_lifetime(place: Place) -> None:
    """BYOK_MAX_KEY_LIFETIME cuts short what lives longer; a second run finds that unchanged."""
    soon = utcnow() + timedelta(days=3)
    content = file_with(
        {},
        {"provider": "groq", "expires_at": "2100-01-01T00:00:00Z"},
        {"provider": "xai", "expires_at": soon.isoformat()},
    )
    settings = Settings(max_key_lifetime=timedelta(days=30))
    assert place.take(content, settings=settings) == Imported(added=3)
    ends = {record.provider: record.expires_at for record in place.accounts.find([ANN])}
    for provider in ("openai", "groq"):
        end = ends[provider]
        assert end is not None
        assert timedelta(days=29) < end - utcnow() <= timedelta(days=30)
    assert ends["xai"] == soon
    assert place.take(content, settings=settings, replace=True) == Imported(unchanged=3)


def test_what_was_cut_short_and_has_expired(place: Place) -> None:
    """A key that has expired meanwhile is not the same as one that has not, and can be replaced."""
    settings = Settings(max_key_lifetime=timedelta(days=30))
    place.save(ANN, "openai", "sk-1-anns", expires_at=utcnow() - timedelta(days=1))
    assert place.take(file_with({}), settings=settings, replace=True) == Imported(replaced=1)
    assert place.accounts.find([ANN])[0].state(utcnow()) == "active"


def test_a_line_without_end() -> None:
    """A line that is longer than any key is refused before it fills the memory."""
    chunks = iter([b"x" * 65_536] * 100)
    with pytest.raises(SealedFileError, match="something that is not a key"):
        list(read_keys(chunks))  # type: ignore[arg-type]  # what it reads from is its chunks
    assert len(list(chunks)) > 90


def test_keys_do_not_show() -> None:
    """A key on its way does not show in its repr."""
    key = MovedKey(ANN, "openai", "", {"api_key": "sk-1"}, None, None, None, True, None, utcnow())
    assert "sk-1" not in repr(key)
