"""Databases as an older version left them."""

from __future__ import annotations

from sqlalchemy import Engine, text

from flask_byok.storage.tables import metadata, session_names


def made_by_an_older_version(engine: Engine) -> None:
    """Make tables that lack one that sessions need, and a column that accounts need."""
    tables = [table for table in metadata.sorted_tables if table is not session_names]
    metadata.create_all(engine, tables)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE byok_credentials DROP COLUMN set_at"))
