"""What operators type: arguments that are not repeated, and keys that are no arguments."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
import msgspec

from ..catalog import ProviderSpec
from ..errors import UnknownProviderError
from ..model.credential import Secret
from ..web.caller import ByokState

#: Longest input for a key or a passphrase, in bytes.
MAX_INPUT = 64 * 1024

#: The error for unknown arguments and options.
NEVER_AN_ARGUMENT = (
    "This command does not have these arguments or options. A key is never an argument, since arguments show in lists "
    "of processes and in the shell's history: leave it out, and the command asks for it. If this was a key, replace it "
    "at the provider."
)


class QuietCommand(click.Command):
    """A command whose errors repeat no argument: people paste keys anywhere."""

    ignore_unknown_options = True
    allow_extra_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and refuse unknown ones."""
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            raise click.UsageError(NEVER_AN_ARGUMENT, ctx)
        return rest


class WholeNumber(click.IntRange):
    """A whole number; its error does not repeat the value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            message = f"use a whole number from {self.min} to {self.max}."
            raise click.BadParameter(message, ctx, param) from None


def word(pattern: str, expected: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return the callback of an option whose value must match a pattern; its error does not repeat the value."""
    form = re.compile(pattern)

    def check(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is not None and not form.fullmatch(value):
            raise click.BadParameter(f"use {expected}.", ctx, param)
        return value

    return check


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Return the time that an option names; the error does not repeat the value."""
    try:
        return None if value is None else datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter("use a time such as 2030-01-31T00:00:00Z.", ctx, param) from None


owner_word = word(r"(?=.{1,255}$)(system|(user|team):.+)", "'system', 'user:<id>' or 'team:<id>'")
slot_word = word("[A-Za-z0-9_-]{1,40}", "1 to 40 letters, digits, '_' and '-'")


def find_provider(state: ByokState, provider: str) -> ProviderSpec:
    """Return a provider by its id or alias.

    :raises click.ClickException: there is none; the message names the command that lists them.
    """
    try:
        return state.service.catalog.get(provider)
    except UnknownProviderError:
        raise click.ClickException(
            "There is no such provider: 'flask byok providers' lists them."
        ) from None


def read_fields(spec: ProviderSpec) -> dict[str, Secret]:
    """Read a credential's fields: prompt at a terminal, else read stdin.

    Stdin has the key itself for a provider with one field, and a JSON object for others.
    """
    if is_at_terminal():
        return {f.name: Secret(_ask(f.label, hidden=f.secret)) for f in spec.fields}
    text = read_stdin()
    if len(spec.fields) == 1:
        return {spec.fields[0].name: Secret(text)}
    try:
        fields = msgspec.json.decode(text, type=dict[str, str])
    except ValueError:
        names = ", ".join(field.name for field in spec.fields)
        raise click.ClickException(
            f"{spec.name} has several fields: write a JSON object with {names} to stdin."
        ) from None
    return {name: Secret(value) for name, value in fields.items()}


def read_passphrase(*, twice: bool) -> str:
    """Read a passphrase: prompt at a terminal, else read the first line of stdin."""
    if is_at_terminal():
        return _ask("Passphrase", hidden=True, twice=twice)
    return read_stdin().partition("\n")[0].removesuffix("\r")


def is_at_terminal() -> bool:
    """Return True if the command can prompt; stdin may be closed."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_stdin() -> str:
    """Return the text of stdin."""
    content = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_INPUT + 1)
    try:
        if len(content) > MAX_INPUT:
            raise ValueError
        return content.decode()
    except ValueError:
        raise click.ClickException("The input on stdin is no text, or far too long.") from None


def _ask(label: str, *, hidden: bool, twice: bool = False) -> str:
    try:
        answer: Any = click.prompt(
            label,
            default="",
            hide_input=hidden,
            confirmation_prompt=twice,
            show_default=False,
            err=True,
        )
        str(answer).encode()  # a terminal may send bytes that are no character
    except UnicodeError:
        raise click.ClickException("The input is no text.") from None
    return str(answer)
