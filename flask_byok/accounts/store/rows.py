"""Read accounts' keys: their rows as records, and the queries that find them."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, cast

import sqlalchemy as sa

from ...errors import KeyNotFoundError
from ...model.credential import (
    CredentialRecord,
    RecordedVerdict,
    Verdict,
    from_milliseconds,
    to_milliseconds,
    utcnow,
)
from ...storage.sql import Database
from ...storage.tables import credentials, promotions
from . import serving_order

#: Owners that a statement is confined to: whole names, or a bare ``team`` for every team (no owner
#: is called that). None stands for all owners.
Owners = Collection[str] | None

#: Keys that are read at once.
BATCH = 200

_c = credentials.c
# SQLAlchemy's own rows take ten times as long to give a column by its name.
_Row = cast(Any, namedtuple)("_Row", credentials.c.keys())
#: Returns the owner and the provider of a row with all columns.
_place_of: Callable[[Any], tuple[str, str]] = itemgetter(
    *map(credentials.c.keys().index, ("owner", "provider"))
)
#: Raised by a column with a value that this package never writes.
_IMPOSSIBLE = (TypeError, ValueError, OverflowError, OSError)
#: Columns that a record has under their names: as they are, and as times.
_SAME = (
    *("provider", "owner", "slot", "ciphertext", "hint", "label", "description"),
    *("active", "usage_count"),
)
_TIMES = ("created_at", "updated_at", "expires_at", "set_at", "last_used_at")


class KeyReader:
    """Finds keys by owner, provider and slot."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def find(
        self, owners: Sequence[str], providers: Sequence[str] | None = None
    ) -> list[CredentialRecord]:
        """Return all keys that these owners have for these providers, or for all, in one statement.

        Slots come in the order that they serve in.
        """
        return list(_in_order(self._find(owners, providers)))

    def places(
        self, owners: Sequence[str], providers: Sequence[str]
    ) -> dict[tuple[str, str], Iterator[CredentialRecord]]:
        """Return the same by owner and provider; a record is made when it is first asked for."""
        rows: dict[tuple[str, str], list[Any]] = {}
        for row in self._find(owners, providers):
            rows.setdefault(_place_of(row), []).append(row)
        return {place: _in_order(found) for place, found in rows.items()}

    def page(
        self,
        owners: Owners,
        *,
        after: str | None = None,
        limit: int = 50,
        provider: str | None = None,
    ) -> tuple[list[CredentialRecord], str | None]:
        """Return up to ``limit`` records after a cursor, oldest first, and the next cursor or None."""
        # ":" for all owners with a name, which are found together.
        kinds = {":" if ":" in owner else owner for owner in owners or ":"}
        values = {"after": after or "", "limit": limit + 1, "of_provider": provider}
        values["named"] = [owner for owner in owners or () if ":" in owner]
        query = _page(None if owners is None else frozenset(kinds), provider is not None)
        rows = self.database.read(query, values)
        found = list(map(to_record, rows))
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    def every(
        self, owner: str | None = None, provider: str | None = None
    ) -> Iterator[CredentialRecord]:
        """Yield all records, or one owner's, or those for one provider, oldest first."""
        owners = None if owner is None else [owner]
        after: str | None = ""
        while after is not None:
            found, after = self.page(owners, after=after, limit=BATCH, provider=provider)
            yield from found

    def get(self, id: str, owners: Owners) -> CredentialRecord:
        """Return one record.

        :raises KeyNotFoundError: it is not there, or these owners do not have it.
        """
        found = self.database.read(by_id(id, owners))
        if not found:
            raise KeyNotFoundError
        return to_record(found[0])

    def over(self, owner: str, versions: Collection[str]) -> set[str]:
        """Return the versions of sessions' records, of these, that are promoted, replaced or cleared.

        They count no longer in any session, and are never promoted again.
        """
        return {row.origin for row in self.database.read(over(owner, versions))}

    def expiring(self, start: datetime, end: datetime) -> Iterator[CredentialRecord]:
        """Yield the keys that expire between two times, in the order that they expire in."""
        first, last, after = to_milliseconds(start), to_milliseconds(end), ""
        order = (_c.expires_at, _c.id)
        while found := self.database.read(
            sa.select(credentials)
            .where(sa.tuple_(*order) > (first, after), _c.expires_at <= last)
            .order_by(*order)
            .limit(BATCH)
        ):
            yield from map(to_record, found)
            first, after = found[-1].expires_at, found[-1].id

    def _find(self, owners: Sequence[str], providers: Sequence[str] | None) -> Sequence[Any]:
        mine = {f"owner_{number}": owner for number, owner in enumerate(owners)}
        # A pattern (custom/*) finds more than it stands for, should an id have "_": the reader looks again.
        patterns = [name[:-1] + "%" for name in providers or () if name.endswith("/*")]
        names = [name for name in providers or () if not name.endswith("/*")]
        wanted = {f"provider_{number}": name for number, name in enumerate(names)}
        liked = {f"like_{number}": pattern for number, pattern in enumerate(patterns)}
        query = _query(len(mine), None if providers is None else len(wanted), len(liked))
        return self.database.read(query, mine | wanted | liked)


