"""What reading keys asks of the database: how many statements, and whether they use its indexes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.wing import Wing, open_accounts
from flask_byok.errors import KeyNotFoundError
from flask_byok.model.credential import CredentialRecord
from flask_byok.model.owner import Caller, Tier
from flask_byok.storage.tables import credentials
from flask_byok.testing import FakeProviders
from tests import services
from tests.bench.fill import fill
from tests.worlds import World

from .account_kinds import KEYRING, SYSTEM, TEAM, count_statements, event_of, make_record

ORDERS: list[Any] = [
    "user_first",
    "env_first",
    ("system", "user", "env", "team"),
    ("env", "team", "session", "secret", "user"),
    ("user",),
]
ANN = Caller(user="ann", teams=("red", "blue"))
ROWS = 100_000


@pytest.fixture(params=ORDERS, ids=str)
def world(
    request: pytest.FixtureRequest, tmp_path: Path, fake: FakeProviders, database_url: str
) -> World:
    """Make a world where everybody has a key for two providers, of each kind of database and order in turn."""
    config = {"BYOK_PRECEDENCE": request.param}
    made = World(tmp_path, fake, config, database_url=database_url)
    for provider in ("openai", "groq"):
        for owner in ("user:ann", "user:ben", "team:red", "team:blue", SYSTEM):
            made.keep(owner, f"sk-proj-of-{owner}", provider)
    return made


def test_one_statement(world: World) -> None:
    """In any order of tiers a look-up is one statement, and so are the list and a round of look-ups."""
    engine, service = world.accounts.engine, world.service
    calls = {
        "resolve": lambda: service.resolve(ANN, "openai"),
        "resolve one that is not there": lambda: service.missing(ANN, ["anthropic"]),
        "several": lambda: service.resolve_many(ANN, ["openai", "groq", "anthropic"]),
        "list": lambda: service.get(ANN),
    }
    counted = {name: count_statements(engine, call) for name, call in calls.items()}
    assert counted == dict.fromkeys(calls, 1)
    first = next(tier for tier in world.settings.precedence if tier in ("user", "team", "system"))
    assert service.resolve(ANN, "openai").source == first


def test_only_the_key_in_use_is_opened(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up decrypts one key, however many tiers have one."""
    opened: list[str] = []
    unseal = world.keyring.open
    monkeypatch.setattr(
        world.keyring, "open", lambda text, context: opened.append(text) or unseal(text, context)
    )
    world.service.resolve(ANN, "openai")
    assert len(opened) == 1


def test_nothing_is_asked_where_an_operators_key_decides(
    tmp_path: Path, fake: FakeProviders, database_url: str
) -> None:
    """Where the environment comes first and has a key, the database is left alone."""
    environ = {"OPENAI_API_KEY": "sk-proj-operators"}
    config = {"BYOK_PRECEDENCE": "env_first"}
    world = World(tmp_path, fake, config, environ, database_url=database_url)
    world.keep("user:ann", "sk-proj-of-ann")
    call = lambda: world.service.resolve(ANN, "openai")  # noqa: E731
    assert count_statements(world.accounts.engine, call) == 0
    assert call().source == Tier.ENV


def test_pages_of_several_tiers(database_url: str) -> None:
    """Whole tiers and named owners come in one order, each record once, and no other owner's."""
    store = open_accounts(database_url, KEYRING)
    owners = [TEAM, SYSTEM, "user:ann", "user:ben", "team:blue"]
    made = [
        store.put(make_record(owner, provider), event_of())
        for provider in ("openai", "groq", "xai")
        for owner in owners
    ]
    for asked, expected in (
        (["team", "system"], {TEAM, SYSTEM, "team:blue"}),
        (["system", "user:ann", TEAM], {SYSTEM, "user:ann", TEAM}),
        (["user:ann", "user:ben"], {"user:ann", "user:ben"}),
        ([], set()),
        (None, set(owners)),
    ):
        seen, after = [], None
        while True:
            records, after = store.page(asked, after=after, limit=2)
            seen += records
            if after is None:
                break
        wanted = sorted(r.id for r in made if r.owner in expected)
        assert [record.id for record in seen] == wanted
        only = store.page(asked, provider="groq")[0]
        assert {record.owner for record in only} == expected
        assert {record.provider for record in only} <= {"groq"}


