"""Keys in the database: a look-up against its bare parts, at any number of stored keys, and a new encryption key."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path

from cryptography.fernet import Fernet
from sqlalchemy import create_engine, select

from flask_byok.accounts.store import AuditEvent
from flask_byok.catalog import Catalog, ProviderSpec
from flask_byok.model.owner import Caller
from flask_byok.sealing.keyring import Context, Keyring
from flask_byok.storage.tables import credentials
from flask_byok.testing import FakeProviders
from tests.services import PostgresServer
from tests.worlds import World, registered

from .fill import PROVIDERS, fill, owner_of
from .measure import interleaved, show

SIZES = (1_000, 100_000, 1_000_000)
PROVIDERS_LISTED = 25
#: People whose keys are looked up in turn.
PEOPLE = 100
#: Keys that are sealed again at once, and how often.
BATCH, BATCHES = 500, 60

Address = Callable[[str], str]


def bench_accounts(fake: FakeProviders) -> None:
    """Measure on SQLite and on PostgreSQL."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(PostgresServer())
        kinds: dict[str, Address] = {
            "SQLite": lambda name: f"sqlite:///{directory / name}.sqlite",
            "PostgreSQL": lambda _: server.create_database(),
        }
        for kind, address in kinds.items():
            bench_look_up(kind, address("look-up"), directory, fake)
            bench_listing(kind, address("listing"), directory, fake)
            bench_sizes(kind, address, directory, fake)
        bench_rotation(server.create_database(), directory, fake)


def bench_look_up(kind: str, url: str, directory: Path, fake: FakeProviders) -> None:
    """Resolve a key that the user, a team and the system have, against a Core select and the decryption."""
    accounts = {"BYOK_PRECEDENCE": ("user", "team", "system")}
    world = World(directory, fake, accounts, database_url=url)
    default = world.with_config(BYOK_PRECEDENCE="user_first")
    owners = ["user:ann", "team:red", "system"]
    for owner in owners:
        world.keep(owner, f"sk-proj-of-{owner}")
    ann, spec = Caller(user="ann", teams=("red",)), world.catalog.get("openai")
    engine = create_engine(world.accounts.engine.url)

    def by_hand() -> bytes:
        query = select(credentials).where(
            credentials.c.owner.in_(owners), credentials.c.provider == "openai"
        )
        with engine.connect() as connection:
            row = next(row for row in connection.execute(query).all() if row.owner == "user:ann")
        return world.keyring.open(row.ciphertext, Context("account", row.owner, row.provider))

    bare = "Core select + decryption, as written by hand"
    work: dict[str, Callable[[], object]] = {
        bare: by_hand,
        "Resolver.resolve, database tiers": lambda: world.service.lookup.resolve(ann, spec),
        "Resolver.resolve, user_first": lambda: default.service.lookup.resolve(ann, spec),
    }
    times = interleaved(work, rounds=100, repeat=20)
    show(f"Look a key up, {kind}", times, against=bare, goal="≤ × 1.3")


def bench_listing(kind: str, url: str, directory: Path, fake: FakeProviders) -> None:
    """List 25 providers, for each of which a user, a team and the system have a key."""
    more = [
        ProviderSpec(id=f"more_{number}", name=f"More {number}", base_url="https://more.example/v1")
        for number in range(PROVIDERS_LISTED - len(Catalog()))
    ]
    world = World(directory, fake, catalog=registered(*more), database_url=url)
    for spec in world.catalog:
        for owner in ("user:ann", "team:red", "system"):
            world.keep(owner, f"sk-proj-of-{owner}", spec.id)
    ann = Caller(user="ann", teams=("red",))
    work: dict[str, Callable[[], object]] = {
        order: partial(world.with_config(BYOK_PRECEDENCE=order).service.get, ann)
        for order in ("user_first", "env_first")
    }
    times = interleaved(work, rounds=15, repeat=5)
    show(f"List {PROVIDERS_LISTED} providers, 75 keys, {kind}", times, against="user_first")


def bench_sizes(kind: str, address: Address, directory: Path, fake: FakeProviders) -> None:
    """Resolve, list and page where ever more keys are stored."""
    worlds: dict[int, World] = {}
    for size in SIZES:
        worlds[size] = World(directory, fake, database_url=address(f"of-{size}"))
        worlds[size].accounts.find([], [])  # makes the tables
        fill(worlds[size].accounts.engine.url, size, worlds[size].keyring, opening=PEOPLE)
    calls: dict[str, Callable[[World, Iterator[Caller]], object]] = {
        "resolve": lambda w, people: w.service.lookup.resolve(
            next(people), w.catalog.get("openai")
        ),
        "list of all providers": lambda w, people: w.service.get(next(people)),
        "one page of a person's keys": lambda w, people: w.accounts.page([next(people).identity]),
        "one page of shared keys": lambda w, _: w.accounts.page(["team", "system"]),
    }
    for name, call in calls.items():
        work = {
            f"{size:>9,} keys": partial(call, world, people(size)) for size, world in worlds.items()
        }
        times = interleaved(work, rounds=30, repeat=30)
        show(f"{name}, {kind}".capitalize(), times, against=next(iter(work)), goal="≤ × 1.2")


def people(size: int) -> Iterator[Caller]:
    """Yield the users whose keys open, in turn, without end; those who are teams are left out."""
    owners = size // len(PROVIDERS)
    every = max(owners // PEOPLE, 1)
    users = (owner_of(number * len(PROVIDERS)) for number in range(0, owners, every))
    names = [owner.removeprefix("user:") for owner in users if owner.startswith("user:")]
    return cycle([Caller(user=name) for name in names[:PEOPLE]])


def bench_rotation(url: str, directory: Path, fake: FakeProviders) -> None:
    """Seal keys with a new encryption key, batch by batch, against the cryptography alone."""
    old, new = "00" * 32, "11" * 32
    world = World(directory, fake, keyring=Keyring(old), database_url=url)
    world.accounts.canary.secret()
    keys = BATCH * (BATCHES + 2)
    fill(world.accounts.engine.url, keys, world.keyring, opening=keys)
    keyring = Keyring(new, [old])
    store = world.with_keyring(keyring).accounts
    batches = store.seals.rotate(keyring.renewed, AuditEvent("cli", "rotate"))
    fernet = Fernet(Fernet.generate_key())
    token = fernet.encrypt(b"a" * 512)
    bare = "decrypt and encrypt"
    work: dict[str, Callable[[], object]] = {
        bare: lambda: [fernet.encrypt(fernet.decrypt(token)) for _ in range(BATCH)],
        "flask byok rotate": lambda: next(batches),
    }
    times = interleaved(work, rounds=BATCHES, repeat=1)
    show(f"Sealing {BATCH} keys again on PostgreSQL", times, against=bare)
    rate = BATCH / times["flask byok rotate"] * 1e6
    print(f"  {rate:,.0f} keys a second  (goal: ≥ 10,000)")
