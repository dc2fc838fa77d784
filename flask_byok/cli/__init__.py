"""The command line: ``flask byok``, one module a family of commands."""

from __future__ import annotations

from .accounts import audit, keys, transfer
from .common import Commands
from .setup import check, database, generate_key, providers

byok = Commands("byok", help="Manage the API keys that people bring.")
for command in (
    *(generate_key, providers, check, database),
    *(keys.list_keys, keys.set_key, keys.clear_key, keys.purge_expired, keys.rotate_keys),
    *(transfer.import_environment, transfer.export_file, transfer.import_file),
    audit.audit,
):
    byok.add_command(command)
