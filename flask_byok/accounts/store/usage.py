"""How often keys were used: written in small steps that nothing waits for, and summed up.

Each use is a transaction of its own, which holds the row of its count and then the key's. Who holds
either waits for no use, so there is no deadlock; and no owner's audit chain is held. The key's
version stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError

from ...errors import StoreError
from ...model.credential import Use, isoformat, utcnow
from ...model.owner import ACCOUNT_TIERS
from ...storage.database import Database
from ...storage.engine import LONG_LIMIT
from ...storage.tables import credentials, usage
from .audit_chain import from_milliseconds, to_milliseconds
from .statements import Owners, confine

#: Days that statistics show one by one, today included.
DAYS = 30
#: Days that are kept one by one; those before are summed up by ``fold``.
KEPT_DAYS = 90
#: The day of a row that sums up what was folded: before all days that are counted.
LONG_AGO = "1970-01-01"

_u, _c = usage.c, credentials.c
_KEY = (_u.owner, _u.provider, _u.credential_id, _u.day, _u.outcome)


def _later(column: Column[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((column > other, column), else_=other)


def _upsert(dialect: Any) -> Any:
    row = dialect.insert(usage)
    return row.on_conflict_do_update(
        index_elements=_KEY,
        set_={
            "uses": _u.uses + row.excluded.uses,
            "last_used_at": _later(_u.last_used_at, row.excluded.last_used_at),
        },
    )


#: One statement where the database has one for it.
_UPSERT = {"postgresql": _upsert(postgresql), "sqlite": _upsert(sqlite)}
_ADD = insert(usage)
_INCREASE = (
    update(usage)
    .where(and_(*(column == bindparam(f"of_{column.name}") for column in _KEY)))
    .values(
        uses=_u.uses + bindparam("more"),
        last_used_at=_later(_u.last_used_at, bindparam("at")),
    )
)
_COUNT = (
    update(credentials)
    .where(_c.id == bindparam("of_id"))
    .values(
        usage_count=_c.usage_count + bindparam("more"),
        last_used_at=_later(_c.last_used_at, bindparam("at")),
    )
)
# Rows that another worker folds, or adds to at this moment, are left for later.
_FOLDED = (
    select(usage)
    .where(_u.tier.in_(sorted(ACCOUNT_TIERS)), _u.day > LONG_AGO, _u.day < bindparam("before"))
    .limit(bindparam("batch", type_=Integer))
    .with_for_update(skip_locked=True)
)
_TAKE = delete(usage).where(and_(*(column == bindparam(f"of_{column.name}") for column in _KEY)))
_OLD = (
    select(func.count())
    .select_from(usage)
    .where(_u.tier.in_(sorted(ACCOUNT_TIERS)), _u.day > LONG_AGO, _u.day < bindparam("before"))
)
# PostgreSQL's number of the transaction, and what became of that.
_TICKET = text("SELECT CAST(txid_current() AS text)")
_STATUS = text("SELECT txid_status(CAST(:ticket AS bigint))")


class UsageStore:
    """Keeps the counts; every method raises ``StoreError`` when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Counts that cannot be written keep no request away.
        self._aside = database.apart()

    def add(self, use: Use) -> None:
        """Count a use, wholly or not at all; the key counts it too where it was ``used``.

        Where PostgreSQL went away in the very moment of the commit, the use gets a ticket, by which
        the next call finds out whether it was counted. Other servers leave that unknown, and it
        is counted again.
        """
        if use.ticket and self._aside.call(self._was_written, use.ticket):
            return
        use.ticket = ""
        self._aside.change(lambda connection: self._write(connection, use))

    def count_old(self, before: date) -> int:
        """Return how many rows are about days before a date, one by one."""

        def read() -> int:
            with self._database.transactions.single() as connection:
                return int(connection.execute(_OLD, {"before": before.isoformat()}).scalar_one())

        return self._database.call(read, limit=LONG_LIMIT)

    def fold(self, before: date, *, limit: int = 200) -> int:
        """Add at most so many rows about days before a date to one row for all of them; return how many.

        Each key and outcome has a row for what is long ago. A short transaction does it, so
        everything is counted once at any moment, and whoever is ended in the midst has changed nothing.
        """

        def work(connection: Connection) -> int:
            values = {"before": before.isoformat(), "batch": limit}
            rows = connection.execute(_FOLDED, values).all()
            if rows:
                keys = [{f"of_{c.name}": getattr(row, c.name) for c in _KEY} for row in rows]
                connection.execute(_TAKE, keys)
            for use in _summed(rows):
                self._increase(connection, use)
            return len(rows)

        return self._aside.change(work, limit=LONG_LIMIT)

    def stats(self, owners: Owners) -> dict[str, Any]:
        """Return what these owners' keys are and how often they were used, as a JSON-able mapping.

        ``uses`` counts the calls that were answered, ``rejected`` and ``failed`` the others. Under
        ``daily`` are the last ``DAYS`` days (UTC), those with calls only. What a deleted key did
        still counts.
        """
        whole = owners is None or any(":" not in owner for owner in owners)
        limit = LONG_LIMIT if whole else None
        now = utcnow()
        since = (now - timedelta(days=DAYS - 1)).date().isoformat()
        queries = (_keys(owners, to_milliseconds(now)), _uses(owners), _daily(owners, since))
        keys, uses, daily = self._database.call(self._all, queries, limit=limit)
        return {
            "total": sum(row.keys for row in keys),
            "active": sum(row.active for row in keys),
            "expired": sum(row.expired for row in keys),
            "by_provider": _by_provider(keys, uses),
            "daily": _by_day(daily),
        }

    def _write(self, connection: Connection, use: Use) -> None:
        use.ticket = ""
        self._increase(connection, use)
        if use.credential_id and use.outcome == "used":
            values = {"of_id": use.credential_id, "more": use.uses, "at": use.last_used_at}
            connection.execute(_COUNT, values)
        if connection.dialect.name == "postgresql":
            use.ticket = connection.execute(_TICKET).scalar_one()

    def _increase(self, connection: Connection, use: Use) -> None:
        key = {column.name: getattr(use, column.name) for column in _KEY}
        tier = use.owner.partition(":")[0]
        row = key | {"tier": tier, "uses": use.uses, "last_used_at": use.last_used_at}
        if (upsert := _UPSERT.get(connection.dialect.name)) is not None:
            connection.execute(upsert, row)
            return
        values = {f"of_{name}": value for name, value in key.items()}
        values |= {"more": use.uses, "at": use.last_used_at}
        if connection.execute(_INCREASE, values).rowcount == 0:
            # Whoever comes second with this finds the row there, and is told to try again.
            connection.execute(_ADD, row)

    def _was_written(self, ticket: str) -> bool:
        try:
            with self._database.transactions.single() as connection:
                status = connection.execute(_STATUS, {"ticket": ticket}).scalar()
        except DataError:
            return False  # another server has taken over, which knows nothing of it
        if status == "in progress":
            raise StoreError
        return status != "aborted"

    def _all(self, queries: Sequence[Any]) -> list[Sequence[Any]]:
        with self._database.transactions.single() as connection:
            return [connection.execute(query).all() for query in queries]


