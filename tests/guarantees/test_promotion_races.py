"""G3: whatever overlaps a promotion, no acknowledged set is lost, and no cleared key comes back."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from flask_byok.errors import SessionRequiredError
from flask_byok.model.owner import Caller
from flask_byok.storage import engine as limits
from flask_byok.testing import FakeProviders
from tests.worlds import World

from .promoting import NEW, PROMOTED, PROVIDERS, Place, Points, begin, close, kept


@pytest.fixture(params=["sqlite", "redis+postgresql"])
def worlds(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    fake: FakeProviders,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[World, World]]:
    """Make two workers of one host."""
    monkeypatch.setattr(limits, "LIMIT", 20)
    on_redis = request.param != "sqlite"
    url = request.getfixturevalue("postgres_url" if on_redis else "sqlite_url")
    place = Place(tmp_path, fake, url, request.getfixturevalue("redis_url") if on_redis else None)
    pair = (place.world(), place.world())
    yield pair
    for world in pair:
        close(world)


Act = Callable[[World, Caller], Any]
#: Says what is wrong after a promotion and something else, given what both answered.
Check = Callable[[World, Caller, Any, Any], None]


def promote(world: World, caller: Caller) -> Any:
    """Promote everything; None where the session has ended."""
    try:
        return world.service.promote(caller, None, "replace")
    except SessionRequiredError:
        return None


def clear(world: World, caller: Caller) -> Any:
    """Clear one key that waits and one of the user's own, wherever they are."""
    return [world.service.clear(caller, provider)[0] for provider in ("openai", "xai")]


def set_in_session(world: World, caller: Caller) -> Any:
    """Set another key for the session."""
    return world.set(caller, NEW, "xai")


def set_in_account(world: World, caller: Caller) -> Any:
    """Set another key for the account."""
    return world.set(caller, NEW, "xai", persist=True)


def sign_out(world: World, caller: Caller) -> Any:
    """End the session."""
    return world.service.sessions.end(caller.session)


def in_session(world: World, caller: Caller) -> list[str]:
    """Return the providers with a key in the session, waiting or not."""
    view = world.service.sessions.read(caller.session, caller.identity, PROVIDERS)
    return [*view.records, *view.visitor_records]


def once(world: World, caller: Caller, first: Any, second: Any) -> None:
    """Each key is there once, whoever of the two has promoted it."""
    assert kept(world, caller) == PROMOTED
    assert in_session(world, caller) == []
    done = [e for e in world.accounts.audit.entries(caller.identity) if e.action == "promote"]
    assert sorted(e.provider for e in done) == sorted(PROVIDERS)


def cleared(world: World, caller: Caller, first: Any, second: Any) -> None:
    """What was cleared is gone, and stays away when promoted once more; the rest is there. Both say what they did."""
    for provider, places in zip(("openai", "xai"), second, strict=True):
        assert places
        assert ("user" in places) is (provider in first["promoted"])
        assert provider not in first["kept"]
    for _ in range(2):
        assert kept(world, caller) == {"groq": PROMOTED["groq"]}
        assert in_session(world, caller) == []
        promote(world, caller)


def newer(world: World, caller: Caller, first: Any, second: Any) -> None:
    """The key that was set is in use and stays so when promoted once more."""
    for _ in range(2):
        assert world.service.resolve(caller, "xai").api_key == NEW
        promote(world, caller)
    assert kept(world, caller) == PROMOTED | {"xai": NEW}


def all_or_nothing(world: World, caller: Caller, first: Any, second: Any) -> None:
    """The keys went along with the session, or they are all in the account; none is left behind."""
    assert in_session(world, caller) == []
    if first is None:
        assert kept(world, caller) == {}
    else:
        assert sorted(first["promoted"]) == sorted(PROVIDERS)
        assert kept(world, caller) == PROMOTED


