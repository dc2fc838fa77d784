"""The command line: ``flask byok``, one module a family of commands."""

from __future__ import annotations

from .accounts.audit import audit
from .accounts.keys import clear_key, list_keys, set_key
from .accounts.purge import purge_expired
from .accounts.rotate import rotate_keys
from .accounts.transfer import export_file, import_environment, import_file
from .check import check
from .common import Commands
from .setup import database, generate_key, providers

byok = Commands("byok", help="Manage the API keys that people bring.")
for command in (
    generate_key,
    providers,
    check,
    database,
    rotate_keys,
    purge_expired,
    audit,
    list_keys,
    set_key,
    clear_key,
    import_environment,
    export_file,
    import_file,
):
    byok.add_command(command)
