"""The tables: ``flask byok db``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, inspect

from flask_byok.errors import ConfigurationError
from flask_byok.web.caller import get_state
from tests.storage.kinds import made_by_an_older_version

from .host import OLD, SAFE, make_app, refused, run


def test_database_commands(tmp_path: Path, redis_url: str) -> None:
    """The tables are shown, made and upgraded by command; printing the statements runs none."""
    url = f"sqlite:///{tmp_path / 'keys.sqlite'}"
    # With session keys elsewhere and no accounts the app itself does not touch the database.
    elsewhere = {"BYOK_REDIS": redis_url, "BYOK_PRECEDENCE": ["session", "env"]}
    app = make_app(tmp_path, BYOK_DATABASE_URL=url, **elsewhere, **SAFE)
    assert run(app, "db", "current").output == "tables  -\nnewest  0001\n"
    printed = run(app, "db", "sql")
    assert "CREATE TABLE byok_credentials" in printed.output
    assert run(app, "db", "current").output.startswith("tables  -")
    assert run(app, "db", "upgrade").output == "The tables are at revision 0001.\n"
    assert run(app, "db", "current").output == "tables  0001\nnewest  0001\n"
    assert run(app, "db", "upgrade").exit_code == 0


def test_database_commands_use_the_apps_database(tmp_path: Path) -> None:
    """Commands work on the database that the app uses, though the host's comes later."""
    app = make_app(tmp_path, **SAFE)
    engine = create_engine(f"sqlite:///{tmp_path / 'host.sqlite'}")
    app.extensions["sqlalchemy"] = SimpleNamespace(engine=engine)
    assert run(app, "db", "upgrade").exit_code == 0
    assert (tmp_path / "byok.sqlite3").exists()
    assert not inspect(engine).has_table("byok_credentials")
    engine.dispose()


def test_start_tells_of_a_new_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new SQLite file is logged once, as its path may be mistyped; our own file is not."""
    file = tmp_path / "mistyped" / "keys.sqlite"
    config = {"BYOK_ENCRYPTION_KEY": OLD, **SAFE}
    for _ in range(2):
        make_app(tmp_path, BYOK_DATABASE_URL=f"sqlite:///{file}", **config)
    make_app(tmp_path, **config)
    said = [
        record.message for record in caplog.records if "an empty one was made" in record.message
    ]
    assert said == [f"There was no SQLite file {file}: an empty one was made."]


def test_start_leaves_older_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tables of an older version are upgraded by the command alone, which the app names at its start and ever after."""
    engine = create_engine(f"sqlite:///{tmp_path / 'keys.sqlite'}")
    made_by_an_older_version(engine)
    app = make_app(tmp_path, BYOK_DATABASE_URL=str(engine.url), **SAFE)
    assert "flask byok db upgrade" in caplog.text
    with pytest.raises(ConfigurationError, match="flask byok db upgrade"):
        get_state(app).service.sessions.find("sid-1")
    assert not inspect(engine).has_table("byok_session_names")
    assert run(app, "db", "current").output == "tables  -\nnewest  0001\n"
    engine.dispose()


def test_tables_of_a_later_version(tmp_path: Path) -> None:
    """Tables that a later version has made are left alone; which version that is for can be seen."""
    app = make_app(tmp_path, **SAFE)
    engine = create_engine(f"sqlite:///{tmp_path / 'byok.sqlite3'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE byok_alembic_version SET version_num = '0099'")
    engine.dispose()
    assert run(app, "db", "current").output == "tables  0099\nnewest  0001\n"
    assert "at revision 0099, which a later version" in refused(run(app, "db", "upgrade"))
    result = run(app, "check")
    assert result.exit_code == 1
    assert "unsafe: The tables are at revision 0099" in result.stderr
