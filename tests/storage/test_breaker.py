"""The breaker alone, with a clock that the test moves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_byok.storage.protection import Breaker


class Seconds:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Seconds:
    """Make a standing clock."""
    return Seconds()


@pytest.fixture
def opened(clock: Seconds) -> Breaker:
    """Make a breaker that two faults have opened."""
    breaker = Breaker(clock=clock)
    breaker.fault()
    breaker.fault()
    return breaker


def test_one_fault_is_forgiven(clock: Seconds) -> None:
    """Faults count only in a row."""
    breaker = Breaker(clock=clock)
    for _ in range(5):
        breaker.fault()
        assert breaker.allow()
        breaker.success()
    assert not breaker.is_open


def test_two_faults_open(opened: Breaker, clock: Seconds) -> None:
    """After two faults no call asks for a second."""
    assert opened.is_open
    assert not opened.allow()
    clock.now += 0.99
    assert not opened.allow()


def test_one_probe_at_a_time(opened: Breaker, clock: Seconds) -> None:
    """After a second one caller asks, and the others do not wait for it."""
    clock.now += 1
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: opened.allow(), range(64))).count(True) == 1


def test_good_probe_closes(opened: Breaker, clock: Seconds) -> None:
    """A probe that is answered lets everybody ask again."""
    clock.now += 1
    assert opened.allow()
    opened.success()
    assert not opened.is_open
    assert opened.allow()
    opened.fault()
    assert not opened.is_open


def test_bad_probe_keeps_it_open(opened: Breaker, clock: Seconds) -> None:
    """A probe that is not answered keeps everybody out for another second."""
    clock.now += 1
    assert opened.allow()
    clock.now += 0.25
    opened.fault()
    clock.now += 0.99
    assert not opened.allow()
    clock.now += 0.01
    assert opened.allow()


def test_lost_probe_is_replaced(opened: Breaker, clock: Seconds) -> None:
    """If a probe never reports, another one is sent after a second."""
    clock.now += 1
    assert opened.allow()
    clock.now += 1
    assert opened.allow()
