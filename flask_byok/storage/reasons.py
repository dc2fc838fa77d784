"""Why a store failed, and what an operator can do about it.

A driver's own text may contain an address, a user's name or what was sent, so none of it is repeated.
"""

from __future__ import annotations

_READ_ONLY = "The database is read-only: give the primary server's address, or let the app write file and folder."
_FULL = "The database's disk is full: make room there."
_NO_DATABASE = "The database server has no database of this name: make one, or mend the address."
_NO_ENTRY = "The database server does not let this user in: mend user and password, or the server's pg_hba.conf."
_NO_HOST = "The database's host is not known: mend its name in the address."
_REFUSED = "Nothing listens at the database's address: is the server up, and is the port right?"

#: By PostgreSQL's SQLSTATE (its documentation, appendix A), or the beginning of one.
_BY_STATE = {
    "3D000": _NO_DATABASE,
    "28": _NO_ENTRY,
    "25006": _READ_ONLY,
    "53100": _FULL,
    "53300": "The database server has no connection left: raise max_connections, or use fewer workers.",
}
#: While connecting libpq has a text only, the server's own in the server's language.
_BY_TEXT = {
    "password authentication failed": _NO_ENTRY,
    "no password supplied": _NO_ENTRY,
    "no pg_hba.conf entry": _NO_ENTRY,
    'role "': _NO_ENTRY,
    '" does not exist': _NO_DATABASE,
    "failed to resolve host": _NO_HOST,
    "could not translate host name": _NO_HOST,
    "Connection refused": _REFUSED,
}
#: By SQLite's primary result code (sqlite.org/rescode.html).
_BY_SQLITE_CODE = {
    8: _READ_ONLY,
    11: "The SQLite file is damaged: restore it from a backup.",
    13: _FULL,
    14: "The SQLite file cannot be opened: mend its path, or the rights on the file and its folder.",
    26: "The file is not a SQLite database: mend its path.",
}
#: By redis-py's name of the error.
_BY_REDIS_ERROR = {
    "AuthenticationError": "Redis refuses this user or password: mend the address.",
    "NoPermissionError": "Redis does not let this user do what is needed: mend its ACL.",
    "ReadOnlyError": "This Redis is a read-only replica: give the address of the primary server.",
    "OutOfMemoryError": "Redis is full: raise its maxmemory.",
}
_REDIS = "Redis does not answer, or refuses: is it up, and is its address right?"


def reason_of(error: BaseException | None) -> str | None:
    """Return why a store failed, and what to do; None where nothing more is known."""
    while error is not None:
        if reason := _reason(error):
            return reason
        # What SQLAlchemy has wrapped, and what our own error was raised for.
        error = error.__cause__ or error.__context__
    return None


def _reason(error: BaseException) -> str | None:
    if type(error).__module__.startswith("redis."):
        return _BY_REDIS_ERROR.get(type(error).__name__, _REDIS)
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return _BY_SQLITE_CODE.get(code & 0xFF)
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return _BY_STATE.get(state) or _BY_STATE.get(state[:2])
    if type(error).__module__.startswith("psycopg"):
        text = str(error)
        return next((reason for words, reason in _BY_TEXT.items() if words in text), None)
    return None
