"""The SQL store, on SQLite and PostgreSQL."""

from __future__ import annotations

import pytest

from flask_byok.stores.sql import SqlSessionStore

from .contract import MakeStore, SessionStoreContract


class TestSqlite(SessionStoreContract):
    """A SQLite file passes the contract."""

    @pytest.fixture
    def make_store(self, sqlite_url: str) -> MakeStore:
        """Make stores from the address."""
        return lambda **options: SqlSessionStore(sqlite_url, **options)


class TestPostgresql(SessionStoreContract):
    """PostgreSQL passes the contract."""

    @pytest.fixture
    def make_store(self, postgres_url: str) -> MakeStore:
        """Make stores from the address."""
        return lambda **options: SqlSessionStore(postgres_url, **options)
