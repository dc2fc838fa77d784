"""What Alembic runs; the package sets it up and gives it the connection."""

from __future__ import annotations

from alembic import context

from flask_byok.storage.migrations import VERSION_TABLE
from flask_byok.storage.tables import metadata

attributes = context.config.attributes
if context.is_offline_mode():
    context.configure(
        dialect_name=attributes["dialect"],
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        literal_binds=True,
    )
else:
    context.configure(
        connection=attributes["connection"],
        target_metadata=metadata,
        version_table=VERSION_TABLE,
    )
with context.begin_transaction():
    context.run_migrations()
