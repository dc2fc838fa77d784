"""Session documents in a SQL database: the default, for apps without Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from ..errors import StoreError
from .database import Database
from .deadline import LONG_LIMIT
from .tables import canaries, session_documents, session_names

#: Rows of a table that one purge deletes, and documents that one step of a count reads.
BATCH = 200
#: Seconds between two purges by a process, and while there is more to delete than one batch.
_PAUSE, _SHORT_PAUSE = 60, 1

_document, _name, _canary = session_documents.c, session_names.c, canaries.c

# Built once, as each call of the session tier needs one of these.
_LOAD = select(_document.revision, _document.body).where(_document.ref == bindparam("of_ref"))
_SWAP = (
    update(session_documents)
    .where(_document.ref == bindparam("of_ref"), _document.revision == bindparam("seen"))
    .values({name: bindparam(name) for name in ("revision", "body", "expires_at")})
)
HELD = select(_canary.sealed).where(_canary.name == bindparam("called"))
HOLD = insert(canaries).values(name=bindparam("called"), sealed=bindparam("text"))
REPLACE = (
    update(canaries).where(_canary.name == bindparam("called")).values(sealed=bindparam("text"))
)


class SqlDocuments:
    """Keeps each document in one row, and each session id in another.

    Changes delete expired rows, a batch a minute in each process. SQLite has one writer at a time, and
    writers queue for it for 5 seconds.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param own_file: nothing else uses the SQLite file, so an older version's tables in it are upgraded
        at first use.
    """

    name = "the database"

    def __init__(
        self,
        engine_or_url: Any,
        *,
        clock: Callable[[], float] = time.time,
        own_file: bool = False,
    ) -> None:
        needed = (session_documents, session_names, canaries)
        self._database = Database(engine_or_url, needed, tier="session", own_file=own_file)
        self.engine, self.breaker = self._database.engine, self._database.breaker
        self._clock = clock
        self._next_purge = 0.0

    def apart(self) -> SqlDocuments:
        """Return the same store for counts, behind a breaker of its own."""
        twin = copy(self)
        twin._database = self._database.apart()
        twin.breaker = twin._database.breaker
        return twin

    def find(self, sid: str) -> str | None:
        """Return the ref that a session id leads to, or None."""
        query = select(_name.ref).where(_name.sid == sid, _name.expires_at > self._clock())
        return self._database.run(lambda connection: connection.execute(query).scalar())

    def point(self, sid: str, ref: str, ttl: float, *, instead_of: str | None) -> str:
        """Let a session id lead to a ref if it leads nowhere or to ``instead_of``; return what it leads to."""
        now, there = self._clock(), _name.sid == sid
        values = {"ref": ref, "expires_at": now + ttl}
        free = (_name.ref == (instead_of or "")) | (_name.expires_at <= now)

        def work(connection: Connection) -> str:
            if connection.execute(update(session_names).where(there, free).values(values)).rowcount:
                return ref
            held = connection.execute(select(_name.ref).where(there)).scalar()
            if (
                held is None
            ):  # of two that insert at once, one meets the other's row and looks again
                connection.execute(insert(session_names).values(sid=sid, **values))
            return held or ref

        return self._database.change(work)

    def forget(self, sid: str, ref: str) -> None:
        """Let a session id lead nowhere if it leads to this ref."""
        self._execute(delete(session_names).where(_name.sid == sid, _name.ref == ref))

    def load(self, ref: str) -> tuple[str, bytes] | None:
        """Return a document's revision and body, or None."""
        values = {"of_ref": ref}
        row = self._database.run(lambda connection: connection.execute(_LOAD, values).first())
        return None if row is None else (row[0], row[1])

    def swap(self, ref: str, seen: str | None, revision: str, body: bytes, ttl: float) -> bool:
        """Replace a document if its revision is still ``seen`` (None: if there is none)."""
        values = {"revision": revision, "body": body, "expires_at": self._clock() + ttl}
        if seen is None:
            self._execute(insert(session_documents).values(ref=ref, **values))
            rows = 1  # of an INSERT the driver may not say it
        else:
            rows = self._execute(_SWAP, values | {"of_ref": ref, "seen": seen})
        if rows == 1:
            self._purge_if_due()
        return rows == 1

    def delete(self, ref: str) -> None:
        """Delete a document."""
        self._execute(delete(session_documents).where(_document.ref == ref))
        self._purge_if_due()

    def hold(self, name: str, text: str, *, replace: bool) -> str:
        """Return the text kept under a name; this one if there is none, or to ``replace`` it."""
        values = {"called": name, "text": text}

        def work(connection: Connection) -> str:
            held: str | None = connection.execute(HELD, values).scalar()
            if held is not None and not replace:
                return held
            connection.execute(HOLD if held is None else REPLACE, values)
            return text

        return self._database.change(work)

    def occurrences(self, mark: bytes) -> int | None:
        """Return how often bytes occur in living documents; it reads all of them."""
        living = select(_document.ref, _document.body).where(
            _document.expires_at > self._clock(), _document.ref > bindparam("after")
        )
        query, total, values = living.order_by(_document.ref).limit(BATCH), 0, {"after": ""}

        def page(connection: Connection) -> Sequence[Any]:
            return connection.execute(query, values).all()

        while rows := self._database.run(page, limit=LONG_LIMIT):
            total += sum(row.body.count(mark) for row in rows)
            values["after"] = rows[-1].ref
        return total

    def _execute(self, statement: Any, values: dict[str, Any] | None = None) -> int:
        """Run a statement and return how many rows it changed."""
        return self._database.run(lambda connection: connection.execute(statement, values).rowcount)

    def _purge_if_due(self) -> None:
        """Delete rows that have expired, if it is time to."""
        now = self._clock()
        if now < self._next_purge:
            return
        self._next_purge = now + _PAUSE
        with suppress(StoreError):  # the change itself was acknowledged
            rows = [self._purge(table, key, now) for table, key in _PURGED]
            if max(rows) == BATCH:
                self._next_purge = now + _SHORT_PAUSE

    def _purge(self, table: Any, key: Any, now: float) -> int:
        expired = select(key).where(table.c.expires_at < now).limit(BATCH)
        # Several workers do this at once, each to other rows.
        return self._execute(
            delete(table).where(key.in_(expired.with_for_update(skip_locked=True)))
        )


_PURGED = ((session_documents, _document.ref), (session_names, _name.sid))
