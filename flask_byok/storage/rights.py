"""Find out what the database's user may not do with the tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, Table, delete, false, insert, select, update
from sqlalchemy.exc import DBAPIError

from .engine import Transactions
from .migrate import is_without_right
from .tables import metadata


def missing_rights(engine: Engine) -> list[str]:
    """Return what the user may not do, such as ``INSERT on byok_usage``; it changes no row.

    A database that is read-only raises what its driver says.
    """
    transactions = Transactions(engine)
    return [
        f"{right} on {table.name}"
        for table in metadata.sorted_tables
        for right, statement in _statements(table)
        if not transactions.call(_may, transactions, statement)
    ]


def _statements(table: Table) -> Iterator[tuple[str, Any]]:
    """Yield statements that need a right, and find no row."""
    columns = list(table.c)
    nothing = select(*columns).where(false())
    yield "SELECT", nothing
    yield "INSERT", insert(table).from_select(columns, nothing)
    yield "UPDATE", update(table).where(false()).values({columns[-1]: columns[-1]})
    yield "DELETE", delete(table).where(false())


def _may(transactions: Transactions, statement: Any) -> bool:
    try:
        with transactions.several() as connection:
            connection.execute(statement)
    except DBAPIError as error:
        if is_without_right(error):
            return False
        raise
    return True
