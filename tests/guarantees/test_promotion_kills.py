"""G3: wherever a promotion is interrupted, the next login finds each key exactly once, with its owner; none is lost."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import pytest

from flask_byok.errors import StoreError
from flask_byok.model.owner import Caller
from flask_byok.storage import engine, redis
from flask_byok.testing import FakeProviders
from tests.patience import short_limits
from tests.services import PostgresServer, Server, create_database
from tests.storage.redis_kinds import TunedRedis
from tests.worlds import World

from .promoting import (
    NEW,
    OWN,
    PROMOTED,
    Place,
    Points,
    begin,
    check_login,
    check_outcome,
    close,
    fork,
    kept,
    promote,
)


@pytest.fixture(scope="module")
def durable_redis() -> Iterator[TunedRedis]:
    """Run a Redis that has on disk whatever it has acknowledged."""
    with TunedRedis(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that may be killed."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, fake: FakeProviders, sqlite_url: str
) -> Place:
    """Return where keys are kept: sessions in Redis or the database, accounts on SQLite or PostgreSQL."""
    sessions, accounts = request.param.split("+")
    url = sqlite_url
    if accounts == "postgresql":
        url = create_database(request.getfixturevalue("own_postgres").url)
    redis = request.getfixturevalue("durable_redis").url if sessions == "redis" else None
    return Place(tmp_path, fake, url, redis)


Act = Callable[[World, Caller], object]


def killed_at(place: Place, act: Act, check: Act, at: int, labels: Path) -> int:
    """Do something in a process that is killed at one point, and check what the next ones find."""
    world = place.world()
    caller = begin(world, f"{place.folder.name}-{at}")
    close(world)

    def run() -> None:
        forked = place.world()
        forked.accounts.canary.secret()  # as a worker has it
        forked.service.sessions.find("warm up")
        killer = Points(at, lambda: os.kill(os.getpid(), signal.SIGKILL), labels, inside=True)
        killer.watch(forked, forked.service.sessions)
        act(forked, caller)

    outcome = fork(run)
    world = place.world()
    check(world, caller)
    close(world)
    return outcome


def at_each(folder: Path, step: int, trial: Callable[[int, Path], bool]) -> tuple[int, set[str]]:
    """Do it at every so many points, until one is past the end; return how many there are and what they are called."""
    labels: set[str] = set()
    for at in itertools.count(0, step):
        file = folder / str(at)
        went = trial(at, file)
        labels |= set(file.read_text().splitlines())
        if not went:
            return at, labels
    raise AssertionError("unreachable")


def kill_at_each(
    place: Place, folder: Path, act: Act, check: Act, step: int = 1
) -> tuple[int, set[str]]:
    """Kill at every so many points; return how many there are and what they are called."""

    def trial(at: int, labels: Path) -> bool:
        outcome = killed_at(place, act, check, at, labels)
        assert outcome in (0, -signal.SIGKILL)
        return outcome != 0

    return at_each(folder, step, trial)


def check_promotion(world: World, caller: Caller) -> None:
    """Sign in anew, promote again, and fail unless each key is there once all the time."""
    check_login(world, caller)
    check_outcome(world, caller)


def clear(world: World, caller: Caller) -> None:
    """Clear a key that waits and one of the user's own."""
    for provider in ("openai", "xai"):
        world.service.clear(caller, provider)


def check_clear(world: World, caller: Caller) -> None:
    """Fail unless each key is there as it was or gone for good, and gone once cleared again."""
    rows = {row["provider"]: row for row in world.service.get(caller)["providers"]}
    assert rows["groq"]["source"] == "session"
    gone = {p for p in ("openai", "xai") if not rows[p]["has_key"] and not rows[p]["promotable"]}
    world.service.promote(caller, None, "replace")
    assert kept(world, caller) == {p: key for p, key in PROMOTED.items() if p not in gone}
    clear(world, caller)
    world.service.promote(caller, None, "replace")
    assert kept(world, caller) == {"groq": PROMOTED["groq"]}
    assert world.accounts.audit.verify(caller.identity) == []


def set_for_good(world: World, caller: Caller) -> None:
    """Set a key for the account in the place of one in the session."""
    world.set(caller, NEW, "xai", persist=True)


def check_set(world: World, caller: Caller) -> None:
    """Fail unless the old key or the new one serves, and never the old one once the new one did."""
    first = world.service.resolve(caller, "xai").api_key
    assert first in (OWN["xai"], NEW)
    world.service.promote(caller, None, "replace")
    assert world.service.resolve(caller, "xai").api_key == first
    set_for_good(world, caller)
    assert world.service.resolve(caller, "xai").api_key == NEW
    assert kept(world, caller) == PROMOTED | {"xai": NEW}
    assert world.accounts.audit.verify(caller.identity) == []


