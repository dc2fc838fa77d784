"""Moving keys in and out: ``flask byok import-env|export|import``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from ...accounts.export_file import LARGEST_FILE
from ...accounts.store import AuditEvent
from ...accounts.transfer import (
    Copied,
    Importer,
    KeyTransfer,
    copy_keys,
    export_keys,
    from_file,
    to_file,
)
from ...model.credential import isoformat
from ...model.owner import Tier
from ...settings import Settings
from ..common import byok, printable
from . import common

#: A person with the file can try passphrases for years.
SHORTEST_PASSPHRASE = 12


@byok.command("import-env")
@common.for_owner
@click.option("--replace", is_flag=True, help="Put them in the place of different ones.")
@common.dry_run_option
def import_environment(owner: str, replace: bool, dry_run: bool) -> None:
    """Copy the operator's keys from environment variables and secret files into the database."""
    transfer = KeyTransfer(*common.require_wing())
    copied = list(copy_keys(transfer, owner, replace=replace, dry_run=dry_run))
    for line in common.in_columns([_row(each, dry_run=dry_run) for each in copied]):
        click.echo(line)
    click.echo(_advice(copied, transfer.settings, owner, dry_run=dry_run))
    if any(each.outcome == "skipped" for each in copied):
        raise click.exceptions.Exit(1)


@byok.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@common.only_owner
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def export_file(file: Path, owner: str | None, force: bool) -> None:
    """Write the stored keys to a file that is encrypted with a passphrase.

    The passphrase is asked for at a terminal; otherwise it is read from stdin.
    """
    transfer = KeyTransfer(*common.require_wing())
    if owner is not None and not transfer.accounts.page([owner], limit=1)[0]:
        raise click.ClickException("This owner has no keys here.")
    if file.exists() and not force:
        raise click.ClickException("The file exists: pass --force to replace it.")
    passphrase = common.read_passphrase(twice=True)
    if len("".join(passphrase.split())) < SHORTEST_PASSPHRASE:
        raise click.ClickException(
            f"A passphrase has {SHORTEST_PASSPHRASE} characters or more, blanks not counted: several words "
            "are best."
        )
    keys, unreadable = export_keys(transfer, owner)
    _write_new(file, to_file(keys, passphrase), force=force)
    transfer.accounts.audit.note("system", AuditEvent("cli", "export"))  # the file is there
    click.echo(f"Exported {common.counted(len(keys), 'key')}.")
    for place in unreadable:
        click.echo(f"left out, as it does not open: {printable(' '.join(place))}", err=True)
    if unreadable:
        raise click.exceptions.Exit(1)


@byok.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--on-conflict",
    type=click.Choice(["keep", "replace"]),
    default="keep",
    help="If a different key is stored, keep or replace it.",
)
@common.dry_run_option
def import_file(file: Path, on_conflict: str, dry_run: bool) -> None:
    """Store the keys of a file that 'flask byok export' has written.

    The passphrase is asked for at a terminal; otherwise it is read from stdin. If this is interrupted, run it again.
    """
    transfer = KeyTransfer(*common.require_wing())
    importer = Importer(transfer, replace=on_conflict == "replace", dry_run=dry_run)
    try:
        with file.open("rb") as source:
            content = source.read(LARGEST_FILE + 1)
    except OSError as error:
        raise click.ClickException(f"The file cannot be read: {error.strerror}.") from None
    keys = from_file(content, common.read_passphrase(twice=False))
    with common.steps("Importing", len(keys)) as reach:
        result = importer.run(keys, reach)
    click.echo(
        f"{'Would have added' if dry_run else 'Added'} {result.added:,}, replaced {result.replaced:,}; "
        f"unchanged {result.unchanged:,}, kept though different {result.kept:,}."
    )
    for (provider, problem), count in sorted(result.left_out.items()):
        click.echo(
            f"left out: {common.counted(count, 'key')} for {printable(provider)}: {problem}",
            err=True,
        )
    for place in result.without_room:
        click.echo(f"left out, as there is no room: {printable(' '.join(place))}", err=True)
    if result.left_out:
        raise click.exceptions.Exit(1)


def _row(copied: Copied, *, dry_run: bool) -> tuple[str, ...]:
    planned = "would be " if copied.outcome == "added" and dry_run else ""
    reason = copied.reason and f": {copied.reason}"
    ends = "" if copied.expires_at is None else f", expires {isoformat(copied.expires_at)}"
    outcome = f"{planned}{copied.outcome}{reason}{ends}"
    return copied.provider, f"{copied.name} ({copied.tier})", copied.hint, outcome


def _advice(copied: Sequence[Copied], settings: Settings, owner: str, *, dry_run: bool) -> str:
    """Return a sentence with the variables and files that the app can do without."""
    names = ", ".join(each.name for each in copied if each.removable)
    if not names:
        return "Nothing can be removed."
    if owner != "system":
        return "Nothing can be removed: it serves everybody, and the copies one owner only."
    if Tier.SYSTEM not in settings.precedence:
        return "Nothing can be removed before BYOK_PRECEDENCE names 'system'."
    return f"Can be removed {'afterwards' if dry_run else 'now'}: {names}"


def _write_new(path: Path, content: bytes, *, force: bool) -> None:
    """Write a file that only its owner may read, and that takes its name when it is complete."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # A link fails if there is such a file by now.
            (os.replace if force else os.link)(name, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        raise click.ClickException(f"The file cannot be written: {error.strerror}.") from None
