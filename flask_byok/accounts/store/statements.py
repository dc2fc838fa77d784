"""The statements of the account store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    union_all,
    update,
)

from ...model.credential import REFUSALS
from ...storage.tables import credentials, promotions

#: Owners that a statement is confined to: whole names, or a bare ``team`` for every team (no owner
#: is called that). None stands for everybody.
Owners = Collection[str] | None

_c = credentials.c

PLACE: Select[Any] = select(credentials).where(
    _c.owner == bindparam("of_owner"),
    _c.provider == bindparam("of_provider"),
    _c.slot == bindparam("of_slot"),
)
SLOTS: Select[str] = select(_c.slot).where(
    _c.owner == bindparam("of_owner"), _c.provider == bindparam("of_provider")
)
ADD = insert(credentials)
DELETE = delete(credentials).where(_c.id.in_(bindparam("ids", expanding=True)))
#: A verdict that comes late leaves a newer version and its own verdict alone.
VERDICT = (
    update(credentials)
    .where(_c.id == bindparam("of_id"), _c.version == bindparam("of_version"))
    .values(
        verdict=bindparam("new_verdict"),
        verdict_at=bindparam("new_verdict_at"),
        verdict_version=bindparam("of_version"),
    )
)
#: The same for one that says nothing of the key: what is known of this version to be refused stays so.
OPEN_VERDICT = VERDICT.where(
    or_(
        _c.verdict.is_(None),
        _c.verdict.not_in([verdict.value for verdict in REFUSALS]),
        _c.verdict_version != _c.version,
    )
)
OVER: Select[str] = select(promotions.c.origin).where(
    promotions.c.owner == bindparam("of_owner"),
    promotions.c.origin.in_(bindparam("origins", expanding=True)),
)
END = insert(promotions).values(
    owner=bindparam("of_owner"), origin=bindparam("of_origin"), promoted_at=bindparam("at")
)


def confine(query: Select[Any], owners: Owners, table: Table = credentials) -> Select[Any]:
    """Return a query of what these owners have in a table with their name and its tier."""
    if owners is None:
        return query
    whole = [_whole(table, owner) for owner in owners if ":" not in owner]
    named = [owner for owner in owners if ":" in owner]
    return query.where(or_(false(), *whole, *([table.c.owner.in_(named)] if named else ())))


def _whole(table: Table, tier: str) -> ColumnElement[bool]:
    """Return what is true of a tier's rows: what is not its owners' is none of it, whatever the column says."""
    start = "system" if tier == "system" else f"{tier}:"
    # Not by LIKE: that is without regard to case on some databases.
    return and_(table.c.tier == tier, func.substr(table.c.owner, 1, len(start)) == start)


def find(
    owners: Sequence[str], providers: Sequence[str] | None
) -> tuple[Select[Any], dict[str, str]]:
    """Return the statement that reads what these owners have for these providers, or all, and its values."""
    mine = {f"owner_{number}": owner for number, owner in enumerate(owners)}
    wanted = {f"provider_{number}": name for number, name in enumerate(providers or ())}
    statement = _find(len(mine), None if providers is None else len(wanted))
    return statement, mine | wanted


@lru_cache(256)
def _find(owners: int, providers: int | None) -> Select[Any]:
    # With a parameter each: SQLAlchemy's expanding ones cost a fifth of the whole look-up.
    query = select(credentials).where(
        _c.owner.in_([bindparam(f"owner_{number}") for number in range(owners)])
    )
    if providers is None:
        return query
    return query.where(
        _c.provider.in_([bindparam(f"provider_{number}") for number in range(providers)])
    )


def page(
    owners: Owners, provider: str | None, after: str | None, limit: int
) -> tuple[Select[Any], dict[str, Any]]:
    """Return the statement that reads so many records after an id, and its values."""
    tiers = [owner for owner in owners or () if ":" not in owner]
    named = [owner for owner in owners or () if ":" in owner]
    shape = None if owners is None else (tuple(tiers), len(named))
    mine = {f"owner_{number}": owner for number, owner in enumerate(named)}
    wanted = {} if provider is None else {"provider": provider}
    values = {"after": after or "", "limit": limit, **mine, **wanted}
    return _page(shape, provider is not None), values


@lru_cache(256)
def _page(shape: tuple[tuple[str, ...], int] | None, one_provider: bool) -> Select[Any]:
    query = select(credentials).where(_c.id > bindparam("after"))
    if one_provider:
        query = query.where(_c.provider == bindparam("provider"))
    if shape is None:
        return _first(query, credentials)
    tiers, named = shape
    # Each tier, and those who are named, from their own index: asked for all at once, SQLite sorts
    # all that there are.
    parts = [query.where(_whole(credentials, tier)) for tier in tiers]
    if named or not tiers:
        mine: list[Any] = [bindparam(f"owner_{number}") for number in range(named)]
        parts.append(query.where(_c.owner.in_(mine)))
    if len(parts) == 1:
        return _first(parts[0], credentials)
    all_parts = union_all(*(select(_first(part, credentials).subquery()) for part in parts))
    found = all_parts.subquery()
    return _first(select(found), found)


def _first(query: Select[Any], table: FromClause) -> Select[Any]:
    return query.order_by(table.c.id).limit(bindparam("limit", type_=Integer))


def by_id(id: str, owners: Owners) -> Select[Any]:
    """Return the statement that reads one record, if it is theirs."""
    return confine(select(credentials).where(_c.id == id), owners)


def change(names: Iterable[str]) -> Update:
    """Return the statement that sets these columns and counts the version on.

    Its parameters are ``of_id`` and each column's name after ``new_``.

    A verdict that is not set anew stays about the key as it is.
    """
    return _change(tuple(sorted(names)))


@lru_cache(64)
def _change(names: Sequence[str]) -> Update:
    sets: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
    carried = case((_c.verdict_version == _c.version, _c.version + 1), else_=_c.verdict_version)
    sets["verdict_version"] = _c.version + 1 if "verdict" in names else carried
    # Last, as MariaDB and MySQL go on with what they have just set.
    sets["version"] = _c.version + 1
    query = update(credentials).where(_c.id == bindparam("of_id"))
    return query.ordered_values(*((_c[name], value) for name, value in sets.items()))
