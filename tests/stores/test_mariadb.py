"""What is written differently for MariaDB, on which the stores were tried by hand."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import Engine, Table, Update, event
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateTable

from flask_byok.accounts.store.statements import change
from flask_byok.errors import StoreError
from flask_byok.storage import migrate
from flask_byok.storage.sql_tables import CLAIM, TOUCH
from flask_byok.storage.tables import metadata

from .test_sql import store_on

DIALECT = mysql.dialect()


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=str)
def test_texts_are_compared_as_they_are(table: Table) -> None:
    """No column takes capital letters or spaces at the end for something else than they are."""
    lines = str(CreateTable(table).compile(dialect=DIALECT)).splitlines()
    texts = [line for line in lines if "VARCHAR" in line or "TEXT" in line]
    assert texts
    assert all("COLLATE utf8mb4_nopad_bin" in line for line in texts)


def test_migrations_say_the_same() -> None:
    """The migrations make the columns so as well, but for the one of Alembic's own table."""
    lines = migrate.sql("mysql").splitlines()
    texts = [line for line in lines if "VARCHAR" in line or "TEXT" in line]
    other = [line for line in texts if "COLLATE utf8mb4_nopad_bin" not in line]
    assert len(texts) > 40
    assert [line.split()[0] for line in other] == ["version_num"]


@pytest.mark.parametrize("statement", [TOUCH, CLAIM])
def test_sessions_are_found_by_their_ref(statement: Update) -> None:
    """A session is not looked for along what the statement itself changes."""
    written = str(statement.compile(dialect=DIALECT))
    assert written.startswith("UPDATE byok_sessions FORCE INDEX (PRIMARY) SET")


@pytest.mark.parametrize("names", [("label",), ("ciphertext", "verdict", "verdict_at")])
def test_version_is_set_last(names: tuple[str, ...]) -> None:
    """What depends on the version before is set before the version, as assignments come in turn there."""
    sets = str(change(names).compile(dialect=DIALECT)).partition(" WHERE ")[0]
    assert sets.splitlines()[0].rpartition(", ")[2].startswith("version=")


class Closed:
    """Lets the next so many connections be found closed."""

    def __init__(self, engine: Engine) -> None:
        self.times = 0
        event.listen(engine, "engine_connect", self._fail)

    def _fail(self, _: object) -> None:
        if self.times:
            self.times -= 1
            raise sqlite3.OperationalError("closed")


def test_connection_found_closed(sqlite_url: str) -> None:
    """What a driver raises as a connection is made ready is taken as the database's failure."""
    store = store_on(sqlite_url)
    store.establish("sid-1")
    closed = Closed(store.engine)
    closed.times = 1
    assert store.find("sid-1")
    closed.times = 2
    with pytest.raises(StoreError):
        store.find("sid-1")
    assert store.find("sid-1")
    store.engine.dispose()
