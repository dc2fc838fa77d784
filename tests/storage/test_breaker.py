"""The breaker alone, with a clock that the test moves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from flask_byok.storage.breaker import Breaker


class Opened(Breaker):
    """A breaker that two faults have opened, and whose clock stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        super().__init__(clock=lambda: self.now)
        self.fault()
        self.fault()


def test_one_fault_is_forgiven() -> None:
    """Faults count only in a row."""
    breaker = Breaker()
    for _ in range(5):
        breaker.fault()
        assert breaker.allow()
        breaker.success()
    assert not breaker.is_open


def test_one_probe_at_a_time() -> None:
    """After two faults no call asks for a second; then one caller asks, and the others do not wait for it."""
    opened = Opened()
    assert opened.is_open
    opened.now += 0.99
    assert not opened.allow()
    opened.now += 0.01
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: opened.allow(), range(64))).count(True) == 1
    opened.now += 1
    assert opened.allow(), "in place of a probe that never reports"


def test_a_probe_decides() -> None:
    """A probe that is answered lets every caller ask; one that is not keeps them out for another second."""
    for answered in (True, False):
        opened = Opened()
        opened.now += 1
        assert opened.allow()
        opened.now += 0.25
        opened.success() if answered else opened.fault()
        opened.now += 0.99
        assert opened.allow() is answered
        opened.now += 0.01
        assert opened.allow()
