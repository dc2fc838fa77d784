"""The command line: ``flask byok``, one module a family of commands."""

from __future__ import annotations

from .audit import audit
from .check import check
from .common import Commands
from .database import database
from .keys import clear_key, list_keys, set_key
from .purge import purge_expired
from .rotate import rotate_keys
from .settings import generate_key, providers
from .transfer import export_file, import_environment, import_file

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
