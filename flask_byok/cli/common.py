"""What the commands share: options and input that repeat no value, errors in one sentence, progress."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, TextIO

import click
import msgspec
from flask.cli import AppGroup

from ..accounts.wing import Wing
from ..catalog import ProviderSpec
from ..errors import ByokError, StoreError, UnknownProviderError
from ..keys.service import Service
from ..model.credential import Secret
from ..storage.engine import patiently
from ..storage.reasons import reason_of
from ..web.caller import get_state

#: Longest input for a key or a passphrase, in bytes.
_MAX_INPUT = 64 * 1024

_NEVER_AN_ARGUMENT = (
    "This command does not have these arguments or options. A key is never an argument, since arguments show in lists "
    "of processes and in the shell's history: leave it out, and the command asks for it. If this was a key, replace it "
    "at the provider."
)
_ACCOUNTS_OFF = "There are no accounts here: BYOK_PRECEDENCE names none of user, team and system."
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
    return _NO_PROVIDER if isinstance(error, UnknownProviderError) else str(error)


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


def require_wing() -> tuple[Service, Wing]:
    """Return the app's service and its wing of accounts, which answers and opens with the encryption key.

    :raises click.ClickException: there are no accounts.
    """
    service = get_state().service
    wing = service.accounts
    if not isinstance(wing, Wing):
        raise click.ClickException(_ACCOUNTS_OFF)
    wing.store.canary.secret()
    return service, wing


# Options


def matching(pattern: str) -> Callable[[str], str]:
    """Return the type of an option whose value must match a pattern."""
    form = re.compile(pattern)

    def convert(value: str) -> str:
        if not form.fullmatch(value):
            raise ValueError
        return value

    return convert


_owner = matching(r"(?=.{1,255}$)(system|(user|team):.+)")
_owner_option = partial(click.option, "--owner", type=_owner, metavar="OWNER")
only_owner = _owner_option(help="Only of 'system', 'user:<id>' or 'team:<id>'.")
for_owner = _owner_option(default="system", help="Of 'system', 'user:<id>' or 'team:<id>'.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def time_option(name: str, help: str, **facts: Any) -> Callable[[Any], Any]:
    """Return an option with a time in ISO 8601."""
    convert, example = datetime.fromisoformat, "such as 2030-01-31T00:00:00Z."
    return click.option(name, type=convert, metavar="TIME", help=f"{help}, {example}", **facts)


# Input


def is_terminal(stream: TextIO | None) -> bool:
    """Return True if a standard stream is a terminal; it may be closed."""
    return stream is not None and stream.isatty()


def confirm(question: str, yes: bool) -> None:
    """Ask before something is deleted, unless ``--yes`` was given."""
    if yes:
        return
    if not is_terminal(sys.stdin):
        raise click.ClickException("Not a terminal: pass --yes to confirm.")
    click.confirm(question, abort=True, err=True)


def read_fields(spec: ProviderSpec) -> dict[str, Secret]:
    """Read a credential's fields: prompt at a terminal, else read stdin.

    Stdin has the key itself for a provider with one field, and a JSON object for others.
    """
    if is_terminal(sys.stdin):
        return {each.name: Secret(_ask(each.label, hidden=each.secret)) for each in spec.fields}
    text = _read_stdin()
    names = [field.name for field in spec.fields]
    if len(names) == 1:
        return {names[0]: Secret(text)}
    try:
        fields = msgspec.json.decode(text, type=dict[str, str])
    except ValueError:
        raise click.ClickException(
            f"{spec.name} has several fields: write a JSON object with {', '.join(names)} to stdin."
        ) from None
    return {name: Secret(value) for name, value in fields.items()}


def read_passphrase(*, twice: bool) -> str:
    """Read a passphrase: prompt at a terminal, else read the first line of stdin."""
    if is_terminal(sys.stdin):
        return _ask("Passphrase", hidden=True, twice=twice)
    return _read_stdin().partition("\n")[0].removesuffix("\r")


def _read_stdin() -> str:
    content = b"" if sys.stdin is None else sys.stdin.buffer.read(_MAX_INPUT + 1)
    try:
        if len(content) > _MAX_INPUT:
            raise ValueError
        return content.decode()
    except ValueError:
        raise click.ClickException("The input on stdin is no text, or far too long.") from None


def _ask(label: str, *, hidden: bool, twice: bool = False) -> str:
    try:
        answer: str = click.prompt(
            label, "", hidden, confirmation_prompt=twice, show_default=False, err=True
        )
        answer.encode()  # a terminal may send bytes that are no character
    except UnicodeError:
        raise click.ClickException("The input is no text.") from None
    return answer


# Output


@contextmanager
def steps(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many steps of all are done; after Ctrl-C, say how many were.

    A terminal has a bar; elsewhere there is one line with the number of all.
    """
    with click.progressbar(length=total, label=f"{label}: {total:,}", width=0) as bar:
        try:
            yield lambda done: bar.update(done - bar.pos)
        except KeyboardInterrupt:
            done = f"{bar.pos:,} of {total:,} are done"
            raise Interrupted(f"Interrupted: {done}. Run it again to go on.") from None


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: ``1 key``, ``1,204 keys``."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def in_columns(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines, with each column as wide as its longest cell."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield padded(row, widths)


def padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return cells as a line, each as wide as given."""
    columns = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False))
    return "  ".join(columns).rstrip()


def printable(text: str) -> str:
    """Return a text that cannot control the terminal: users choose ids."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
