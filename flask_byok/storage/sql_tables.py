"""Tables of the SQL session store, and the statements that read and change them.

Every change starts with an UPDATE of the session's row that finds it only while it is alive for
this id and identity. It locks the row, so a change and the session's end come one after the other,
never side by side.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    insert,
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Delete, Insert, ReturningDelete

from ..keys.session_store import REFUSAL_MARKS
from .sql_types import MARIADB, name, prose

metadata = MetaData()

#: One row a session. ``sid`` is NULL once nothing leads here. Times are seconds since 1970.
sessions = Table(
    "byok_sessions",
    metadata,
    Column("ref", name(64), primary_key=True),
    Column("sid", name(128), unique=True, index=True, nullable=True),
    Column("owner", prose(), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    Column("dead", Boolean, nullable=False),
)

#: One row for each sealed record; ``scope`` is ``v`` for a visitor's, ``u`` for a signed-in
#: identity's. The last three are NULL until it is used; ``last_used_at`` is in milliseconds since
#: 1970, ``counted`` the ticket of the last use that was added.
keys = Table(
    "byok_session_keys",
    metadata,
    Column("ref", name(64), primary_key=True),
    Column("scope", name(1), primary_key=True),
    Column("provider", name(100), primary_key=True),
    Column("record", prose(), nullable=False),
    Column("verdict", prose(), nullable=True),
    Column("usage_count", BigInteger, nullable=True),
    Column("last_used_at", BigInteger, nullable=True),
    Column("counted", name(16), nullable=True),
)

#: One row for each app, named from its SECRET_KEY: what tells whether its encryption key is the right
#: one. Under ``audit`` the secret that keys the audit log of accounts.
canaries = Table(
    "byok_canary",
    metadata,
    Column("name", name(100), primary_key=True),
    Column("sealed", prose(), nullable=False),
)

_KEY = (keys.c.ref, keys.c.scope, keys.c.provider)
_BESIDE_KEY = [column.name for column in keys.c if not column.primary_key]
_IN_PROVIDERS = keys.c.provider.in_(bindparam("providers", expanding=True))


def _alive() -> ColumnElement[bool]:
    return and_(
        sessions.c.ref == bindparam("session_ref"),
        sessions.c.sid == bindparam("session_sid"),
        sessions.c.dead.is_(false()),
        sessions.c.expires_at > bindparam("now"),
        sessions.c.created_at > bindparam("oldest"),
        or_(sessions.c.owner == "", sessions.c.owner == bindparam("identity")),
    )


def _by_ref(statement: Update) -> Update:
    # MariaDB may look for few sessions along ``expires_at``, and misses one whose time is changed
    # meanwhile.
    for dialect in MARIADB:
        statement = statement.with_hint("FORCE INDEX (PRIMARY)", dialect_name=dialect)
    return statement


#: Finds the session alive, locks it and lets its lifetime slide.
TOUCH: Update = _by_ref(update(sessions).where(_alive()).values(expires_at=bindparam("until")))
#: The same, and makes it the identity's own.
CLAIM: Update = TOUCH.values(owner=bindparam("identity"))

FIND: Select[str] = select(sessions.c.ref).where(
    sessions.c.sid == bindparam("session_sid"),
    sessions.c.expires_at > bindparam("now"),
    sessions.c.created_at > bindparam("oldest"),
)
STATE = select(sessions.c.sid, sessions.c.owner, sessions.c.created_at, sessions.c.dead).where(
    sessions.c.ref == bindparam("session_ref")
)

ADD = insert(sessions).values(
    ref=bindparam("session_ref"),
    sid=bindparam("session_sid"),
    owner="",
    created_at=bindparam("now"),
    expires_at=bindparam("until"),
    dead=false(),
)
#: Takes a session id from what is over, and from nothing that another worker has just added.
RELEASE = (
    update(sessions)
    .where(
        sessions.c.sid == bindparam("session_sid"),
        or_(
            sessions.c.ref == bindparam("dead_ref"),
            sessions.c.expires_at <= bindparam("now"),
            sessions.c.created_at <= bindparam("oldest"),
        ),
    )
    .values(sid=None)
)
#: Takes a session id from whatever it led to.
DETACH = update(sessions).where(sessions.c.sid == bindparam("session_sid")).values(sid=None)
#: Finds a session by both its names, for renewal.
UNNAME = (
    update(sessions)
    .where(
        sessions.c.ref == bindparam("session_ref"),
        sessions.c.sid == bindparam("session_sid"),
        sessions.c.dead.is_(false()),
    )
    .values(sid=None)
)
NAME = (
    update(sessions)
    .where(sessions.c.ref == bindparam("session_ref"))
    .values(sid=bindparam("session_sid"))
)
BURY = (
    update(sessions)
    .where(sessions.c.ref == bindparam("session_ref"))
    .values(dead=true(), sid=None, owner="", expires_at=bindparam("until"))
)
EMPTY = delete(keys).where(keys.c.ref == bindparam("session_ref"))

#: Sessions that ended so long ago that no request of theirs can still be under way.
EXPIRED = (
    select(sessions.c.ref)
    .where(sessions.c.expires_at < bindparam("before"))
    .limit(bindparam("batch"))
    .with_for_update(skip_locked=True)
)
PURGE = tuple(
    delete(table).where(table.c.ref.in_(bindparam("refs", expanding=True)))
    for table in (keys, sessions)
)

#: Counts what one encryption key has sealed in sessions that can still be used.
SEALED_WITH = (
    select(func.count())
    .select_from(keys.join(sessions, sessions.c.ref == keys.c.ref))
    .where(
        sessions.c.dead.is_(false()),
        sessions.c.expires_at > bindparam("now"),
        sessions.c.created_at > bindparam("oldest"),
        keys.c.record.contains(bindparam("mark")),
    )
)

HELD: Select[str] = select(canaries.c.sealed).where(canaries.c.name == bindparam("called"))
HOLD = insert(canaries).values(name=bindparam("called"), sealed=bindparam("text"))
REPLACE = (
    update(canaries).where(canaries.c.name == bindparam("called")).values(sealed=bindparam("text"))
)

_THAT_VERSION = and_(
    keys.c.ref == bindparam("session_ref"),
    keys.c.provider == bindparam("of_provider"),
    keys.c.record.contains(bindparam("mark")),
)
#: What is learnt about a version, in whichever scope that is. It holds no session's row, for it changes
#: nothing that a session's end, or its time, depends on.
VERDICT = update(keys).where(_THAT_VERSION).values(verdict=bindparam("found"))
#: The same for one that says nothing of the key: a refusal stays. What lies beside a record is of its version.
OPEN_VERDICT = VERDICT.where(
    or_(
        keys.c.verdict.is_(None),
        and_(*(not_(keys.c.verdict.contains(mark, autoescape=True)) for mark in REFUSAL_MARKS)),
    )
)
COUNT = (
    update(keys)
    .where(_THAT_VERSION, or_(keys.c.counted.is_(None), keys.c.counted != bindparam("ticket")))
    .values(
        usage_count=func.coalesce(keys.c.usage_count, 0) + bindparam("more"),
        last_used_at=case(
            (keys.c.last_used_at > bindparam("at"), keys.c.last_used_at), else_=bindparam("at")
        ),
        counted=bindparam("ticket"),
    )
)

#: The session with its records.
READ = (
    select(*sessions.c, *(column for column in keys.c if column is not keys.c.ref))
    .select_from(sessions.outerjoin(keys, and_(keys.c.ref == sessions.c.ref, _IN_PROVIDERS)))
    .where(sessions.c.ref == bindparam("session_ref"))
)

_VALUES = {
    "ref": bindparam("session_ref", type_=String),
    "scope": bindparam("in_scope", type_=String),
    "provider": bindparam("of_provider", type_=String),
    "record": bindparam("sealed", type_=Text),
    "verdict": bindparam("found", type_=Text),
}


def _postgresql_write() -> Insert:
    alive = CLAIM.returning(sessions.c.ref).cte("alive")
    values = [alive.c.ref, *(value for name, value in _VALUES.items() if name != "ref")]
    row = postgresql.insert(keys).from_select(list(_VALUES), select(*values))
    statement = row.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: row.excluded[name] for name in _BESIDE_KEY},
    )
    return statement.execution_options(preserve_rowcount=True)


def _postgresql_clear() -> ReturningDelete[str]:
    alive = TOUCH.returning(sessions.c.ref).cte("alive")
    return (
        delete(keys)
        .where(
            keys.c.ref.in_(select(alive.c.ref)),
            keys.c.scope == bindparam("in_scope"),
            _IN_PROVIDERS,
        )
        .returning(keys.c.provider)
    )


def _sqlite_upsert() -> Insert:
    row = sqlite.insert(keys).values(_VALUES)
    return row.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: row.excluded[name] for name in _BESIDE_KEY},
    )


#: One statement each on PostgreSQL: a round trip costs more there than the work.
POSTGRESQL_WRITE, POSTGRESQL_CLEAR = _postgresql_write(), _postgresql_clear()

_MINE = and_(keys.c.ref == bindparam("session_ref"), keys.c.scope == bindparam("in_scope"))
PRESENT: Select[str] = select(keys.c.provider).where(_MINE, _IN_PROVIDERS)
CLEAR: Delete = delete(keys).where(_MINE, _IN_PROVIDERS)
_FROM_SCOPE = and_(keys.c.scope == bindparam("from_scope"), _THAT_VERSION)
#: Takes a record away, if it is of that version still.
TAKE = delete(keys).where(_FROM_SCOPE)
#: Finds it, and makes it another scope's, sealed anew. A count under way follows the row.
LEFT: Select[str] = select(keys.c.provider).where(_FROM_SCOPE)
MOVE = (
    update(keys).where(_FROM_SCOPE).values(scope=bindparam("in_scope"), record=bindparam("sealed"))
)
#: Replaces a record, if it is of that version still; one that is leaving by its like only.
EXCHANGE = (
    update(keys)
    .where(
        _MINE,
        keys.c.provider == bindparam("of_provider"),
        keys.c.record.contains(bindparam("mark")),
        or_(
            bindparam("is_leaving", type_=Integer) == 1,
            not_(keys.c.record.contains(bindparam("leaving_mark"))),
        ),
    )
    .values(record=bindparam("sealed"))
)
#: After CLAIM, in the same transaction, on SQLite and elsewhere.
UPSERT = {"sqlite": (_sqlite_upsert(),)}
GENERIC_UPSERT = (
    delete(keys).where(_MINE, keys.c.provider == bindparam("of_provider")),
    insert(keys).values(_VALUES),
)
