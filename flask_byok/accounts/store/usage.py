"""Count the uses of keys, one row for each key, day and outcome, and sum them up.

Each use is a transaction of its own, which holds the row of its count and then the key's. A transaction
that holds either waits for no use, so there is no deadlock; and none holds an owner's audit chain. The
key's version stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa

from ...model.credential import Use, from_milliseconds, isoformat, to_milliseconds, utcnow
from ...model.owner import ACCOUNT_TIERS
from ...storage.engine import patiently
from ...storage.sql import Database, insert_into
from ...storage.tables import credentials, usage
from .rows import Owners, confine

#: Days that statistics show one by one, today included.
DAYS = 30
#: The day of a row for all days that were folded.
LONG_AGO = "1970-01-01"

_u, _c = usage.c, credentials.c
_KEY = (_u.owner, _u.provider, _u.credential_id, _u.day, _u.outcome)
_TOKENS = ("input_tokens", "output_tokens")
_SUMS = ("uses", *_TOKENS)
_NOTHING: dict[str, Any] = dict.fromkeys(_TOKENS, 0)


class UsageStore:
    """Keeps the counts; every method raises ``StoreError`` when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Its faults keep no request away from the keys.
        self._aside = database.apart()

    def add(self, use: Use) -> None:
        """Count a use; the key counts it too if its outcome is ``used``.

        If the server goes away in the moment of the commit, the use may be counted twice.
        """
        self._aside.change(lambda connection: self._write(connection, use))

    def fold(self, before: date, *, limit: int = 200) -> int:
        """Replace up to ``limit`` rows of days before a date by sums; return how many.

        Each key and outcome has one row for all that is long ago. One short transaction does it, so a
        process that is killed in the middle has changed nothing.
        """
        old = _old(before.isoformat(), limit)
        taken = sa.delete(usage).where(sa.tuple_(*_KEY).in_(old)).returning(*_u)

        def work(connection: sa.Connection) -> int:
            rows = [{**row, "day": LONG_AGO} for row in connection.execute(taken).mappings()]
            # In one order for every worker that folds, so that none waits for another in a circle.
            for row in sorted(rows, key=lambda row: [row[column.name] for column in _KEY]):
                _increase(connection, row)
            return len(rows)

        return self._aside.change(work)

    def stats(self, owners: Owners) -> dict[str, Any]:
        """Return how many keys these owners have and how often they were used, as a JSON-able mapping.

        ``uses`` counts the calls that were answered, ``rejected`` and ``failed`` the others; tokens are those that
        the answered calls took, as far as providers told. ``daily``
        has those of the last ``DAYS`` days (UTC) that had calls. Uses of deleted keys still count.
        """
        whole = owners is None or any(":" not in owner for owner in owners)
        now = utcnow()
        since = (now - timedelta(days=DAYS - 1)).date().isoformat()
        queries = (_keys(owners, to_milliseconds(now)), _uses(owners), _daily(owners, since))
        with patiently() if whole else nullcontext():
            keys, uses, daily = self._database.run(
                lambda connection: [connection.execute(query).all() for query in queries]
            )
        return {
            "total": sum(row.keys for row in keys),
            "active": sum(row.active for row in keys),
            "expired": sum(row.expired for row in keys),
            "by_provider": _by_provider(keys, uses),
            "daily": _by_day(daily),
        }

    def _write(self, connection: sa.Connection, use: Use) -> None:
        _increase(connection, asdict(use) | {"tier": use.owner.partition(":")[0]})
        if use.credential_id and use.outcome == "used":
            count, last = _c.usage_count + use.uses, _later(_c.last_used_at, use.last_used_at)
            counted = sa.update(credentials).where(_c.id == use.credential_id)
            connection.execute(counted.values(usage_count=count, last_used_at=last))


def _increase(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    """Add a row to the one of its key, day and outcome."""
    added = insert_into(connection, usage).values(row)
    sums: dict[str, Any] = {name: _u[name] + added.excluded[name] for name in _SUMS}
    sums["last_used_at"] = _later(_u.last_used_at, added.excluded.last_used_at)
    connection.execute(added.on_conflict_do_update(index_elements=_KEY, set_=sums))


def _later(column: sa.Column[Any], other: Any) -> sa.ColumnElement[Any]:
    return sa.case((column > other, column), else_=other)


def _old(before: str, limit: int) -> Any:
    """Return the query of rows to fold; those that another worker folds, or adds to now, are left for later."""
    is_old = _u.tier.in_(sorted(ACCOUNT_TIERS)), _u.day > LONG_AGO, _u.day < before
    return sa.select(*_KEY).where(*is_old).limit(limit).with_for_update(skip_locked=True)


def _keys(owners: Owners, now: int) -> Any:
    expired = sa.and_(_c.expires_at.is_not(None), _c.expires_at <= now)
    alive = sa.and_(_c.active, sa.or_(_c.expires_at.is_(None), _c.expires_at > now))
    query = sa.select(
        _c.provider,
        sa.func.count().label("keys"),
        sa.func.count().filter(alive).label("active"),
        sa.func.count().filter(expired).label("expired"),
    )
    return confine(query, owners).group_by(_c.provider)


def _uses(owners: Owners) -> Any:
    query = sa.select(
        _u.provider,
        _u.outcome,
        *_sums(),
        sa.func.max(_u.last_used_at).label("last_used_at"),
    )
    return confine(query, owners, usage).group_by(_u.provider, _u.outcome)


def _daily(owners: Owners, since: str) -> Any:
    query = sa.select(_u.day, _u.outcome, *_sums()).where(_u.day >= since)
    return confine(query, owners, usage).group_by(_u.day, _u.outcome).order_by(_u.day)


def _sums() -> list[sa.Label[Any]]:
    return [sa.func.sum(_u[name]).label(name) for name in _SUMS]


def _by_provider(keys: Sequence[Any], uses: Sequence[Any]) -> dict[str, dict[str, Any]]:
    names = sorted({row.provider for row in (*keys, *uses)})
    empty = {"keys": 0, "uses": 0, "rejected": 0, "failed": 0} | _NOTHING | {"last_used_at": None}
    found: dict[str, dict[str, Any]] = {name: dict(empty) for name in names}
    for row in keys:
        found[row.provider]["keys"] = row.keys
    for row in uses:
        facts = found[row.provider]
        _tell(facts, row, "uses")
        if row.outcome == "used":
            facts["last_used_at"] = isoformat(from_milliseconds(row.last_used_at))
    return found


def _by_day(daily: Sequence[Any]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in daily:
        empty = {"day": row.day, "used": 0, "rejected": 0, "failed": 0}
        _tell(found.setdefault(row.day, empty | _NOTHING), row, "used")
    return list(found.values())


def _tell(facts: dict[str, Any], row: Any, used: str) -> None:
    # Sums are decimal numbers to some drivers.
    facts[used if row.outcome == "used" else row.outcome] = int(row.uses)
    for name in _TOKENS:
        facts[name] += int(getattr(row, name))