KINDS: list[tuple[Act, Check]] = [
    (promote, once),
    (clear, cleared),
    (set_in_session, newer),
    (set_in_account, newer),
    (sign_out, all_or_nothing),
]
BY_KIND = pytest.mark.parametrize(("act", "check"), KINDS, ids=lambda part: part.__name__)


def timed(barrier: Barrier, delay: float, act: Act, *of: Any) -> tuple[Any, float]:
    """Do something a while after both are there; return what came of it, and how long it took."""
    barrier.wait()
    time.sleep(delay)
    started = time.perf_counter()
    return act(*of), time.perf_counter() - started


def overlap(worlds: tuple[World, World], act: Act, check: Check, trials: int) -> None:
    """Promote beside something else so many times, with the latter at any moment."""
    chance = random.Random(7)
    took = 0.02
    for trial in range(trials):
        caller = begin(worlds[0], f"{act.__name__}-{trial}")
        barrier = Barrier(2)

        with ThreadPoolExecutor(2) as pool:
            delay = chance.uniform(0, 1.1) * took
            promotion = pool.submit(timed, barrier, 0, promote, worlds[0], caller)
            other = pool.submit(timed, barrier, delay, act, worlds[1], caller)
            answer, took = promotion.result()
            done, _ = other.result()
        check(worlds[1], caller, answer, done)
        assert worlds[0].accounts.audit.verify(caller.identity) == []


def step_by_step(
    worlds: tuple[World, World], labels: Path, outer: Act, inner: Act, check: Check
) -> None:
    """Do one thing between any two steps of the other."""
    points = Points(-1, lambda: None, labels)
    points.watch(worlds[0], worlds[0].service.sessions)
    for at in itertools.count():
        caller = begin(worlds[1], f"{outer.__name__}-{at}")
        answers: list[tuple[Act, Any]] = []

        def come_between(caller: Caller = caller, answers: list[tuple[Act, Any]] = answers) -> None:
            answers.append((inner, inner(worlds[1], caller)))

        points.passed, points.act_at, points.act = 0, at, come_between
        answers.append((outer, outer(worlds[0], caller)))
        if points.passed <= at:
            assert at >= 2
            return
        promotion, other = sorted(answers, key=lambda answer: answer[0] is not promote)
        check(worlds[1], caller, promotion[1], other[1])


@BY_KIND
def test_between_any_two_steps(
    worlds: tuple[World, World], tmp_path: Path, act: Act, check: Check
) -> None:
    """Whatever comes between any two steps of a promotion, it comes out as one after the other would."""
    step_by_step(worlds, tmp_path / "labels", promote, act, check)


@BY_KIND
def test_promotion_between_any_two_steps(
    worlds: tuple[World, World], tmp_path: Path, act: Act, check: Check
) -> None:
    """So it does where a promotion comes between any two steps of it."""
    step_by_step(worlds, tmp_path / "labels", act, promote, check)


@pytest.mark.parametrize("order", [["session", "user", "env"], ["user", "session", "env"]])
def test_key_is_found_all_the_time(
    tmp_path: Path, fake: FakeProviders, sqlite_url: str, order: list[str]
) -> None:
    """A key that is promoted between any two steps of a look-up is found by it, whatever tier comes first."""
    place = Place(tmp_path, fake, sqlite_url, config={"BYOK_PRECEDENCE": order})
    worlds = (place.world(), place.world())
    points = Points(-1, lambda: None, tmp_path / "labels")
    points.watch(worlds[0], worlds[0].service.sessions)
    for at in itertools.count():
        caller = begin(worlds[1], f"user-{at}")
        points.passed, points.act_at = 0, at
        points.act = partial(promote, worlds[1], caller)
        assert worlds[0].service.resolve(caller, "xai").api_key == PROMOTED["xai"]
        if points.passed <= at:
            break
    assert at >= 2
    for world in worlds:
        close(world)


@pytest.mark.stress
@BY_KIND
def test_many_overlaps(worlds: tuple[World, World], act: Act, check: Check) -> None:
    """So it does wherever they overlap, two hundred times over."""
    overlap(worlds, act, check, 200)
