"""Keys in the database: a look-up against its bare parts, at any number of stored keys."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, bindparam, create_engine, select

from flask_byok.catalog import Catalog, ProviderSpec
from flask_byok.model.credential import CredentialRecord
from flask_byok.model.owner import Caller
from flask_byok.sealing.keyring import Context
from flask_byok.storage.tables import credentials
from flask_byok.testing import FakeProviders
from tests.accounts.account_kinds import count_statements
from tests.services import PostgresServer
from tests.worlds import World, registered

from .fill import PROVIDERS, fill, owner_of
from .measure import interleaved, show

SIZES = (1_000, 100_000, 1_000_000)
PROVIDERS_LISTED = 25
#: People whose keys are looked up in turn.
PEOPLE = 100
ORDERS: dict[str, Any] = {
    "user_first": "user_first",
    "env_first": "env_first",
    "team, env, user, secret, system, session": (
        "team", "env", "user", "secret", "system", "session",
    ),
}  # fmt: skip
#: The columns by which a key is found.
_c = credentials.c


def bench_accounts(fake: FakeProviders) -> None:
    """Measure on SQLite and on PostgreSQL."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(PostgresServer())
        for kind, address in (
            ("SQLite", lambda name: f"sqlite:///{directory / name}.sqlite"),
            ("PostgreSQL", lambda _: server.create_database()),
        ):
            bench_look_up(kind, address("look-up"), directory, fake)
            bench_listing(kind, address("listing"), directory, fake)
            bench_sizes(kind, address, directory, fake)


#: What a look-up is held against, and what each of these is.
BY_HAND = "Core select + decryption, as written by hand"
PREPARED = "the same, its statement made once"
PREPARED_ON_OURS = "the same, made once, on the store's own engine"
LEAST = "one column of one row, made once, autocommit"
BARE = {
    BY_HAND: "the three owners' rows, an engine as create_engine makes it, the statement where it is used",
    PREPARED: "so, but SQLAlchemy need not build and look at the statement anew",
    PREPARED_ON_OURS: "so, with the store's pool and isolation: no BEGIN and no ROLLBACK",
    LEAST: "the user's ciphertext alone: it cannot tell whether that key is active, expired or refused",
}


def bench_look_up(kind: str, url: str, directory: Path, fake: FakeProviders) -> None:
    """Resolve a key that the user, a team and the system have, against a Core select and the decryption."""
    accounts = {"BYOK_PRECEDENCE": ("user", "team", "system")}
    world = World(directory, fake, accounts, database_url=url)
    default = world.with_config(BYOK_PRECEDENCE="user_first")
    for owner in ("user:ann", "team:red", "system"):
        world.keep(owner, f"sk-proj-of-{owner}")
    ann = Caller(user="ann", teams=("red",))
    spec = world.catalog.get("openai")
    bare = BareLookUp(world)
    ours = "Resolver.resolve, database tiers"
    work: dict[str, Callable[[], object]] = {
        BY_HAND: bare.by_hand,
        PREPARED: bare.prepared,
        PREPARED_ON_OURS: bare.prepared_on_ours,
        LEAST: bare.least,
        ours: lambda: world.service.lookup.resolve(ann, spec),
        "Resolver.resolve, user_first": lambda: default.service.lookup.resolve(ann, spec),
    }
    times = interleaved(work, rounds=100, repeat=20)
    show(f"Look a key up, {kind}", times, against=BY_HAND, goal="≤ × 1.3")
    print("  database tiers against each of these:")
    for name, meaning in BARE.items():
        print(f"  {name:<46} × {times[ours] / times[name]:.2f}   ({meaning})")


class BareLookUp:
    """What an app with this table would do: select the keys of three owners, decrypt the one that counts.

    All read the same file or database, so SQLite's journal mode is the same too; all decrypt as the store does.
    """

    def __init__(self, world: World) -> None:
        url = world.accounts.engine.url
        self._keyring = world.keyring
        self._engine = create_engine(url)
        self._autocommit = create_engine(url, isolation_level="AUTOCOMMIT")
        self._ours = world.accounts.engine
        owners = [bindparam(f"owner_{number}") for number in range(3)]
        self._rows = select(credentials).where(
            _c.owner.in_(owners), _c.provider == bindparam("provider")
        )
        self._column = select(_c.ciphertext).where(
            _c.owner == bindparam("owner"), _c.provider == bindparam("provider"), _c.slot == ""
        )

    def by_hand(self) -> bytes:
        owners = ["user:ann", "team:red", "system"]
        query = select(credentials).where(_c.owner.in_(owners), _c.provider == "openai")
        with self._engine.connect() as connection:
            return self._open(connection.execute(query).all())

    def prepared(self) -> bytes:
        return self._prepared(self._engine)

    def prepared_on_ours(self) -> bytes:
        return self._prepared(self._ours)

    def least(self) -> bytes:
        values = {"owner": "user:ann", "provider": "openai"}
        with self._autocommit.connect() as connection:
            ciphertext: str = connection.execute(self._column, values).scalar_one()
        return self._keyring.open(ciphertext, Context("account", "user:ann", "openai"))

    def _prepared(self, engine: Engine) -> bytes:
        values = {"owner_0": "user:ann", "owner_1": "team:red", "owner_2": "system"}
        with engine.connect() as connection:
            return self._open(
                connection.execute(self._rows, {**values, "provider": "openai"}).all()
            )

    def _open(self, rows: Any) -> bytes:
        row = next(row for row in rows if row.owner == "user:ann")
        return self._keyring.open(row.ciphertext, Context("account", row.owner, row.provider))