@pytest.fixture(scope="module")
def crowded(
    postgres_server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, AccountStore]]:
    """Fill a database of each kind with 100,000 keys."""
    url = services.create_database(postgres_server_url)
    file = tmp_path_factory.mktemp("crowded") / "byok.sqlite"
    stores = [open_accounts(address, KEYRING) for address in (url, f"sqlite:///{file}")]
    for store in stores:
        store.find(["system"])
        fill(store.engine.url, ROWS, KEYRING)
    yield {store.engine.dialect.name: store for store in stores}
    for store in stores:
        store.engine.dispose()
    services.drop_database(url, postgres_server_url)


THEIRS = ["user:9", "team:19", "system"]
READS: dict[str, Callable[[AccountStore], object]] = {
    "a look-up": lambda store: store.find(THEIRS, ["openai"]),
    "a list": lambda store: store.find(THEIRS, [*(f"p{n}" for n in range(24)), "openai"]),
    "all of some owners": lambda store: store.find(THEIRS),
    "a person's page": lambda store: store.page(["user:9"]),
    "an admin's page": lambda store: store.page(["team", "system"]),
    "an admin's page of one provider": lambda store: store.page(["team"], provider="groq"),
    "an admin's page of a rare provider": lambda store: store.page(["team"], provider="none"),
    "everybody's page": lambda store: store.page(None, after=f"{70_000:032x}"),
    "one record": lambda store: store.get(f"{500:032x}", ["user:100"]),
    "an admin's record": lambda store: store.get(f"{500:032x}", ["team", "system"]),
}


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_reads_use_an_index(crowded: dict[str, AccountStore], kind: str) -> None:
    """Among 100,000 keys nothing is looked for by going through all of them; a read that does so is noticed."""
    for name, read in READS.items():
        plan = _plan(crowded[kind], read)
        assert "byok_credentials" in plan, name
        assert not re.search("Seq Scan|SCAN byok_credentials", plan), name
        assert re.search("Index|SEARCH byok_credentials", plan), name
        # Nor does a page sort all of a tier, or look for it with the primary key among all older keys.
        if "admin's page" in name:
            assert not re.search("Bitmap|byok_credentials_pkey", plan), name
    by_hint = select(credentials).where(credentials.c.hint == "x")
    plan = _plan(crowded[kind], lambda store: store.database.read(by_hint))
    assert re.search("Seq Scan|SCAN byok_credentials", plan)


def _plan(store: AccountStore, read: Callable[[AccountStore], object]) -> str:
    """Return the database's plan for the statement that a read sends."""
    sent: list[tuple[str, Any]] = []

    def note(_c: object, _u: object, statement: str, given: Any, *_: object) -> None:
        sent.append((statement, given))

    event.listen(store.engine, "before_cursor_execute", note)
    with suppress(KeyNotFoundError):
        read(store)
    event.remove(store.engine, "before_cursor_execute", note)
    statement, given = sent[-1]
    explain = "EXPLAIN" if store.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql(f"{explain} {statement}", given).all()
    return "\n".join(str(row[-1]) for row in rows)


class CarelessStore:
    """A store on a database that compares without regard to case."""

    def __init__(self, accounts: AccountStore, *records: CredentialRecord) -> None:
        self._records = records
        self.canary = accounts.canary

    def places(
        self, owners: list[str], providers: list[str]
    ) -> dict[tuple[str, str], list[CredentialRecord]]:
        """Return what has such an owner, in capitals or not."""
        wanted = {owner.casefold() for owner in owners}
        found = (record for record in self._records if record.owner.casefold() in wanted)
        return {(record.owner, record.provider): [record] for record in found}


def test_owners_are_told_apart_by_every_letter(tmp_path: Path, fake: FakeProviders) -> None:
    """A key of Ann's is none of ann's, even where the database takes the two for one."""
    world = World(tmp_path, fake)
    theirs = world.keep("user:Ann", fake.api_key("openai"))
    mine = replace(theirs, owner="user:ann")
    reader = Wing(CarelessStore(world.accounts, theirs, mine), world.keyring, world.settings)  # type: ignore[arg-type]
    openai = world.catalog.get("openai")
    found = list(reader.find(Caller(user="Ann"), [openai])[Tier.USER, "openai"])
    assert [each.credential.owner for each in found if each.credential] == ["user:Ann"]