@lru_cache(256)
def _query(owners: int, providers: int | None, patterns: int) -> sa.Select[Any]:
    # With a parameter each: SQLAlchemy's expanding ones cost a fifth of the whole look-up.
    query = sa.select(credentials).where(
        _c.owner.in_([sa.bindparam(f"owner_{number}") for number in range(owners)])
    )
    if providers is None:
        return query
    return query.where(
        sa.or_(
            _c.provider.in_([sa.bindparam(f"provider_{number}") for number in range(providers)]),
            *(_c.provider.like(sa.bindparam(f"like_{number}")) for number in range(patterns)),
        )
    )


# Written into the statement, as is the tier: for parameters PostgreSQL soon makes one plan, which for a rare tier
# reads all keys.
_LIMIT = sa.bindparam("limit", type_=sa.Integer, literal_execute=True)
_AFTER = sa.bindparam("after", type_=sa.String)


@lru_cache(64)
def _page(kinds: frozenset[str] | None, one_provider: bool) -> sa.Select[Any]:
    query = sa.select(credentials).limit(_LIMIT)
    if one_provider:
        query = query.where(_c.provider == sa.bindparam("of_provider"))
    if kinds is None:
        return query.where(_c.id > _AFTER).order_by(_c.id)
    # Each tier, and the named owners, from their own index: SQLite would sort all keys if it was asked
    # for them at once.
    parts = [_part(query, kind) for kind in kinds]
    if len(parts) == 1:
        return parts[0]
    found = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
    return sa.select(found).order_by(found.c.id).limit(_LIMIT)


def _part(query: sa.Select[Any], kind: str) -> sa.Select[Any]:
    if kind == ":":
        named = _c.owner.in_(sa.bindparam("named", expanding=True))
        return query.where(named, _c.id > _AFTER).order_by(_c.id)
    # In an order that only the tier's index has. With an equal tier, PostgreSQL may take the primary key's, and read
    # all the older keys of other tiers.
    tier = sa.literal(kind, literal_execute=True)
    following = sa.tuple_(_c.tier, _c.id) > sa.tuple_(tier, _AFTER)
    return query.where(following, _c.tier <= tier, _has(_c, kind)).order_by(_c.tier, _c.id)


def over(owner: str, versions: Collection[str]) -> sa.Select[str]:
    """Return the query of those versions of sessions' records that are over for an owner."""
    ended = promotions.c.origin
    return sa.select(ended).where(promotions.c.owner == owner, ended.in_(versions))


def by_id(id: str, owners: Owners) -> sa.Select[Any]:
    """Return the query of one record, if these owners have it."""
    return confine(sa.select(credentials).where(_c.id == id), owners)


def confine(query: sa.Select[Any], owners: Owners, table: sa.Table = credentials) -> sa.Select[Any]:
    """Return a query, confined to these owners, of a table with their name and its tier."""
    if owners is None:
        return query
    named = [owner for owner in owners if ":" in owner]
    theirs = [_whole(table.c, owner) for owner in owners if ":" not in owner]
    return query.where(sa.or_(sa.false(), *theirs, *([table.c.owner.in_(named)] if named else ())))


