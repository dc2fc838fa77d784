"""What each operation of the SQL session store does in the database."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import IntegrityError

from ..keys.session_store import Adoption
from ..model.owner import SessionRef
from . import sql_tables as tables
from .database import TRIES
from .engine import Transactions

#: Parameters of statements.
Values = dict[str, Any]


class Steps:
    """Runs the statements of ``sql_tables``, one by one or several as one."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def find(self, values: Values) -> str | None:
        """Return the ref that a session id leads to."""
        with self._transactions.single() as connection:
            return connection.execute(tables.FIND, values).scalar()

    def establish(self, values: Values, dead: str | None) -> str:
        """Return the ref that a session id leads to, a fresh one where that is none or ``dead``."""
        values = {"session_ref": secrets.token_hex(16), **values}
        for attempt in range(TRIES):
            try:
                with self._transactions.several() as connection:
                    found = connection.execute(tables.FIND, values).scalar()
                    if found is not None and found != dead:
                        return found
                    connection.execute(tables.RELEASE, values | {"dead_ref": dead or ""})
                    connection.execute(tables.ADD, values)
                    return str(values["session_ref"])
            except IntegrityError:
                if attempt == TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def read(self, ref: str, providers: Sequence[str]) -> Sequence[Any]:
        """Return the session's row with each of its records for these providers."""
        with self._transactions.single() as connection:
            values = {"session_ref": ref, "providers": list(providers)}
            return connection.execute(tables.READ, values).all()

    def write(self, values: Values) -> bool:
        """Store a record, in a session that is alive."""
        if self._transactions.dialect == "postgresql":
            return self.single(tables.POSTGRESQL_WRITE, values) == 1
        with self._transactions.several() as connection:
            if connection.execute(tables.CLAIM, values).rowcount != 1:
                return False
            dialect = self._transactions.dialect
            for statement in tables.UPSERT.get(dialect, tables.GENERIC_UPSERT):
                connection.execute(statement, values)
            return True

    def clear(self, values: Values) -> set[str]:
        """Delete records, and return the providers of those that there were."""
        if self._transactions.dialect == "postgresql":
            with self._transactions.single() as connection:
                return set(connection.execute(tables.POSTGRESQL_CLEAR, values).scalars())
        with self._transactions.several() as connection:
            if connection.execute(tables.TOUCH, values).rowcount != 1:
                return set()
            present = set(connection.execute(tables.PRESENT, values).scalars())
            connection.execute(tables.CLEAR, values)
            return present

    def adopt(self, values: Values, replace: bool) -> Adoption:
        """Store a record in the place of the visitor's."""
        with self._transactions.several() as connection:
            # Holds the session's row, as every write does; so none comes between.
            if connection.execute(tables.CLAIM, values).rowcount != 1:
                return "gone"
            if not replace and connection.execute(tables.PRESENT, values).first():
                return "kept"
            if connection.execute(tables.LEFT, values).first() is None:
                return "gone"
            connection.execute(tables.CLEAR, values)
            connection.execute(tables.MOVE, values)
            return "adopted"

    def both(self, hold: Any, change: Any, values: Values) -> bool:
        """Change one row while holding the session's, and say whether both were there."""
        with self._transactions.several() as connection:
            if connection.execute(hold, values).rowcount != 1:
                return False
            done: bool = connection.execute(change, values).rowcount == 1
            return done

    def renew(self, session: SessionRef, new_sid: str) -> None:
        """Let another session id lead to the session."""
        old = {"session_ref": session.ref, "session_sid": session.sid}
        new = {"session_ref": session.ref, "session_sid": new_sid}
        with self._transactions.several() as connection:
            if connection.execute(tables.UNNAME, old).rowcount == 1:
                connection.execute(tables.DETACH, new)
                connection.execute(tables.NAME, new)

    def end(self, values: Values) -> None:
        """Delete a session's records, and let nothing more be written."""
        with self._transactions.several() as connection:
            # In this order: a write under way holds the row, and is seen by the second statement.
            connection.execute(tables.BURY, values)
            connection.execute(tables.EMPTY, values)

    def canary(self, values: Values, replace: bool) -> str:
        """Return the text under a name, storing this one where there is none or to ``replace`` it."""
        try:
            with self._transactions.several() as connection:
                held = connection.execute(tables.HELD, values).scalar()
                if held is not None and not replace:
                    return held
                connection.execute(tables.HOLD if held is None else tables.REPLACE, values)
                return str(values["text"])
        except IntegrityError:
            # Another worker was first, and theirs is there now.
            return self.canary(values, replace)

    def single(self, statement: Any, values: Values) -> int:
        """Run one statement and return how many rows it changed."""
        with self._transactions.single() as connection:
            rows: int = connection.execute(statement, values).rowcount
            return rows

    def count(self, query: Any, values: Values) -> int:
        """Return the number that a query answers."""
        with self._transactions.single() as connection:
            return int(connection.execute(query, values).scalar_one())

    def state(self, ref: str) -> Any:
        """Return the session's row, or None."""
        with self._transactions.single() as connection:
            return connection.execute(tables.STATE, {"session_ref": ref}).one_or_none()
