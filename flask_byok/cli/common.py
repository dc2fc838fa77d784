"""What the commands share: arguments that are never repeated, errors in one sentence, lines of text."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import click
from flask.cli import AppGroup

from ..errors import ByokError, StoreError, UnknownProviderError
from ..storage.breaker import reason_of
from ..storage.engine import patiently

_NEVER_AN_ARGUMENT = (
    "This command does not have these arguments or options. A key is never an argument, since arguments show in lists "
    "of processes and in the shell's history: leave it out, and the command asks for it. If this was a key, replace it "
    "at the provider."
)
_NO_PROVIDER = "There is no such provider: 'flask byok providers' lists them."
_UNWRITABLE = "The output, or a file, cannot be written or read: {}. The work may have been done."
_AWAY = "The database or Redis does not answer, or refuses. Try again when it does."


# Commands


class Interrupted(click.ClickException):
    """Raised after Ctrl-C; shells know the status."""

    exit_code = 130


class QuietCommand(click.Command):
    """A command whose errors repeat no argument: people paste keys anywhere."""

    ignore_unknown_options = True
    allow_extra_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; refuse unknown ones and unusable values."""
        try:
            rest = super().parse_args(ctx, args)
        except click.MissingParameter:
            raise
        except click.BadParameter as error:
            expected = getattr(error.param, "help", None) or "See --help."
            raise click.BadParameter(expected, ctx, error.param) from None
        if rest and not ctx.resilient_parsing:
            raise click.UsageError(_NEVER_AN_ARGUMENT, ctx)
        return rest


def sentence_of(error: Exception) -> str:
    """Return what to show of an error; it repeats no argument."""
    if isinstance(error, StoreError):
        return reason_of(error) or _AWAY
    if isinstance(error, UnknownProviderError):
        return _NO_PROVIDER + str(error).removeprefix(f"{error.title}.").removeprefix(error.title)
    return str(error)


class Commands(AppGroup):
    """A group whose commands fail with one sentence and status 1 instead of a traceback."""

    command_class = QuietCommand
    ignore_unknown_options = True

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with patiently():
                return super().invoke(ctx)
        except ByokError as error:
            raise click.ClickException(sentence_of(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has closed the pipe
                raise
            raise click.ClickException(_UNWRITABLE.format(error.strerror)) from None
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.") from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find a command; an unknown one, or an option before it, is not repeated: it may be a pasted key."""
        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail("There is no such command. If this was a key, replace it at the provider.")
        return super().resolve_command(ctx, args)


byok = Commands(
    "byok", help="Manage the API keys that people bring.", context_settings={"show_default": True}
)


def padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return cells as a line, each as wide as given."""
    columns = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False))
    return "  ".join(columns).rstrip()


def printable(text: str) -> str:
    """Return a text that cannot control the terminal: users choose ids."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
