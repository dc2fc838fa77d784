"""What the commands about accounts share: the wing, options, input that repeats no value, progress."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, TextIO

import click
import msgspec

from ...accounts.wing import Wing
from ...catalog import ProviderSpec
from ...keys.service import Service
from ...model.credential import Secret
from ...web.caller import get_state
from ..common import Interrupted, padded

#: Longest input for a key or a passphrase, in bytes.
_MAX_INPUT = 64 * 1024

_ACCOUNTS_OFF = "There are no accounts here: BYOK_PRECEDENCE names none of user, team and system."


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
    except (ValueError, msgspec.DecodeError):
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
    bar = click.progressbar(length=total, label=f"{label}: {total:,}", width=0)
    try:
        with bar:
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