def _keys(owners: Owners, now: int) -> Any:
    expired = and_(_c.expires_at.is_not(None), _c.expires_at <= now)
    alive = and_(_c.active, or_(_c.expires_at.is_(None), _c.expires_at > now))
    query = select(
        _c.provider,
        func.count().label("keys"),
        _number(alive).label("active"),
        _number(expired).label("expired"),
    )
    return confine(query, owners).group_by(_c.provider)


def _number(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count(case((condition, 1)))


def _uses(owners: Owners) -> Any:
    query = select(
        _u.provider,
        _u.outcome,
        func.sum(_u.uses).label("uses"),
        func.max(_u.last_used_at).label("last_used_at"),
    )
    return confine(query, owners, usage).group_by(_u.provider, _u.outcome)


def _daily(owners: Owners, since: str) -> Any:
    query = select(_u.day, _u.outcome, func.sum(_u.uses).label("uses")).where(_u.day >= since)
    return confine(query, owners, usage).group_by(_u.day, _u.outcome).order_by(_u.day)


def _summed(rows: Sequence[Any]) -> list[Use]:
    """Sum rows up, in an order that all who fold keep to: so none waits for another in a circle."""
    found: dict[tuple[Any, ...], Use] = {}
    for row in rows:
        key = (row.owner, row.provider, row.credential_id, LONG_AGO, row.outcome)
        use = found.setdefault(key, Use(*key, uses=0, last_used_at=0))
        use.uses += row.uses
        use.last_used_at = max(use.last_used_at, row.last_used_at)
    return [found[key] for key in sorted(found)]


def _by_provider(keys: Sequence[Any], uses: Sequence[Any]) -> dict[str, dict[str, Any]]:
    names = sorted({row.provider for row in (*keys, *uses)})
    empty = {"keys": 0, "uses": 0, "rejected": 0, "failed": 0, "last_used_at": None}
    found: dict[str, dict[str, Any]] = {name: dict(empty) for name in names}
    for row in keys:
        found[row.provider]["keys"] = row.keys
    for row in uses:
        facts = found[row.provider]
        # Sums are decimal numbers to some drivers.
        facts["uses" if row.outcome == "used" else row.outcome] = int(row.uses)
        if row.outcome == "used":
            facts["last_used_at"] = isoformat(from_milliseconds(row.last_used_at))
    return found


def _by_day(daily: Sequence[Any]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in daily:
        day = found.setdefault(row.day, {"day": row.day, "used": 0, "rejected": 0, "failed": 0})
        day[row.outcome] = int(row.uses)
    return list(found.values())
