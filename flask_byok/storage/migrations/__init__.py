"""How the tables came to be: an Alembic environment."""
