"""The tables and how they come to be, on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Column, Engine, MetaData, Text, make_url, select, text

from flask_byok.accounts.store.audit_prune import prune
from flask_byok.accounts.wing import open_accounts
from flask_byok.errors import ConfigurationError
from flask_byok.keys.sessions import Sessions
from flask_byok.model.credential import utcnow
from flask_byok.storage import migrations, tables
from flask_byok.storage.engine import Transactions, open_engine
from flask_byok.storage.sql import Database, SqlDocuments
from flask_byok.storage.tables import metadata, session_documents
from tests.accounts.account_kinds import ANN, KEYRING, event_of, make_record

from .contract import DAY
from .kinds import made_by_an_older_version


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Open an empty database."""
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def session_store(engine: Engine) -> Sessions:
    """Make a session store."""
    return Sessions(SqlDocuments(engine), ttl=DAY, max_age=30 * DAY)


def differences(engine: Engine, version_table: str = migrations.VERSION_TABLE) -> list[object]:
    """Return where the database differs from the models."""
    with engine.connect() as connection:
        options = {"version_table": version_table, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))


#: A later version's migration.
NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade():
    op.add_column("byok_promotions", sa.Column("note", sa.Text, nullable=True))
"""


@pytest.fixture
def later_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what turns this process into one of a later version, with one more migration and column."""
    folder, config = tmp_path / "later", migrations._config

    def later_config(**attributes: object) -> Config:
        made = config(**attributes)
        locations = (str(Path(migrations.__file__).parent / "versions"), str(folder))
        for name in ("path_separator", "version_path_separator"):  # the second before Alembic 1.16
            made.set_main_option(name, "os")
        made.set_main_option("version_locations", os.pathsep.join(locations))
        return made

    def begin() -> None:
        folder.mkdir()
        (folder / "v0002_note.py").write_text(NEXT)
        monkeypatch.setattr(migrations, "_config", later_config)
        later = MetaData()
        for table in metadata.sorted_tables:
            table.to_metadata(later)
        later.tables["byok_promotions"].append_column(Column("note", Text))
        for module in (migrations, tables):
            monkeypatch.setattr(module, "metadata", later)

    return begin


def test_fresh_upgrade_equals_the_models(engine: Engine) -> None:
    """An upgraded empty database has exactly the tables of the models, and another upgrade changes nothing."""
    migrations.upgrade(Database(engine, ()))
    migrations.upgrade(Database(engine, ()))
    assert differences(engine) == []
    assert migrations.current(Database(engine, ())) == migrations.head() == "0001"


def test_upgrade_with_data(engine: Engine, later_version: Callable[[], None]) -> None:
    """Tables of an older version are not changed unasked; the command changes them, and keys outlive that."""
    open_accounts(engine, KEYRING).put(make_record(), event_of())
    ref = session_store(engine).establish("sid-1")
    later_version()
    accounts = open_accounts(engine, KEYRING)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="flask byok db upgrade"):
            accounts.find([ANN])
    assert migrations.current(Database(engine, ())) == "0001"
    migrations.upgrade(Database(engine, ()))
    assert migrations.current(Database(engine, ())) == migrations.head() == "0002"
    assert len(accounts.find([ANN])) == 1, "without a restart"
    assert session_store(engine).find("sid-1") == ref


def test_own_file_is_upgraded_at_first_use(
    sqlite_url: str, later_version: Callable[[], None]
) -> None:
    """In a file that nothing else uses, an older version's tables are upgraded by themselves."""
    before = open_accounts(sqlite_url, KEYRING, own_file=True)
    before.put(make_record(), event_of())
    before.engine.dispose()
    later_version()
    store = open_accounts(sqlite_url, KEYRING, own_file=True)
    assert len(store.find([ANN])) == 1
    assert migrations.current(Database(store.engine, ())) == "0002"
    store.engine.dispose()


def test_refusal_is_an_answer(engine: Engine) -> None:
    """An older schema is reported each time, without keeping requests out for a while."""
    made_by_an_older_version(engine)
    accounts = open_accounts(engine, KEYRING)
    accounts.breaker.fault()
    with pytest.raises(ConfigurationError):
        accounts.find([ANN])
    accounts.breaker.fault()
    assert not accounts.breaker.is_open


