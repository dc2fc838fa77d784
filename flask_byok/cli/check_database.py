"""What ``flask byok check`` says of the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import current_app

from ..errors import ConfigurationError
from ..web.host_database import LATE_ENGINE, FoundDatabase, host_engine, is_late
from .values import shown_address

_DROPPED = (
    "Flask-Migrate is set up on this database, and nothing keeps our tables out of its migrations: 'flask db migrate' "
    "would write one that drops them. See 'Its tables' in the documentation on deployment."
)
_SQLITE = (
    "accounts are in a SQLite file, which the workers of one machine can share; for several machines use "
    "PostgreSQL."
)


def describe(found: FoundDatabase) -> tuple[str, str, str]:
    """Return a line on where the database is, without user and password."""
    return "database", shown_address(found.place), found.source


def notes(found: FoundDatabase, dialect: str) -> list[str]:
    """Return what may be right for some apps."""
    said = [_SQLITE] if dialect == "sqlite" else []
    return [*said, _DROPPED] if _would_be_dropped(found) else said


def misplaced(found: FoundDatabase) -> list[str]:
    """Return a sentence where keys are not in the database that the host has."""
    return [LATE_ENGINE] if is_late(current_app, found) else []


def require_rights(engine: Any) -> None:
    """Try every right that the app needs.

    :raises ConfigurationError: some are missing; it names them.
    """
    from ..storage.migrate import missing_rights

    if missing := missing_rights(engine):
        raise ConfigurationError(
            f"The database's user has not these rights: {', '.join(missing)}. Let an administrator GRANT them."
        )


def _would_be_dropped(found: FoundDatabase) -> bool:
    migrate, host = current_app.extensions.get("migrate"), host_engine(current_app)
    if migrate is None or host is None or shown_address(host) != shown_address(found.place):
        return False
    if migrate.configure_args.keys() & {"include_name", "include_object"}:
        return False
    env = Path(migrate.directory) / "env.py"
    return not (env.exists() and "byok" in env.read_text())
