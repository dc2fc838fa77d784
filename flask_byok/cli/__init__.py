"""The command line: ``flask byok``, one module a family of commands."""

from __future__ import annotations

from flask.cli import AppGroup

from .database import database
from .settings import check, generate_key, providers

byok = AppGroup("byok", help="Manage the API keys that people bring.")
for command in (generate_key, providers, check, database):
    byok.add_command(command)