def test_databases_made_at_once(tmp_path: Path) -> None:
    """Threads that make the tables of several databases at once do not get into each other's way."""
    urls = [f"sqlite:///{tmp_path / str(number)}" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda url: session_store(open_engine(url)).establish("sid-1"), urls))
    for url in urls:
        engine = open_engine(url)
        assert differences(engine) == []
        engine.dispose()


def test_first_start_of_many_processes(database_url: str) -> None:
    """Processes that meet an empty database at once make one schema, and all work."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside other threads
        children = [_first_use(database_url, read, write, number) for number in range(4)]
    os.close(read)
    os.close(write)  # go
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    engine = open_engine(database_url)
    assert differences(engine) == []
    with engine.connect() as connection:
        query = text(f"SELECT version_num FROM {migrations.VERSION_TABLE}")
        assert connection.execute(query).scalars().all() == ["0001"]
    assert len(open_accounts(engine, KEYRING).page(None)[0]) == 4
    engine.dispose()


def _first_use(url: str, read: int, write: int, number: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.close(write)
        os.read(read, 1)
        open_accounts(url, KEYRING).put(make_record(f"user:{number}"), event_of())
        session_store(open_engine(url)).establish(f"sid-{number}")
        os._exit(0)
    finally:
        os._exit(1)


def test_upgrade_of_what_the_host_made(engine: Engine) -> None:
    """Tables that are complete without our version table are only stamped by an upgrade."""
    metadata.create_all(engine)
    open_accounts(engine, KEYRING).put(make_record(), event_of())
    assert migrations.current(Database(engine, ())) is None
    migrations.upgrade(Database(engine, ()))
    assert migrations.current(Database(engine, ())) == "0001"
    assert len(open_accounts(engine, KEYRING).find([ANN])) == 1


def test_statements_make_the_same(engine: Engine) -> None:
    """What `db sql` prints makes the same tables when an administrator runs it."""
    printed = migrations.sql(engine.dialect.name)
    with Transactions(engine).single() as connection:
        for statement in printed.split(";"):
            lines = [line for line in statement.splitlines() if not line.startswith("--")]
            if code := "\n".join(lines).strip():
                connection.exec_driver_sql(code)
    assert differences(engine) == []
    assert migrations.current(Database(engine, ())) == "0001"
    with engine.connect() as connection:
        assert connection.execute(select(session_documents)).all() == []


def as_administrator(url: str, *statements: str) -> None:
    """Run statements as who owns the database."""
    engine = open_engine(url)
    with Transactions(engine).several() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def documented_grants(role: str) -> list[str]:
    """Return the statements that the documentation gives an administrator, for this user."""
    page = (Path(__file__).parents[2] / "docs/deployment.rst").read_text()
    found = re.search(r"code-block:: sql\n\n(.*?\n)\n(?=\S)", page, re.DOTALL)
    assert found is not None
    return [
        line for line in found[1].replace(" TO app;", f" TO {role};").split(";") if line.strip()
    ]


def test_user_without_rights(limited_url: str, postgres_url: str) -> None:
    """A user who may not make the tables, or not use them, reads what an administrator has to run."""
    store, role = open_accounts(limited_url, KEYRING), str(make_url(limited_url).username)
    every = f"ON ALL TABLES IN SCHEMA public TO {role}"
    for grant in (None, f"GRANT SELECT ON byok_canary TO {role}", f"GRANT SELECT {every}"):
        if grant is not None:
            as_administrator(postgres_url, grant)
        for _ in range(3):
            with pytest.raises(ConfigurationError, match="flask byok db sql"):
                store.put(make_record(), event_of())
        if grant is None:
            with pytest.raises(ConfigurationError, match="flask byok db sql"):
                migrations.upgrade(Database(store.engine, ()))
            as_administrator(postgres_url, migrations.sql("postgresql"))
    as_administrator(postgres_url, f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
    as_administrator(postgres_url, *documented_grants(role))
    store.put(make_record(), event_of())
    for _ in prune(store.audit, utcnow(), event_of("prune")):
        pass
    assert store.audit.verify() == []
    assert migrations.current(Database(store.engine, ())) == "0001"
    assert session_store(store.engine).establish("sid-1")
    store.engine.dispose()
