"""How databases are opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flask_byok.storage.engine import open_engine


def test_a_second_engine_leaves_the_first_its_locks(tmp_path: Path) -> None:
    """Opening a file that the process has open already ends no lock: another process takes no journal away."""
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
    """A file that is made, its folder too, can be read by nobody else."""
    engine = open_engine(f"sqlite:///{tmp_path / 'new' / 'keys.sqlite'}")
    engine.connect().close()
    assert (tmp_path / "new" / "keys.sqlite").stat().st_mode & 0o777 == 0o600
    engine.dispose()
