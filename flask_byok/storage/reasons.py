"""Why a store failed, and what an operator can do about it.

A driver's own text may contain an address, a user's name or what was sent, so none of it is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator

_READ_ONLY = "The database is read-only: give the primary server's address, or let the app write file and folder."
_FULL = "The database's disk is full: make room there."
_NO_DATABASE = "The database server has no database of this name: make one, or mend the address."
_NO_ENTRY = "The database server does not let this user in: mend user and password, or the server's pg_hba.conf."
_NO_HOST = "The database's host is not known: mend its name in the address."
_NO_CONNECTION = (
    "The database server has no connection left: raise max_connections, or lower BYOK_DATABASE_CONNECTIONS, which "
    "counts for each worker."
)
_STARTING = "The database server is starting or stopping: wait for it."
_SLOW = "The database did not answer within BYOK_DATABASE_TIMEOUT, or the connection was lost: is it overloaded?"
_NO_ROUTE = "The database's address cannot be reached: mend it, or the network's rules."
_TLS = "The database server's TLS does not fit: mend sslmode and certificates in the address."
_LOCKED = (
    "Another connection holds what is to be changed for too long: look for a long transaction."
)
_PARAMETER = "The database's address has a parameter that libpq does not know: take it out."
_REFUSED = "Nothing listens at the database's address: is the server up, and is the port right?"

#: By PostgreSQL's SQLSTATE (its documentation, appendix A), or the beginning of one.
_BY_STATE = {
    "3D000": _NO_DATABASE,
    "28": _NO_ENTRY,
    "25006": _READ_ONLY,
    "53100": _FULL,
    "53300": _NO_CONNECTION,
    "55P03": _LOCKED,
    "57014": _SLOW,
    "57P": _STARTING,
}
#: While connecting libpq has a text only, the server's own in the server's language.
_BY_TEXT = {
    "too many connections": _NO_CONNECTION,
    "too many clients": _NO_CONNECTION,
    "connection slots are reserved": _NO_CONNECTION,
    "no more connections allowed": _NO_CONNECTION,  # PgBouncer
    "the database system is": _STARTING,
    "invalid connection option": _PARAMETER,
    "invalid URI query parameter": _PARAMETER,
    "query_wait_timeout": _SLOW,  # PgBouncer
    "password authentication failed": _NO_ENTRY,
    "no password supplied": _NO_ENTRY,
    "no pg_hba.conf entry": _NO_ENTRY,
    "is not permitted to log in": _NO_ENTRY,
    "authentication failed": _NO_ENTRY,
    'role "': _NO_ENTRY,
    "no such database": _NO_DATABASE,  # PgBouncer
    "no such user": _NO_ENTRY,
    '" does not exist': _NO_DATABASE,
    "Name or service not known": _NO_HOST,
    "could not translate host name": _NO_HOST,
    "Connection refused": _REFUSED,
    "No route to host": _NO_ROUTE,
    "is unreachable": _NO_ROUTE,
    "SSL": _TLS,
    "certificate": _TLS,
    "timeout expired": _SLOW,
    "timed out": _SLOW,
    "connection is lost": _SLOW,
    "closed the connection": _SLOW,
}
#: By SQLite's primary result code (sqlite.org/rescode.html).
_BY_SQLITE_CODE = {
    5: _LOCKED,
    6: _LOCKED,
    8: _READ_ONLY,
    11: "The SQLite file is damaged: restore it from a backup.",
    13: _FULL,
    14: "The SQLite file cannot be opened: mend its path, or the rights on the file and its folder.",
    26: "The file is not a SQLite database: mend its path.",
}
_REDIS_FULL = "Redis is full: raise its maxmemory."
_REDIS_READ_ONLY = "This Redis is a read-only replica: give the address of the primary server."
_REDIS_FORBIDS = "Redis does not let this user do what is needed: mend its ACL."
#: By redis-py's name of the error.
_BY_REDIS_ERROR = {
    "AuthenticationError": "Redis refuses this user or password: mend the address.",
    "NoPermissionError": _REDIS_FORBIDS,
    "ReadOnlyError": _REDIS_READ_ONLY,
    "OutOfMemoryError": _REDIS_FULL,
    "TimeoutError": "Redis did not answer in time (for keys: BYOK_REDIS_TIMEOUT): is it overloaded, or too far away?",
    "BusyLoadingError": "Redis is still loading its data: wait for it.",
    "MasterNotFoundError": "Sentinel names no primary server: are name and addresses right, and is one up?",
    "ClusterDownError": "The Redis Cluster does not serve all slots: is a node without a replica down?",
}
TOO_FEW_REPLICAS = (
    "Too few replicas acknowledge a write, so changes of keys fail. After a failover this lasts until a replica is "
    "back: for BYOK_REDIS_WAIT=1 run two replicas for each primary server."
)
#: By the code within Redis's text; Redis 6.2 puts that of a command before its script's.
_BY_REDIS_CODE = {
    "OOM ": _REDIS_FULL,
    "READONLY ": _REDIS_READ_ONLY,
    "NOPERM ": _REDIS_FORBIDS,
    "NOREPLICAS": "Redis takes no writes without its replicas (min-replicas-to-write): start them again.",
    "MISCONF": "Redis takes no writes, as it cannot save to its disk: make room there.",
    "TOO_FEW_REPLICAS": TOO_FEW_REPLICAS,  # our own
}
_REDIS = "Redis does not answer, or refuses: is it up, and is its address right?"
#: What keeps a store from changes, and not from reading.
ONLY_CHANGES = (_READ_ONLY, _FULL, _LOCKED)


def reason_of(error: BaseException | None) -> str | None:
    """Return why a store failed, and what to do; None where nothing more is known."""
    return next(filter(None, map(_reason, chain(error))), None)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it was raised for or has wrapped."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str | None:
    if type(error).__module__.startswith("redis."):
        if reason := _BY_REDIS_ERROR.get(type(error).__name__):
            return reason
        text = str(error)
        return next((reason for code, reason in _BY_REDIS_CODE.items() if code in text), _REDIS)
    if isinstance(error, TimeoutError):
        return _SLOW
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return _BY_SQLITE_CODE.get(code & 0xFF)
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return next((_BY_STATE[state[:n]] for n in (5, 3, 2) if state[:n] in _BY_STATE), None)
    if type(error).__module__.startswith("psycopg"):
        text = str(error)
        return next((reason for words, reason in _BY_TEXT.items() if words in text), None)
    return None