def _whole(columns: Any, tier: str) -> sa.ColumnElement[bool]:
    return sa.and_(columns.tier == sa.literal(tier, literal_execute=True), _has(columns, tier))


def _has(columns: Any, tier: str) -> sa.ColumnElement[bool]:
    """Return the condition that a tier has the owner: one of another tier has no row, even if the column says so."""
    start = "system" if tier == "system" else f"{tier}:"
    # Not by LIKE: that is without regard to case on some databases. Without coalesce() PostgreSQL expects one row in
    # 200 to pass, and sorts all of a tier for a page of it.
    return sa.func.coalesce(sa.func.substr(columns.owner, 1, len(start)) == start, sa.false())


def _in_order(rows: Iterable[Any]) -> Iterator[CredentialRecord]:
    records = map(to_record, rows)
    yield from sorted(records, key=lambda record: (serving_order(record.slot), record.id))


def to_record(row: Any) -> CredentialRecord:
    """Return the record of a row of ``byok_credentials`` with all its columns.

    A row with an impossible timestamp, which this package never writes, is unreadable: it never serves,
    and can be listed, changed and deleted.
    """
    row = _Row._make(row)
    try:
        return _as_written(row)
    except _IMPOSSIBLE:
        # Neither off nor expired nor checked, so that its state is that of its ciphertext.
        times = dict.fromkeys(("expires_at", "set_at", "last_used_at", "verdict"))
        times |= {"created_at": 0, "updated_at": 0}
        return _as_written(row._replace(ciphertext="", active=True, **times))


def _as_written(row: Any) -> CredentialRecord:
    facts = {name: getattr(row, name) for name in _SAME}
    facts |= {name: _moment(getattr(row, name)) for name in _TIMES}
    return CredentialRecord(id=row.id, version=str(row.version), validity=_verdict(row), **facts)


def _verdict(row: Any) -> RecordedVerdict | None:
    if row.verdict is None:
        return None
    try:
        verdict = Verdict(row.verdict)
    except ValueError:
        return None  # of a later version
    return RecordedVerdict(verdict, from_milliseconds(row.verdict_at), str(row.verdict_version))


def _moment(stored: int | None) -> datetime | None:
    return None if stored is None else from_milliseconds(stored)


def new_values(record: CredentialRecord) -> dict[str, Any]:
    """Return the columns of a new row, except its id."""
    verdict = record.validity
    return {
        **{name: getattr(record, name) for name in _SAME},
        **{name: _stored(getattr(record, name)) for name in _TIMES},
        **verdict_values(verdict),
        **key_columns(record.ciphertext),
        "set_at": to_milliseconds(record.saved_at),
        "tier": record.owner.partition(":")[0],
        "version": 1,
        "verdict_version": None if verdict is None else 1,
    }


def changed_values(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that a change sets; without ``verdict`` among them the verdict stays."""
    times = {name: _stored(changes[name]) for name in ("expires_at", "set_at") if name in changes}
    values = {**changes, **times, "updated_at": to_milliseconds(utcnow())}
    verdict = values.pop("validity", None)
    if "ciphertext" in changes:
        values |= key_columns(changes["ciphertext"]) | verdict_values(verdict)
        values.setdefault("set_at", values["updated_at"])
    return values


def key_columns(ciphertext: str) -> dict[str, str]:
    """Return a ciphertext with the id of the encryption key that it names."""
    parts = ciphertext.split(".")
    return {"ciphertext": ciphertext, "key_id": parts[1] if len(parts) == 4 else ""}


def verdict_values(verdict: RecordedVerdict | None) -> dict[str, Any]:
    """Return the columns of a verdict, except the version that it is about."""
    if verdict is None:
        return {"verdict": None, "verdict_at": None}
    return {"verdict": verdict.verdict.value, "verdict_at": to_milliseconds(verdict.checked_at)}


def _stored(moment: datetime | None) -> int | None:
    return None if moment is None else to_milliseconds(moment)
