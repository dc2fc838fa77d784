"""Find the database: the one that is set, else the host's own, else a SQLite file in the instance folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flask import Flask

from ..settings import Settings

#: The warning if the host's engine comes too late.
LATE_ENGINE = (
    "This app has Flask-SQLAlchemy, but keys are in a SQLite file in the instance folder: BYOK was set up before the "
    "engine was there. Call db.init_app(app) before byok.init_app(app), or set BYOK_DATABASE_URL."
)
_INSTANCE = "a file in the instance folder"

_logger = logging.getLogger("flask_byok")


@dataclass(frozen=True, slots=True)
class FoundDatabase:
    """Where the database is (an engine or an address), and the setting or extension that says so."""

    place: Any
    source: str
    #: True for the file in the instance folder, which nothing else uses.
    own_file: bool = False


def find_database(app: Flask, settings: Settings) -> FoundDatabase:
    """Return the database of an app that is being set up."""
    file = f"sqlite:///{Path(app.instance_path) / 'byok.sqlite3'}"
    if url := settings.database_url:
        return FoundDatabase(url, "BYOK_DATABASE_URL", own_file=url == file)
    if (engine := host_engine(app)) is not None:
        return FoundDatabase(engine, "the app's Flask-SQLAlchemy")
    return FoundDatabase(file, _INSTANCE, own_file=True)


def host_engine(app: Flask) -> Any:
    """Return the engine of the host's Flask-SQLAlchemy or Flask-SQLAlchemy-Lite, or None if there is none (yet)."""
    extension = app.extensions.get("sqlalchemy")
    if extension is None:
        return None
    with app.app_context():
        try:
            return extension.engine
        except (AttributeError, KeyError):
            return None  # asynchronous engines only


def is_late(app: Flask, found: FoundDatabase) -> bool:
    """Return True if keys are in the file although the host has a database, which was set up after us."""
    return found.source == _INSTANCE and host_engine(app) is not None


def warn_if_late(app: Flask, found: FoundDatabase) -> None:
    """Log, at the first request only, that the host's database was set up after us."""

    @cache
    def look() -> None:
        if is_late(app, found):
            _logger.warning(LATE_ENGINE)

    if found.source == _INSTANCE:
        app.before_request(look)
