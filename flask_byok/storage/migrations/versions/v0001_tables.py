"""The tables of the first version, from which every later migration begins.

An empty database needs no migration: it gets the tables of :mod:`flask_byok.storage.tables` as they are now,
and the newest revision.
"""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Change nothing."""