KINDS = ["database+sqlite", "redis+postgresql"]
EVERYWHERE = [*KINDS, "database+postgresql", "redis+sqlite"]
CALLS = ("read", "mark_leaving", "promote", "remove", "commit")
VERBS = pytest.mark.parametrize(
    ("act", "check", "step"),
    [(promote, check_promotion, 6), (clear, check_clear, 9), (set_for_good, check_set, 7)],
    ids=["promote", "clear", "set"],
)


@pytest.mark.parametrize("place", KINDS, indirect=True)
@VERBS
def test_killed_worker(place: Place, tmp_path: Path, act: Act, check: Act, step: int) -> None:
    """Killed before or after any few statements, commands, commits or calls, or left alone, it comes out the same."""
    points, passed = kill_at_each(place, tmp_path, act, check, step)
    assert points >= 40
    if act is promote:
        assert {f"{when} {call}" for when in ("before", "after") for call in CALLS} <= passed
        assert {"after INSERT byok_credentials", "after INSERT byok_promotions"} <= passed


@pytest.mark.stress
@pytest.mark.parametrize("place", EVERYWHERE, indirect=True)
@VERBS
def test_killed_worker_everywhere(
    place: Place, tmp_path: Path, act: Act, check: Act, step: int
) -> None:
    """The same holds for every point there is."""
    kill_at_each(place, tmp_path, act, check)


def interrupted_at(
    place: Place, server: Server, at: int, labels: Path, interrupt: Interrupt, inside: bool
) -> bool:
    """Promote while a server goes away at one point, and check what is found then; say if there is such a point."""
    world = place.world()
    caller = begin(world, f"{place.folder.name}-{at}")
    close(world)
    with short_limits(redis) if interrupt is frozen else nullcontext():
        world = place.world()
    revive: list[Callable[[], object]] = []
    points = Points(at, lambda: revive.append(interrupt(server)), labels, inside=inside)
    points.watch(world, world.service.sessions)
    ended = False
    with suppress(StoreError):  # on a busy machine perhaps before the point
        promote(world, caller)
        ended = not revive
    for back in revive:
        back()
    close(world)
    world = place.world()
    check_promotion(world, caller)
    close(world)
    return not ended


def killed(server: Server) -> Callable[[], object]:
    """Kill a server; what this returns starts it again."""
    server.kill()
    return server.start


def frozen(server: Server) -> Callable[[], object]:
    """Stop a server; what this returns lets it go on."""
    frozen = ExitStack()
    frozen.enter_context(short_limits(engine))
    frozen.enter_context(server.frozen())
    return frozen.close


Interrupt = Callable[[Server], Callable[[], object]]
INTERRUPTIONS = pytest.mark.parametrize(
    ("place", "away", "interrupt"),
    [
        (*where, interrupt)
        for where in (("redis+sqlite", "durable_redis"), ("database+postgresql", "own_postgres"))
        for interrupt in (killed, frozen)
    ],
    indirect=["place"],
)


def interrupt_at_each(
    place: Place, server: Server, folder: Path, interrupt: Interrupt, step: int = 1
) -> set[str]:
    """Interrupt at every so many points; return what the points are called."""
    inside = interrupt is killed
    return at_each(
        folder,
        step,
        lambda at, labels: interrupted_at(place, server, at, labels, interrupt, inside),
    )[1]


@INTERRUPTIONS
def test_store_goes_away(
    request: pytest.FixtureRequest, place: Place, away: str, interrupt: Interrupt, tmp_path: Path
) -> None:
    """With Redis or PostgreSQL killed and started again, or frozen, at any fifth point it comes out the same."""
    server = request.getfixturevalue(away)
    labels = interrupt_at_each(place, server, tmp_path, interrupt, 5)
    assert {"before promote", "after promote", "before remove"} <= labels


@pytest.mark.stress
@INTERRUPTIONS
def test_store_goes_away_everywhere(
    request: pytest.FixtureRequest, place: Place, away: str, interrupt: Interrupt, tmp_path: Path
) -> None:
    """The same holds for every point there is, and there are more than fifteen."""
    server = request.getfixturevalue(away)
    interrupt_at_each(place, server, tmp_path, interrupt)
    assert len(list(tmp_path.glob("[0-9]*"))) > 15
