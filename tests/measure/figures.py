"""What a figure is, and how figures are printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A measured number.

    :param aim: The largest value that is good; None if there is no aim.
    :param details: What the number is made of, one line each.
    """

    name: str
    value: float
    aim: int | None = None
    details: tuple[str, ...] = ()

    @property
    def missed(self) -> bool:
        """True if the figure has an aim and is above it."""
        return self.aim is not None and self.value > self.aim


def print_figures(title: str, figures: Iterable[Figure], *, verbose: bool) -> bool:
    """Print a block of figures. Return True if an aim is missed.

    :param verbose: Print every figure's details, not only those of an aim that is missed.
    """
    print(f"\n{title}")
    any_missed = False
    for figure in figures:
        aim = "" if figure.aim is None else f"≤ {figure.aim:,}"
        verdict = "missed" if figure.missed else ""
        print(f"  {figure.name:<58}{figure.value:>8,g}  {aim:>8}  {verdict}".rstrip())
        if verbose or (figure.missed and len(figure.details) < 10):
            for line in figure.details:
                print(f"      {line}")
        any_missed |= figure.missed
    return any_missed
