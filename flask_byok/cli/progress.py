"""Show the progress of a long command."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

#: Columns that a bar with percentage and remaining time needs.
_WIDE = 60


class Steps:
    """Show a bar on a terminal, else a line for each tenth."""

    def __init__(self, bar: Any, total: int) -> None:
        self._bar = bar
        self._total = total
        self._shown = 0

    def reach(self, done: int) -> None:
        """Show that ``done`` of all are done."""
        if self._bar is not None:
            self._bar.update(done - self._shown)
        elif done - self._shown >= max(self._total / 10, 1):
            click.echo(f"{done:,} of {self._total:,}")
        else:
            return
        self._shown = done


def is_terminal() -> bool:
    """Return True if the output goes to a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def can_draw() -> bool:
    """Return True if the terminal can redraw a line."""
    return os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


@contextmanager
def steps(label: str, total: int) -> Iterator[Steps]:
    """Show the progress of a command with ``total`` steps."""
    if not (total and is_terminal() and can_draw()):
        click.echo(f"{label}: {total:,}")
        yield Steps(None, total)
        return
    wide = shutil.get_terminal_size().columns >= _WIDE
    with click.progressbar(
        length=total, label=label, width=0, show_pos=True, show_eta=wide, show_percent=wide
    ) as bar:
        yield Steps(bar, total)
