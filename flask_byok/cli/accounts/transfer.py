"""Moving in and out: ``flask byok import-env|export|import``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import click
from flask.cli import with_appcontext

from ...accounts.environment import Found, find_keys, store_key
from ...accounts.export_file import SealedReader, SealedWriter
from ...accounts.importer import Imported, Importer
from ...accounts.transfer import export_keys, read_keys
from ...keys.operator import EnvironmentKeys, SecretFileKeys
from ...keys.session_store import AuditEvent
from ...model.credential import isoformat
from ...model.owner import Tier
from ...settings import Settings
from ..common import Interrupted, counted, in_columns, printable, require_accounts
from ..files import new_file, opened
from ..input import QuietCommand, owner_word, read_passphrase, word
from ..progress import steps

#: Whoever has the file can try passphrases for years.
SHORTEST_PASSPHRASE = 12


@click.command("import-env", cls=QuietCommand)
@click.option(
    "--owner",
    callback=owner_word,
    metavar="OWNER",
    default="system",
    show_default=True,
    help="Whose to make them.",
)
@click.option("--replace", is_flag=True, help="Put them in the place of different ones.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@with_appcontext
def import_environment(owner: str, replace: bool, dry_run: bool) -> None:
    """Copy the operator's keys from environment variables and secret files into the database."""
    state, accounts = require_accounts()
    settings, keyring = state.settings, state.service.keyring
    specs = list(state.service.catalog)
    everything = list(find_keys(accounts, keyring, settings, specs, _sources(settings), owner))
    stored, rows = {}, list[tuple[str, ...]]()
    for found in everything:
        wanted = found.kind == "new" or (found.kind in ("different", "idle") and replace)
        done = wanted and (
            dry_run or store_key(accounts, keyring, settings, found, owner, replace=replace)
        )
        if wanted and not done:
            found = dataclasses.replace(found, kind="new")  # what was in its place has gone
        if done or found.kind == "same":
            stored[found.spec.id] = found.fields
        rows.append(_row(found, done=done, dry_run=dry_run))
    for line in in_columns(rows):
        click.echo(line)
    removable = [each.name for each in everything if each.fields == stored.get(each.spec.id)]
    _print_removable(removable, settings, owner, dry_run=dry_run)
    if any(each.kind == "unusable" for each in everything):
        raise click.exceptions.Exit(1)


