"""Databases: how they are opened, and how a store uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from flask_byok.errors import StoreError
from flask_byok.storage.engine import open_engine
from flask_byok.storage.protection import Breaker
from flask_byok.storage.sql import Database


def test_an_open_breaker_keeps_calls_away() -> None:
    """While the breaker is open no call and no change reaches the database; afterwards they do."""
    now = [0.0]
    database = Database("sqlite://", ())
    database.breaker = Breaker(clock=lambda: now[0])
    reached: list[str] = []

    def call() -> None:
        database.call(lambda: reached.append("call"))

    def change() -> None:
        database.change(
            lambda connection: reached.append(f"{connection.execute(text('SELECT 7')).scalar()}")
        )

    for _ in range(2):
        database.breaker.fault()
    for work in (call, change):
        with pytest.raises(StoreError):
            work()
    assert reached == []
    now[0] += 1.1
    call()
    change()
    assert reached == ["call", "7"]


def test_a_second_engine_leaves_the_first_its_locks(tmp_path: Path) -> None:
    """Opening a file that the process has open ends no lock: another process takes no journal away."""
    path = tmp_path / "keys.sqlite"
    first = open_engine(f"sqlite:///{path}")
    with first.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        second = open_engine(f"sqlite:///{path}")
        script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM t'); c.close()"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        assert path.with_name("keys.sqlite-wal").exists()
    for engine in (first, second):
        engine.dispose()


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    """A file that is made, its folder too, can be read by its owner alone."""
    engine = open_engine(f"sqlite:///{tmp_path / 'new' / 'keys.sqlite'}")
    engine.connect().close()
    assert (tmp_path / "new" / "keys.sqlite").stat().st_mode & 0o777 == 0o600
    engine.dispose()
