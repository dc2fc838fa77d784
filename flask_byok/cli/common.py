"""What the commands share: errors as one sentence, access to accounts, and safe output."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from flask.cli import AppGroup

from ..accounts.wing import Wing
from ..errors import ByokError, StoreError
from ..storage.engine import patiently
from ..storage.protection import reason_of
from ..web.caller import ByokState, get_state
from .input import NEVER_AN_ARGUMENT, QuietCommand

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore

_ACCOUNTS_OFF = "There are no accounts here: BYOK_PRECEDENCE names none of user, team and system."
_UNWRITABLE = (
    "The output, or a file, cannot be written or read: {}. "
    "The command may have done its work all the same."
)
_AWAY = "The database or Redis does not answer, or refuses. Try again when it does."


class Interrupted(click.ClickException):
    """Raised after Ctrl-C, with a report of the work done; shells know the status."""

    exit_code = 130


class Commands(AppGroup):
    """A group whose commands fail with one sentence and status 1 instead of a traceback."""

    command_class = QuietCommand

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command's name; an unknown option may be a pasted key."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption:
            raise click.UsageError(NEVER_AN_ARGUMENT, ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with patiently():
                return super().invoke(ctx)
        except StoreError as error:
            raise click.ClickException(reason_of(error) or _AWAY) from None
        except ByokError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has closed the pipe
                raise
            raise click.ClickException(_UNWRITABLE.format(error.strerror)) from None
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.") from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; an unknown one is not repeated, as it may be a pasted key."""
        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail("There is no such command.")
        return super().resolve_command(ctx, args)


def require_wing() -> tuple[ByokState, Wing]:
    """Return the app's state and its wing of accounts, which answers and opens with the encryption key.

    :raises click.ClickException: there are no accounts.
    """
    state = get_state()
    wing = state.service.accounts
    if not isinstance(wing, Wing):
        raise click.ClickException(_ACCOUNTS_OFF)
    wing.store.canary.secret()
    return state, wing


def require_accounts() -> tuple[ByokState, AccountStore]:
    """Return the app's state and the store of its accounts; see ``require_wing``."""
    state, wing = require_wing()
    return state, wing.store


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: ``1 key``, ``1,204 keys``."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def in_columns(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines, with each column as wide as its longest cell."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()


def printable(text: str) -> str:
    """Return a text that cannot control the terminal: users choose ids."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
