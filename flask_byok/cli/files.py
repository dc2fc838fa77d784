"""Files that commands write and read."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

import click


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a file that takes its name when it is whole, and that its owner alone may read."""
    try:
        with _told_to_end():
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                # A link fails where somebody has made such a file meanwhile.
                (os.replace if force else os.link)(name, path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name)
    except OSError as error:
        raise click.ClickException(f"The file cannot be written: {error.strerror}.") from None


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file that can be read more than once."""
    try:
        with path.open("rb") as file:
            if not file.seekable():
                raise click.ClickException("The file is read twice: give one on a disk.")
            yield file
    except OSError as error:
        raise click.ClickException(f"The file cannot be read: {error.strerror}.") from None


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end things as Ctrl-C does, so that no part of a file stays."""

    def leave(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    ends = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in ends]
    try:
        yield
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)
