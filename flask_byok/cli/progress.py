"""How far a long command is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


class Steps:
    """Shows a bar on a terminal, else a line for each tenth."""

    def __init__(self, bar: Any, total: int) -> None:
        self._bar = bar
        self._total = total
        self._shown = 0

    def reach(self, done: int) -> None:
        """Show that so many of all are done."""
        if self._bar is not None:
            self._bar.update(done - self._shown)
        elif done - self._shown >= max(self._total / 10, 1):
            click.echo(f"{done:,} of {self._total:,}")
        else:
            return
        self._shown = done


def is_terminal() -> bool:
    """Say whether somebody watches."""
    return sys.stdout is not None and sys.stdout.isatty()


@contextmanager
def steps(label: str, total: int) -> Iterator[Steps]:
    """Begin to show how far a command is."""
    if not is_terminal():
        click.echo(f"{label}: {total:,}")
        yield Steps(None, total)
        return
    with click.progressbar(length=total, label=label, show_pos=True) as bar:
        yield Steps(bar, total)
