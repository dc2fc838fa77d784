"""A database that is restored from a backup: what comes back with it, and how the operator learns that."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from flask_byok.testing import FakeProviders
from tests.app import fingerprint
from tests.keeper import close, keeper
from tests.services import postgres_binary

from .host import make_host, refused, run

#: Returns a function that brings the database back to what it is now.
Backup = Callable[[], Callable[[], object]]


@pytest.fixture
def backup(database_url: str, tmp_path: Path) -> Backup:
    """Back the database up with the commands of the documentation."""
    url, file = make_url(database_url), tmp_path / "backup"
    if url.get_backend_name() == "sqlite":

        def copy(source: str, target: str) -> None:
            # What ".backup" and ".restore" of the sqlite3 shell call.
            with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
                old.backup(new)

        def back_up() -> Callable[[], object]:
            copy(url.database or "", str(file))
            return lambda: copy(str(file), url.database or "")

    else:
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)

        def call(program: str, *args: str) -> None:
            binary = postgres_binary(program) or shutil.which(program)
            assert binary is not None
            subprocess.run([binary, *args], check=True, env=os.environ)

        def back_up() -> Callable[[], object]:
            sessions = "--exclude-table-data=byok_session_*"
            call("pg_dump", "--format=custom", f"--file={file}", sessions, address)
            options = ("--clean", "--if-exists", "--single-transaction")
            return lambda: call("pg_restore", *options, f"--dbname={address}", str(file))

    return back_up


def test_a_restored_backup(
    tmp_path: Path, fake: FakeProviders, database_url: str, backup: Backup
) -> None:
    """A key that was removed after the backup serves again; the heads that were kept elsewhere show it."""
    app = make_host(tmp_path, fake, database_url)
    ann, ben = keeper(app, "ann"), keeper(app, "ben")
    removed, kept = fake.api_key("openai", owner="ann"), fake.api_key("openai", owner="ben")
    ann.keep(removed)
    ben.keep(kept)
    heads = tmp_path / "heads"
    heads.write_text(run(app, "audit", "heads").output)
    restore = backup()
    assert ann.call("clear", provider="openai").status_code == 200
    assert ann.get("/used/openai").status_code == 409
    newer = tmp_path / "newer-heads"
    newer.write_text(run(app, "audit", "heads").output)
    close(app)
    restore()

    again = make_host(tmp_path, fake, database_url)
    used = keeper(again, "ann").get("/used/openai").get_json()
    assert used == {"source": "user", "fingerprint": fingerprint(removed)}
    assert run(again, "audit", "verify").exit_code == 0, "the log came back with the keys"
    assert run(again, "audit", "verify", "--against", str(heads)).exit_code == 0, "older"
    result = run(again, "audit", "verify", "--against", str(newer))
    assert "1 finding" in refused(result)
    assert "user:ann row 2: this was its end once" in result.stderr
    assert "user:ben" not in result.output
    assert "keys that they removed since serve again" in result.stderr

    run(again, "clear", "openai", "--owner", "user:ann", "--yes")
    assert keeper(again, "ann").get("/used/openai").status_code == 409
    assert keeper(again, "ben").get("/used/openai").get_json()["fingerprint"] == fingerprint(kept)
    close(again)