@click.command("export", cls=QuietCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--owner",
    callback=owner_word,
    metavar="OWNER",
    help="Only the keys of 'system', 'user:<id>' or 'team:<id>'.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@with_appcontext
def export_file(file: Path, owner: str | None, force: bool) -> None:
    """Write the stored keys to a file that is sealed with a passphrase.

    The passphrase is asked for, or read from stdin where that is no terminal.
    """
    state, accounts = require_accounts()
    if owner is not None and not accounts.page([owner], limit=1)[0]:
        raise click.ClickException("This owner has no keys here.")
    if file.exists() and not force:
        raise click.ClickException("There is such a file already: --force writes over it.")
    passphrase = read_passphrase(twice=True)
    if len("".join(passphrase.split())) < SHORTEST_PASSPHRASE:
        raise click.ClickException(
            f"A passphrase has {SHORTEST_PASSPHRASE} characters or more, blanks not counted: several words "
            "are best."
        )
    with new_file(file, force=force) as written:
        sealed = SealedWriter(written, passphrase)
        result = export_keys(accounts, state.service.keyring, sealed, owner=owner)
    accounts.audit.note("system", AuditEvent("cli", "export"))  # not before the file is there
    click.echo(f"Exported {counted(result.keys, 'key')}.")
    for place in result.unreadable:
        click.echo(f"left out, as it does not open: {printable(' '.join(place))}", err=True)
    if result.unreadable:
        raise click.exceptions.Exit(1)


@click.command("import", cls=QuietCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--on-conflict",
    callback=word("keep|replace", "'keep' or 'replace'"),
    metavar="keep|replace",
    default="keep",
    show_default=True,
    help="What to do where a different key is stored.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@with_appcontext
def import_file(file: Path, on_conflict: str, dry_run: bool) -> None:
    """Store the keys of a file that 'flask byok export' has written.

    The passphrase is asked for, or read from stdin where that is no terminal. If this is interrupted, run it again.
    """
    state, accounts = require_accounts()
    importer = Importer(
        accounts,
        state.service.keyring,
        state.service.catalog,
        state.settings,
        replace=on_conflict == "replace",
        dry_run=dry_run,
    )
    with opened(file) as source:
        sealed = SealedReader(source, read_passphrase(twice=False))
        total = sum(1 for _ in read_keys(sealed))  # all of it opens before any of it is stored
        _import(importer, sealed, total)
    _print_imported(importer.result, dry_run=dry_run)


def _import(importer: Importer, sealed: SealedReader, total: int) -> None:
    try:
        with steps("Importing", total) as shown:
            importer.run(read_keys(sealed), shown.reach)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted: {counted(importer.result.total, 'key')} of {total:,} are done. Run it again to go on."
        ) from None


def _sources(settings: Settings) -> Sequence[EnvironmentKeys | SecretFileKeys]:
    """Return where the operator's keys are, in the order in which they serve."""
    both: dict[Tier, EnvironmentKeys | SecretFileKeys] = {
        Tier.SECRET: SecretFileKeys(settings.secrets_dir),
        Tier.ENV: EnvironmentKeys(),
    }
    order = dict.fromkeys([*settings.precedence, *both])
    return [both[tier] for tier in order if tier in both]


def _row(found: Found, *, done: bool, dry_run: bool) -> tuple[str, ...]:
    said = _done(found, dry_run=dry_run) if done else _left(found)
    if found.expires_at is not None and (done or found.kind == "same"):
        said += f", expires {isoformat(found.expires_at)}"
    return found.spec.id, f"{found.name} ({found.tier})", found.hint, said


def _done(found: Found, *, dry_run: bool) -> str:
    done = "added" if found.kind == "new" else "replaced"
    return f"would be {done}" if dry_run else done


def _left(found: Found) -> str:
    return {
        "new": "not added: another one was saved meanwhile, or BYOK_KEYS_PER_PROVIDER leaves no room",
        "different": "kept: a different key is stored; --replace puts this one in its place",
        "idle": f"kept: it is stored, but {found.problem}; --replace stores it anew",
        "same": "unchanged",
        "shadowed": "not copied: another one for this provider comes first",
        "unusable": found.problem,
    }[found.kind]


def _print_removable(names: list[str], settings: Settings, owner: str, *, dry_run: bool) -> None:
    if owner != "system" and names:
        click.echo("Nothing can be removed: it serves everybody, and the copies one owner only.")
        return
    if not names:
        click.echo("Nothing can be removed.")
        return
    click.echo(f"Can be removed {'afterwards' if dry_run else 'now'}: {', '.join(names)}")
    tier, order = owner.partition(":")[0], list(settings.precedence)
    click.echo(f"Keys are looked for in this order: {', '.join(order)}.")
    if tier not in order:
        click.echo(f"{tier} is not among them: remove nothing before BYOK_PRECEDENCE names it.")
        return
    first = [each for each in order[: order.index(Tier(tier))] if each in (Tier.SECRET, Tier.ENV)]
    if first:
        click.echo(
            f"{' and '.join(first)} before {tier}: what is stored serves once these are gone."
        )
    else:
        click.echo(f"{tier} before secret files and variables: what is stored serves already.")


def _print_imported(result: Imported, *, dry_run: bool) -> None:
    click.echo(
        f"{'Would have added' if dry_run else 'Added'} {result.added:,}, replaced {result.replaced:,}; "
        f"unchanged {result.unchanged:,}, kept though different {result.kept:,}."
    )
    for (provider, problem), count in sorted(result.left_out.items()):
        click.echo(
            f"left out: {counted(count, 'key')} for {printable(provider)}: {problem}", err=True
        )
    for place in result.without_room:
        click.echo(f"left out, as there is no room: {printable(' '.join(place))}", err=True)
    if result.left_out:
        raise click.exceptions.Exit(1)
