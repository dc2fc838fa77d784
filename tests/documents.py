"""Session documents as an attacker with access to a store sees and changes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, create_engine, select, update

from flask_byok.storage.tables import session_documents

#: Where a record lies: in a document, on a side (``u`` for a user's own, ``v`` for a visitor's), for a provider.
Place = tuple[str, str, str]

_SIDES = {"u": 4, "v": 5}


def records(ref: str, body: bytes) -> dict[Place, bytes]:
    """Return the records in a document."""
    document = msgspec.msgpack.decode(body)
    return {
        (ref, side, provider): record
        for side, index in _SIDES.items()
        for provider, record in document[index].items()
    }


def with_record(body: bytes, place: Place, record: bytes) -> bytes:
    """Return a document with another record in a place."""
    document = msgspec.msgpack.decode(body)
    document[_SIDES[place[1]]][place[2]] = record
    return msgspec.msgpack.encode(document)


def change_records(
    place: Engine | Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Change all records of all sessions in a database, or in the SQLite file of an app's folder."""
    if isinstance(place, Path):
        engine = create_engine(f"sqlite:///{place / 'byok.sqlite'}")
        change_records(engine, change)
        engine.dispose()
        return
    with place.begin() as connection:
        for row in connection.execute(select(session_documents)).all():
            body = row.body
            for place, record in records(row.ref, body).items():
                changed = json.dumps(change(json.loads(record))).encode()
                body = with_record(body, place, changed)
            here = session_documents.c.ref == row.ref
            connection.execute(update(session_documents).where(here).values(body=body))
