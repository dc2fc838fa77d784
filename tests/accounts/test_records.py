"""The verbs on records, without HTTP, on each database."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import literal_column, update

from flask_byok.accounts.changes import Changes, NewSecret
from flask_byok.accounts.records import AccountRecords
from flask_byok.catalog import Field, ProviderSpec
from flask_byok.errors import InvalidFieldError, VersionConflictError
from flask_byok.keys.typed import NewKey
from flask_byok.model.credential import CredentialRecord, Secret, Validation, utcnow
from flask_byok.model.owner import Caller
from flask_byok.storage.tables import credentials
from flask_byok.testing import FakeProviders
from tests.worlds import World, registered

CAP, MILLISECOND = timedelta(days=30), timedelta(milliseconds=1)
ANN, ROOT = Caller(user="ann"), Caller(user="root", admin=True)


@pytest.fixture
def world(tmp_path: Path, fake: FakeProviders, database_url: str) -> Iterator[World]:
    """Make a world on each kind of database."""
    world = World(tmp_path, fake, database_url=database_url)
    yield world
    world.documents.engine.dispose()


def create(records: AccountRecords, world: World, owner: str, **options: Any) -> CredentialRecord:
    """Store a good key for an owner."""
    fields = {"api_key": Secret(world.fake.api_key("openai", owner=owner))}
    return records.create(owner, "openai", NewKey(fields=fields, validate="off"), **options)[0]


def test_an_owner_of_the_same_beginning_is_another(world: World) -> None:
    """A user whose id begins as another's, or is called as a tier, has records of their own."""
    own = world.service.own_records
    create(own(ANN), world, "user:ann")
    for other in ("an", "anna", "ann%", "user", "user:ann", "system", "team", "", "ANN", "ann "):
        records = own(Caller(user=other))
        assert records.page()["keys"] == []
        assert records.stats()["total"] == 0


def test_a_verdict_about_another_key_is_not_kept(world: World) -> None:
    """A check that ends after the key was replaced leaves the new one without a verdict."""
    records = world.service.own_records(ANN)
    record = create(records, world, "user:ann")
    fields = {"api_key": Secret(world.fake.api_key("openai", owner="new"))}
    records.change(record, {}, NewSecret(fields=fields, validate="off"))
    assert records.validate(record).valid is True
    assert records.get(record.id).current_validity() is None
    assert records.validate(records.get(record.id)).valid is True
    assert records.get(record.id).current_validity() is not None


@pytest.mark.parametrize("name", ["label", "description", "slot", "owner"])
def test_a_new_key_is_not_in_what_stays(world: World, name: str) -> None:
    """A key that stands in a note, a slot or a team's id that stays does not become that record's key."""
    api_key = "own-gateway-PLAINKEY0123456789"
    records, fields = world.service.shared_records(ROOT), {"api_key": Secret(api_key)}
    owner = f"team:{api_key}" if name == "owner" else "team:red"
    record = create(records, world, owner, slot=api_key if name == "slot" else None)
    if name in ("label", "description"):
        record, _ = records.change(record, {name: api_key})  # type: ignore[misc]
    new = NewSecret(fields=fields, validate="off")
    with pytest.raises(InvalidFieldError, match=name):
        records.change(record, {}, new)
    assert records.get(record.id) == record
    if name in ("label", "description"):
        changed, _ = records.change(record, {name: "other"}, new)  # type: ignore[misc]
        assert getattr(changed, name) == "other"


@pytest.fixture
def capped(world: World) -> World:
    """Keys may be kept for thirty days."""
    fields = Field(), Field("region", "Region", secret=False)
    spec = ProviderSpec(id="two", name="Two", base_url="https://two.example", fields=fields)
    later = dataclasses.replace(world, catalog=registered(spec))
    return later.with_config(BYOK_MAX_KEY_LIFETIME=CAP)


def made_older(world: World, record: CredentialRecord, age: timedelta) -> None:
    """Make a record one that was saved some time ago."""
    names, by = ("created_at", "set_at"), age // MILLISECOND
    columns = {name: literal_column(f"{name} - {by}") for name in names}
    with world.documents.engine.begin() as connection:
        connection.execute(update(credentials).where(credentials.c.id == record.id).values(columns))


@pytest.mark.parametrize("wanted", [None, timedelta(days=300)])
def test_a_key_that_stays_lasts_no_longer(capped: World, wanted: timedelta | None) -> None:
    """However often its date is changed, a key ends as late after it was saved as keys may."""
    records = capped.service.own_records(ANN)
    record = create(records, capped, "user:ann")
    made_older(capped, record, timedelta(days=20))
    ends = None if wanted is None else utcnow() + wanted
    for _ in range(2):
        record, _ = records.change(record, {"expires_at": ends})
        assert record.expires_at == record.created_at + CAP
    soon = utcnow() + timedelta(days=3)
    assert records.change(record, {"expires_at": soon})[0].expires_at == soon
    assert records.change(record, {"expires_at": None})[0].expires_at == record.created_at + CAP


def test_a_key_that_has_had_its_time(capped: World) -> None:
    """A key as old as keys may be is given no more time, but keeps its notes; a new key in its place gets all."""
    records = capped.service.own_records(ANN)
    record = create(records, capped, "user:ann")
    made_older(capped, record, CAP)
    for wanted in (None, utcnow() + timedelta(minutes=1)):
        with pytest.raises(InvalidFieldError, match="Save a new one"):
            records.change(record, {"expires_at": wanted})
    assert records.get(record.id).version == record.version
    same: Changes = {"label": "old", "expires_at": record.expires_at}
    assert records.change(record, same)[0].label == "old"
    secret = NewSecret(fields={"api_key": Secret("k-12345678")}, validate="off")
    changed, _ = records.change(record, {"expires_at": None}, secret)
    assert changed.expires_at is not None
    assert changed.expires_at > utcnow() + CAP - timedelta(minutes=1)


