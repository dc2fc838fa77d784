"""What Alembic runs; the package sets it up and gives it the connection."""

from __future__ import annotations

from alembic import context

from flask_byok.storage.migrations import VERSION_TABLE
from flask_byok.storage.tables import metadata

prints = context.is_offline_mode()
context.configure(version_table=VERSION_TABLE, literal_binds=prints, **context.config.attributes)
with context.begin_transaction():
    if prints:
        # For an empty database, which gets the newest revision with the newest tables.
        metadata.create_all(context.get_bind(), checkfirst=False)
    context.run_migrations()
