"""Between a credential's record and its row."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from datetime import datetime
from operator import itemgetter
from typing import Any, cast

from ...model.credential import CredentialRecord, RecordedVerdict, Verdict, utcnow
from ...storage.tables import credentials
from .audit_chain import from_milliseconds, to_milliseconds

_NO_VERDICT = {"verdict": None, "verdict_at": None, "verdict_version": None}
_CHANGEABLE = {
    *("label", "description", "active", "expires_at"),
    *("ciphertext", "hint", "validity", "set_at"),
}


# SQLAlchemy's own rows take ten times as long to give a column by its name.
_Row = cast(Any, namedtuple)("_Row", credentials.c.keys())

#: Returns the owner and the provider of a row of ``byok_credentials`` with all its columns.
place_of: Callable[[Any], tuple[str, str]] = itemgetter(
    *map(credentials.c.keys().index, ("owner", "provider"))
)


#: What comes of a column that has what we never write.
_IMPOSSIBLE = (TypeError, ValueError, OverflowError, OSError)


def to_record(row: Any) -> CredentialRecord:
    """Return the record of a row of ``byok_credentials`` with all its columns.

    One with a time that there is not, which somebody else has put there, is unreadable, like one
    whose ciphertext is not ours: it serves nobody, and can be seen, changed and deleted.
    """
    row = _Row._make(row)
    try:
        return _as_written(row)
    except _IMPOSSIBLE:
        return _unreadable(row)


def _unreadable(row: Any) -> CredentialRecord:
    # Neither off nor expired nor checked, so that its state is that of its ciphertext.
    none = {"active": True, "expires_at": None, "set_at": None, "last_used_at": None}
    times = {name: _possible(getattr(row, name)) for name in ("created_at", "updated_at")}
    return _as_written(row._replace(ciphertext="", verdict=None, **none, **times))


def _possible(stored: Any) -> int:
    try:
        from_milliseconds(stored)
    except _IMPOSSIBLE:
        return 0
    return int(stored)


def _as_written(row: Any) -> CredentialRecord:
    return CredentialRecord(
        provider=row.provider,
        owner=row.owner,
        ciphertext=row.ciphertext,
        hint=row.hint,
        version=str(row.version),
        created_at=from_milliseconds(row.created_at),
        updated_at=from_milliseconds(row.updated_at),
        expires_at=_moment(row.expires_at),
        label=row.label,
        description=row.description,
        slot=row.slot,
        active=row.active,
        last_used_at=_moment(row.last_used_at),
        usage_count=row.usage_count,
        validity=None if row.verdict is None else _verdict(row),
        id=row.id,
        set_at=_moment(row.set_at),
    )


def new_values(record: CredentialRecord) -> dict[str, Any]:
    """Return the columns of a new row, but for its id."""
    return {
        "owner": record.owner,
        "tier": record.owner.partition(":")[0],
        "provider": record.provider,
        "slot": record.slot,
        "hint": record.hint,
        "label": record.label,
        "description": record.description,
        "active": record.active,
        "created_at": to_milliseconds(record.created_at),
        "updated_at": to_milliseconds(record.updated_at),
        "expires_at": _stored(record.expires_at),
        "set_at": to_milliseconds(record.saved_at),
        "last_used_at": _stored(record.last_used_at),
        "usage_count": record.usage_count,
        "version": 1,
        **key_columns(record.ciphertext),
        **_first_verdict(record.validity),
    }


def changed_values(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that a change sets; without ``verdict`` among them the verdict stays.

    :raises KeyError: something else is to be changed.
    """
    if unknown := set(changes) - _CHANGEABLE:
        raise KeyError(*unknown)
    times = {name: _stored(changes[name]) for name in ("expires_at", "set_at") if name in changes}
    values = {**changes, **times, "updated_at": to_milliseconds(utcnow())}
    validity = values.pop("validity", None)
    if "ciphertext" in changes:
        found = _NO_VERDICT if validity is None else verdict_values(validity)
        values |= key_columns(changes["ciphertext"]) | found
        values.setdefault("set_at", values["updated_at"])
        values.pop("verdict_version", None)  # the statement sets it
    return values


def key_columns(ciphertext: str) -> dict[str, str]:
    """Return a ciphertext with the id of the encryption key that it names."""
    parts = ciphertext.split(".")
    return {"ciphertext": ciphertext, "key_id": parts[1] if len(parts) == 4 else ""}


def verdict_values(verdict: RecordedVerdict) -> dict[str, Any]:
    """Return the columns of a verdict, but for the version that it is about."""
    return {"verdict": verdict.verdict.value, "verdict_at": to_milliseconds(verdict.checked_at)}


def _first_verdict(verdict: RecordedVerdict | None) -> dict[str, Any]:
    if verdict is None:
        return dict(_NO_VERDICT)
    return verdict_values(verdict) | {"verdict_version": 1}


def _verdict(row: Any) -> RecordedVerdict | None:
    try:
        verdict = Verdict(row.verdict)
    except ValueError:
        return None  # of a later version
    return RecordedVerdict(verdict, from_milliseconds(row.verdict_at), str(row.verdict_version))


def _moment(stored: int | None) -> datetime | None:
    return None if stored is None else from_milliseconds(stored)


def _stored(moment: datetime | None) -> int | None:
    return None if moment is None else to_milliseconds(moment)