def world_of_many(url: str, directory: Path, fake: FakeProviders) -> World:
    """Return a world of 25 providers, for each of which a user, a team and the system have a key."""
    known = len(Catalog())
    more = [
        ProviderSpec(id=f"more_{number}", name=f"More {number}", base_url="https://more.example/v1")
        for number in range(PROVIDERS_LISTED - known)
    ]
    world = World(directory, fake, catalog=registered(*more), database_url=url)
    for spec in world.catalog:
        for owner in ("user:ann", "team:red", "system"):
            world.keep(owner, f"sk-proj-of-{owner}", spec.id)
    return world


def bench_listing(kind: str, url: str, directory: Path, fake: FakeProviders) -> None:
    """List 25 providers with three keys each, and count the statements."""
    ann = Caller(user="ann", teams=("red",))
    first = world_of_many(url, directory, fake)
    work: dict[str, Callable[[], object]] = {}
    print(f"\nStatements to list {PROVIDERS_LISTED} providers, {kind}  (goal: 1)")
    for name, order in ORDERS.items():
        world = first.with_config(BYOK_PRECEDENCE=order)
        work[name] = partial(world.service.get, ann)
        work[name]()
        print(f"  {name:<46} {count_statements(world.accounts.engine, work[name])}")
    times = interleaved(work, rounds=15, repeat=5)
    show(f"List {PROVIDERS_LISTED} providers, 75 keys, {kind}", times, against="user_first")


def bench_sizes(
    kind: str, address: Callable[[str], str], directory: Path, fake: FakeProviders
) -> None:
    """Resolve, list and page where ever more keys are stored."""
    worlds: dict[int, World] = {}
    for size in SIZES:
        worlds[size] = World(directory, fake, database_url=address(f"of-{size}"))
        worlds[size].accounts.find([], [])  # makes the tables
        fill(worlds[size].accounts.engine.url, size, worlds[size].keyring, opening=PEOPLE)
    calls: dict[str, Callable[[World, Iterator[Caller]], Callable[[], object]]] = {
        "resolve": lambda w, people: (
            lambda: w.service.lookup.resolve(next(people), w.catalog.get("openai"))
        ),
        "list of all providers": lambda w, people: lambda: w.service.get(next(people)),
        "one page of a person's keys": lambda w, people: (
            lambda: w.accounts.page([next(people).identity])
        ),
        "one page of the teams' and the system's keys": lambda w, _: (
            lambda: w.accounts.page(["team", "system"])
        ),
    }
    for name, call in calls.items():
        work = {f"{size:>9,} keys": call(world, people(size)) for size, world in worlds.items()}
        times = interleaved(work, rounds=30, repeat=30)
        show(f"{name}, {kind}".capitalize(), times, against=next(iter(work)), goal="≤ × 1.2")
    show_memory(kind, worlds[SIZES[1]])


def people(size: int) -> Iterator[Caller]:
    """Yield the users whose keys open, in turn, without end; those who are teams are left out."""
    owners = size // len(PROVIDERS)
    every = max(owners // PEOPLE, 1)
    users = (owner_of(number * len(PROVIDERS)) for number in range(0, owners, every))
    names = [owner.removeprefix("user:") for owner in users if owner.startswith("user:")]
    return cycle([Caller(user=name) for name in names[:PEOPLE]])


def show_memory(kind: str, world: World) -> None:
    """Go through the keys of owners, page by page, and say how much memory that took at most."""
    per_owner = len(PROVIDERS)
    for owners in (1_000, 10_000):
        tracemalloc.start()
        counted = sum(1 for _ in islice(all_records(world), owners * per_owner))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(
            f"  memory to page through {owners:,} owners' {counted:,} keys, {kind}: {peak / 1024:.0f} KiB at most"
        )
    tracemalloc.start()
    kept = list(islice(all_records(world), 1_000 * per_owner))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"  memory to keep 1,000 owners' {len(kept):,} keys, {kind}: {held / 1024:.0f} KiB")


def all_records(world: World) -> Iterator[CredentialRecord]:
    """Yield every record, page by page, as an admin's list does."""
    after: str | None = None
    while True:
        records, after = world.accounts.page(None, after=after)
        yield from records
        if after is None:
            return