def test_what_is_beside_the_secret_makes_no_new_key(capped: World) -> None:
    """A field that is no secret may be typed again, and its key is as old as it was."""
    records = capped.service.own_records(ANN)
    typed = {"api_key": Secret("k-12345678"), "region": Secret("north")}
    record, _ = records.create("user:ann", "two", NewKey(fields=typed, validate="off"))
    made_older(capped, record, timedelta(days=20))
    saved = records.get(record.id).saved_at
    again = NewSecret(fields={"region": Secret("north")}, validate="off")
    moved, _ = records.change(record, {}, again)
    assert moved.version == "2"
    assert (moved.saved_at, moved.expires_at) == (saved, record.expires_at)
    with_date, _ = records.change(record, {"expires_at": None}, again)
    assert with_date.expires_at == saved + CAP


# read, and written when it has become another


@pytest.mark.parametrize("name", ["label", "description"])
def test_a_note_and_a_key_at_once(world: World, name: str) -> None:
    """Of a note and a key that is in it the second is refused, though both saw the record as it was before."""
    api_key = "own-gateway-PLAINKEY0123456789"
    secret = NewSecret(fields={"api_key": Secret(api_key)}, validate="off")
    note: Any = {name: f"it is {api_key}"}
    records = world.service.own_records(ANN)
    for first, second in (((note, None), ({}, secret)), (({}, secret), (note, None))):
        before = create(records, world, "user:ann")
        changed, _ = records.change(before, *first)
        with pytest.raises(InvalidFieldError, match=name):
            records.change(before, *second)
        assert records.get(before.id) == changed
        other: Any = {name: "other"}
        assert getattr(records.change(before, other)[0], name) == "other"
        records.delete(before)


def test_a_note_with_the_key_that_goes(world: World) -> None:
    """The stored key gets into no note either by the change that puts another in its place."""
    records = world.service.own_records(ANN)
    fields = {"api_key": Secret("k-abcdefgh")}
    record, _ = records.create("user:ann", "openai", NewKey(fields=fields, validate="off"))
    secret = NewSecret(fields={"api_key": Secret("k-12345678")}, validate="off")
    with pytest.raises(InvalidFieldError, match="label"):
        records.change(record, {"label": "was k-abcdefgh"}, secret)
    assert records.get(record.id) == record


def test_a_date_and_a_key_at_once(world: World) -> None:
    """A date that is set while the key is replaced stays."""
    records = world.service.own_records(ANN)
    record = create(records, world, "user:ann")
    dated, _ = records.change(record, {"expires_at": utcnow() + timedelta(days=3)})
    secret = NewSecret(fields={"api_key": Secret("k-12345678")}, validate="off")
    assert records.change(record, {}, secret)[0].expires_at == dated.expires_at


def custom(world: World, base_url: str) -> tuple[AccountRecords, CredentialRecord]:
    """Store a key with an address, part of which a change may keep."""
    records = world.with_config(BYOK_ALLOW_CUSTOM_PROVIDERS=True).service.own_records(ANN)
    fields = {"api_key": Secret("k-12345678"), "base_url": Secret(base_url)}
    return records, records.create("user:ann", "custom", NewKey(fields=fields, validate="off"))[0]


def meanwhile(
    monkeypatch: pytest.MonkeyPatch,
    records: AccountRecords,
    changes: Iterator[Callable[[], object]],
) -> None:
    """Let something happen each time that a key is with its provider."""
    checks = records.core.checks
    before_set = checks.before_set

    def slowly(*args: Any, **options: Any) -> Validation | None:
        for change in islice(changes, 1):
            change()
        return before_set(*args, **options)

    monkeypatch.setattr(checks, "before_set", slowly)


def moving(world: World, record: CredentialRecord, times: int) -> Iterator[Callable[[], object]]:
    """Yield changes of a key together with its address, each to another one."""
    records = world.with_config(BYOK_ALLOW_CUSTOM_PROVIDERS=True).service.own_records(ANN)
    for number in range(times):
        fields = {"api_key": Secret("k-87654321")}
        moved = NewSecret(fields=fields, base_url=f"https://{number}.example/v1", validate="off")
        yield partial(records.change, record, {}, moved)


def test_what_is_kept_of_a_key_that_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note that is changed meanwhile costs no second check."""
    records, record = custom(world, "https://old.example/v1")
    other = world.service.own_records(ANN)
    changes = [partial(other.change, record, {"label": "new"}), partial(pytest.fail, "asked again")]
    meanwhile(monkeypatch, records, iter(changes))
    typed = NewSecret(fields={"api_key": Secret("k-abcdefgh")}, validate="off")
    changed, _ = records.change(record, {}, typed)
    assert (changed.label, changed.version) == ("new", "3")


@pytest.mark.parametrize(("if_version", "left"), [(None, 98), (1, 99)])
def test_what_changes_without_end(
    world: World, monkeypatch: pytest.MonkeyPatch, if_version: int | None, left: int
) -> None:
    """It is tried twice, and once where a version was named; what was there last stays."""
    records, record = custom(world, "https://old.example/v1")
    changes = moving(world, record, 100)
    meanwhile(monkeypatch, records, changes)
    typed = NewSecret(fields={"api_key": Secret("k-abcdefgh")}, validate="off")
    with pytest.raises(VersionConflictError):
        records.change(record, {}, typed, if_version=if_version)
    fields, _ = world.keyring.open_record("user:ann", records.get(record.id))
    assert fields["api_key"].reveal() == "k-87654321"
    assert len(list(changes)) == left
