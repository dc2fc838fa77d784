"""The breaker alone, with a clock that the test moves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_byok.storage.breaker import Breaker


class Opened(Breaker):
    """A breaker that two faults have opened, and a monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        super().__init__(clock=lambda: self.now)
        self.fault()
        self.fault()


@pytest.fixture
def opened() -> Opened:
    """Open a breaker."""
    return Opened()


def test_one_fault_is_forgiven() -> None:
    """Faults count only in a row."""
    breaker = Breaker()
    for _ in range(5):
        breaker.fault()
        assert breaker.allow()
        breaker.success()
    assert not breaker.is_open


def test_one_probe_at_a_time(opened: Opened) -> None:
    """After two faults no call asks for a second; then one caller asks, and the others do not wait for it."""
    assert opened.is_open
    opened.now += 0.99
    assert not opened.allow()
    opened.now += 0.01
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: opened.allow(), range(64))).count(True) == 1
    opened.now += 1
    assert opened.allow(), "in place of a probe that never reports"


def test_good_probe_closes(opened: Opened) -> None:
    """A probe that is answered lets everybody ask again."""
    opened.now += 1
    assert opened.allow()
    opened.success()
    assert opened.allow()
    opened.fault()
    assert not opened.is_open


def test_bad_probe_keeps_it_open(opened: Opened) -> None:
    """A probe that is not answered keeps everybody out for another second."""
    opened.now += 1
    assert opened.allow()
    opened.now += 0.25
    opened.fault()
    opened.now += 0.99
    assert not opened.allow()
    opened.now += 0.01
    assert opened.allow()
