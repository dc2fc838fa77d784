"""G3: wherever a promotion is interrupted, the next login finds each key exactly once, with its owner; none is lost."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flask_byok.stores import sql_engine
from flask_byok.testing import FakeProviders
from tests.services import PostgresServer, Server, create_database
from tests.stores.redis_kinds import TunedRedis

from .promoting import Place, Points, begin, check_login, check_outcome, close, fork, promote


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


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine take its time: what is too late is a matter of other tests."""
    monkeypatch.setattr(sql_engine, "LIMIT", 20)
    limits = "-c lock_timeout=20s -c statement_timeout=20s"
    monkeypatch.setattr(sql_engine, "_SERVER_LIMITS", limits)


def killed_at(place: Place, at: int, labels: Path) -> int:
    """Promote in a process that is killed at one point, and check what the next ones find."""
    world = place.world()
    caller = begin(world, f"{place.folder.name}-{at}")
    close(world)

    def run() -> None:
        forked = place.world()
        forked.accounts.canary.secret()  # as a worker has it
        forked.service.sessions.find("warm up")
        killer = Points(at, lambda: os.kill(os.getpid(), signal.SIGKILL), labels, inside=True)
        killer.watch(forked, forked.service.sessions)
        promote(forked, caller)

    outcome = fork(run)
    world = place.world()
    check_login(world, caller)
    check_outcome(world, caller)
    close(world)
    return outcome


def kill_at_each(place: Place, folder: Path, step: int = 1) -> set[str]:
    """Kill at every so many points, until one is past the end; return what the points are called."""
    labels: set[str] = set()
    for at in itertools.count(0, step):
        outcome = killed_at(place, at, folder / str(at))
        labels |= set((folder / str(at)).read_text().splitlines())
        if outcome == 0:
            assert at >= 60
            return labels
        assert outcome == -signal.SIGKILL
    raise AssertionError("unreachable")


KINDS = ["database+sqlite", "redis+postgresql"]
EVERYWHERE = [*KINDS, "database+postgresql", "redis+sqlite"]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_killed_worker(place: Place, tmp_path: Path) -> None:
    """Killed before or after any third statement, command, commit or call, or left alone, it comes out the same."""
    passed = kill_at_each(place, tmp_path, 3)
    assert {f"{when} {call}" for when in ("before", "after") for call in CALLS} <= passed
    assert {"after INSERT byok_credentials", "after INSERT byok_promotions"} <= passed


CALLS = ("read", "exchange", "promote", "discard", "commit")


@pytest.mark.stress
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("place", EVERYWHERE, indirect=True)
def test_killed_worker_everywhere(place: Place, tmp_path: Path) -> None:
    """The same holds for every point there is."""
    kill_at_each(place, tmp_path)


def interrupted_at(
    place: Place, server: Server, at: int, labels: Path, interrupt: Interrupt, inside: bool
) -> bool:
    """Promote while a server goes away at one point, and check what is found once it is back; say whether it went."""
    world = place.world()
    caller = begin(world, f"{place.folder.name}-{at}")
    revive: list[Callable[[], object]] = []
    points = Points(at, lambda: revive.append(interrupt(server)), labels, inside=inside)
    points.watch(world, world.service.sessions)
    promote(world, caller)
    for back in revive:
        back()
    close(world)
    world = place.world()
    check_login(world, caller)
    check_outcome(world, caller)
    close(world)
    return bool(revive)


def killed(server: Server) -> Callable[[], object]:
    """Kill a server; what this returns starts it again."""
    server.kill()
    return server.start


def frozen(server: Server) -> Callable[[], object]:
    """Stop a server; what this returns lets it go on."""
    patience, sql_engine.LIMIT = sql_engine.LIMIT, 0.4
    server.stop_process()

    def go_on() -> None:
        server.cont()
        sql_engine.LIMIT = patience

    return go_on


Interrupt = Callable[[Server], Callable[[], object]]
INTERRUPTIONS = pytest.mark.parametrize(
    ("place", "away", "interrupt"),
    [
        (place, away, interrupt)
        for place, away in [
            ("redis+sqlite", "durable_redis"),
            ("database+postgresql", "own_postgres"),
        ]
        for interrupt in (killed, frozen)
    ],
    indirect=["place"],
)


def interrupt_at_each(
    place: Place, server: Server, folder: Path, interrupt: Interrupt, step: int = 1
) -> set[str]:
    """Interrupt at every so many points, until one is past the end; return what the points are called."""
    labels: set[str] = set()
    for at in itertools.count(0, step):
        file = folder / str(at)
        went = interrupted_at(place, server, at, file, interrupt, interrupt is killed)
        labels |= set(file.read_text().splitlines())
        if not went:
            return labels
    raise AssertionError("unreachable")


@pytest.mark.usefixtures("patient")
@INTERRUPTIONS
def test_store_goes_away(
    request: pytest.FixtureRequest, place: Place, away: str, interrupt: Interrupt, tmp_path: Path
) -> None:
    """With Redis or PostgreSQL killed and started again, or frozen, at any fifth point it comes out the same."""
    server = request.getfixturevalue(away)
    labels = interrupt_at_each(place, server, tmp_path, interrupt, 5)
    assert {"before promote", "after promote", "before discard"} <= labels


@pytest.mark.stress
@pytest.mark.usefixtures("patient")
@INTERRUPTIONS
def test_store_goes_away_everywhere(
    request: pytest.FixtureRequest, place: Place, away: str, interrupt: Interrupt, tmp_path: Path
) -> None:
    """The same holds for every point there is, and there are more than twenty."""
    server = request.getfixturevalue(away)
    interrupt_at_each(place, server, tmp_path, interrupt)
    assert len(list(tmp_path.glob("[0-9]*"))) > 20
