"""The processes of a rotation under load: `python -m tests.guarantees.rotating <read|write> <url> <stop> <report> …`.

A reader looks up anybody's key, a writer replaces its own owners'. Each goes on until the file `stop` is there, then
writes to `report` what it saw. The rotator is the command itself, on the app that `create_app` makes.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cachelib import SimpleCache
from flask import Flask
from flask_session import Session
from sqlalchemy import insert

from flask_byok import BYOK
from flask_byok.accounts.store.keys import AccountStore, new_id
from flask_byok.accounts.store.rows import new_values
from flask_byok.accounts.wing import open_accounts
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.tables import credentials
from tests.accounts.account_kinds import event_of, make_record, open_key
from tests.patience import give_time

OLD, NEW = (
    "f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e",
    "4fc82b26aecb47d2868c4efbe3581732a3e7cbcc6c2efb32062c08170a05eeb8",
)
#: Of a worker before the new encryption key is the current one, and after.
BEFORE, AFTER = Keyring(OLD, [NEW]), Keyring(NEW, [OLD])


def create_app() -> Flask:
    """Make the app that `flask byok rotate` runs in."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="a host's own secret",
        SESSION_TYPE="cachelib",
        SESSION_CACHELIB=SimpleCache(),
        BYOK_DATABASE_URL=os.environ["ROTATING_URL"],
        BYOK_ENCRYPTION_KEY=NEW,
        BYOK_ENCRYPTION_KEY_FALLBACKS=[OLD],
    )
    Session(app)
    BYOK(app)
    return app


def fill(url: str, count: int) -> None:
    """Store a key for each of so many users, sealed with the old encryption key."""
    store = open_accounts(url, BEFORE)
    for number in range(20):  # with a chain of their own
        store.put(_record(BEFORE, number, 0), event_of("set"))
    for start in range(20, count, 1000):
        numbers = range(start, min(start + 1000, count))
        rows = [{"id": new_id(), **new_values(_record(BEFORE, n, 0))} for n in numbers]
        with store.engine.begin() as connection:
            connection.execute(insert(credentials), rows)
    store.engine.dispose()


def opened(keyring: Keyring, record: Any) -> int:
    """Return the number of the write that a stored key is from; it must be its owner's."""
    name, number = open_key(record, keyring).split("#")
    assert name == record.owner
    return int(number)


def read(store: AccountStore, count: int, done: dict[str, int]) -> None:
    """Look up somebody's key."""
    owner = f"user:{random.randrange(count)}"
    (record,) = store.find([owner], ["openai"])
    done[owner] = opened(AFTER, record)


def write(
    store: AccountStore, count: int, done: dict[str, int], keyring: Keyring, among: int
) -> None:
    """Replace somebody's key; writers have no owner in common."""
    number = random.randrange(count // 2) * 2 + among
    written = done.get(f"user:{number}", 0) + 1
    store.put(_record(keyring, number, written), event_of("set"))
    done[f"user:{number}"] = written


def main(kind: str, url: str, stop: str, report: str, count: str) -> None:
    """Do one thing until told to stop."""
    give_time()
    store, done, failed = open_accounts(url, AFTER), {}, []
    steps: dict[str, Callable[[], None]] = {
        "read": lambda: read(store, int(count), done),
        "write": lambda: write(store, int(count), done, AFTER, 0),
        "write-old": lambda: write(store, int(count), done, BEFORE, 1),
    }
    step, calls, slowest = steps[kind], 0, 0.0
    while not Path(stop).exists():
        begin = time.monotonic()
        try:
            step()
        except Exception as error:
            failed.append(repr(error))
        calls, slowest = calls + 1, max(slowest, time.monotonic() - begin)
        time.sleep(0.005)  # SQLite has one writer at a time, and they do not queue
    told = {"calls": calls, "failed": failed, "slowest": slowest, "done": done}
    Path(report).write_text(json.dumps(told))


def _record(keyring: Keyring, number: int, written: int) -> Any:
    owner = f"user:{number}"
    return make_record(owner, api_key=f"{owner}#{written}", keyring=keyring)


if __name__ == "__main__":
    main(*sys.argv[1:])
