"""Forget an owner whom the host deletes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, delete, select

from ...keys.session_store import AuditEvent
from ...model.credential import CredentialRecord
from ...storage.database import Database
from ...storage.tables import credentials, promotions, usage
from . import changes as steps
from .audit import AuditLog
from .audit_chain import Chain

_THEIRS = select(credentials).where(credentials.c.owner == bindparam("of_owner"))
_BESIDE = tuple(
    delete(table).where(table.c.owner == bindparam("of_owner")) for table in (usage, promotions)
)


class AccountOwners:
    """Deletes all that there is of an owner, but for the audit log."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    def forget(self, owner: str, event: AuditEvent) -> list[CredentialRecord]:
        """Delete an owner's keys, each with its row in the log, what was counted and what was promoted.

        Where it fails half way it can be done again. Return the keys as they were.
        """
        values = {"of_owner": owner}

        def work(connection: Connection, chain: Chain) -> list[CredentialRecord]:
            return steps.delete(connection, chain, _THEIRS, values, event)

        # Whoever has no key gets no chain.
        gone = self._audit.change(owner, work) if self._has_keys(owner) else []
        # Apart from the keys: who counts a use holds the row of its count, and waits for the key's.
        for statement in _BESIDE:
            self._database.call(self._execute, statement, values)
        return gone

    def _has_keys(self, owner: str) -> bool:
        query = _THEIRS.with_only_columns(credentials.c.id).limit(1)
        return self._database.call(self._first, query, {"of_owner": owner}) is not None

    def _first(self, query: Any, values: dict[str, str]) -> Any:
        with self._database.transactions.single() as connection:
            return connection.execute(query, values).first()

    def _execute(self, statement: Any, values: dict[str, str]) -> None:
        with self._database.transactions.single() as connection:
            connection.execute(statement, values)
