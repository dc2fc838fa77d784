"""Time things fairly on a machine that does other work too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    work: Mapping[str, Callable[[], object]], *, rounds: int = 30, repeat: int = 100
) -> dict[str, float]:
    """Return the typical time of each piece of work, in microseconds a call.

    The pieces take turns, so that what else the machine does falls on all of them alike; the median of the rounds
    leaves out the moments in which it did a lot.
    """
    samples: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        call()
    for _ in range(rounds):
        for name, call in work.items():
            begin = time.perf_counter()
            for _ in range(repeat):
                call()
            samples[name].append((time.perf_counter() - begin) / repeat * 1e6)
    return {name: statistics.median(times) for name, times in samples.items()}


def show(title: str, times: Mapping[str, float], *, against: str, goal: str = "") -> None:
    """Print one table: each time, and its ratio to the one it is held against."""
    print(f"\n{title}{f'  (goal: {goal})' if goal else ''}")
    for name, microseconds in times.items():
        print(f"  {name:<46} {microseconds:12.1f} µs   × {microseconds / times[against]:.2f}")
