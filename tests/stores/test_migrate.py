"""The tables and how they come to be, on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata, produce_migrations
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations.ops import DropTableOp
from sqlalchemy import Engine, MetaData, inspect, make_url, select, text

from flask_byok.accounts import open_accounts
from flask_byok.errors import ConfigurationError
from flask_byok.model.owner import SessionRef
from flask_byok.storage import migrate
from flask_byok.storage.engine import Transactions, open_engine
from flask_byok.storage.sql import SqlSessionStore
from flask_byok.storage.sql_tables import sessions
from flask_byok.storage.tables import metadata
from tests.accounts.account_kinds import ANN, KEYRING, event_of, make_record

from .contract import DAY, VISITOR, use_of
from .older_tables import (
    RECORD,
    REF,
    SID,
    begin_session,
    made_by_first_migration,
    made_by_first_version,
    made_by_second_migration,
    made_by_third_migration,
)

#: A host's Alembic environment that makes our tables with its own.
HOST_ENVIRONMENT = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table
from flask_byok.storage.tables import metadata as byok_metadata

host_metadata = MetaData()
Table("notes", host_metadata, Column("id", Integer, primary_key=True))
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=[host_metadata, byok_metadata],
)
with context.begin_transaction():
    context.run_migrations()
"""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Open an empty database."""
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def session_store(engine: Engine) -> SqlSessionStore:
    """Make a session store."""
    return SqlSessionStore(engine, ttl=DAY, max_age=30 * DAY)


def differences(engine: Engine, version_table: str = migrate.VERSION_TABLE) -> list[object]:
    """Return where the database differs from the models."""
    with engine.connect() as connection:
        options = {"version_table": version_table, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))


WITH_ACCOUNTS = [made_by_second_migration, made_by_third_migration]
EVERY_EARLIER = [made_by_first_version, made_by_first_migration, *WITH_ACCOUNTS]
#: Those that count no uses in sessions.
WITHOUT_COUNTS = EVERY_EARLIER[:3]
#: Those that know no accounts.
WITHOUT_ACCOUNTS = EVERY_EARLIER[:2]


def test_fresh_upgrade_equals_the_models(engine: Engine) -> None:
    """An upgraded empty database has exactly the tables of the models."""
    migrate.upgrade(engine)
    assert differences(engine) == []
    assert migrate.current(engine) == migrate.head() == "0004"


def test_first_use_makes_the_tables(engine: Engine) -> None:
    """A store makes the tables of an empty database by itself, the same as an upgrade does."""
    open_accounts(engine, KEYRING).create(make_record(), event_of())
    assert differences(engine) == []
    assert migrate.current(engine) == migrate.head()


def test_upgrade_twice(engine: Engine) -> None:
    """An upgrade of what is up to date changes nothing."""
    migrate.upgrade(engine)
    migrate.upgrade(engine)
    assert differences(engine) == []


@pytest.mark.parametrize("make", EVERY_EARLIER)
def test_upgrade_with_data(engine: Engine, make: Callable[[Engine], None]) -> None:
    """Session keys outlive the upgrade from every earlier schema, are counted from then on, and accounts work too."""
    make(engine)
    begin_session(engine)
    migrate.upgrade(engine)
    assert differences(engine) == []
    assert migrate.current(engine) == "0004"
    store, session = session_store(engine), SessionRef(SID, REF)
    assert store.read(session, VISITOR, ["openai"]).records == {"openai": RECORD}
    store.count(use_of(session, RECORD))
    assert store.read(session, VISITOR, ["openai"]).records["openai"].usage_count == 1
    open_accounts(engine, KEYRING).create(make_record(provider="groq"), event_of())


@pytest.mark.parametrize("make", WITH_ACCOUNTS)
def test_upgrade_of_accounts(engine: Engine, make: Callable[[Engine], None]) -> None:
    """Keys in accounts and their uses are as they were before the upgrade, and saved when they were created."""
    make(engine)
    migrate.upgrade(engine)
    accounts = open_accounts(engine, KEYRING)
    (key,) = accounts.find([ANN])
    assert (key.id, key.version, key.usage_count) == ("1", "3", 7)
    assert (key.set_at, key.saved_at) == (None, key.created_at)
    assert accounts.usage.stats([ANN])["by_provider"]["openai"]["uses"] == 7


@pytest.mark.parametrize("make", WITH_ACCOUNTS)
def test_upgrade_of_the_log(engine: Engine, make: Callable[[Engine], None]) -> None:
    """The log is as whole as it was, and covers what a key's record says from its next change on."""
    make(engine)
    migrate.upgrade(engine)
    accounts = open_accounts(engine, KEYRING)
    assert accounts.audit.verify() == []
    accounts.change("1", [ANN], {"label": "mine"}, event_of("change"))
    assert accounts.audit.verify() == []
    with engine.begin() as connection:
        connection.execute(text("UPDATE byok_credentials SET label = 'forged'"))
    (finding,) = accounts.audit.verify()
    assert finding.problem.startswith("the key 1 is not what its last row says")


@pytest.mark.parametrize("make", WITHOUT_COUNTS)
def test_sessions_wait_for_the_upgrade(engine: Engine, make: Callable[[Engine], None]) -> None:
    """Session keys say what to run where their tables cannot count yet, and go on after it without a restart."""
    make(engine)
    begin_session(engine)
    store = session_store(engine)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="flask byok db upgrade"):
            store.find(SID)
    migrate.upgrade(engine)
    assert store.find(SID) == REF


@pytest.mark.parametrize("make", WITHOUT_ACCOUNTS)
def test_older_schema_is_refused(engine: Engine, make: Callable[[Engine], None]) -> None:
    """An older schema is not changed unasked: the error says what to run, each time."""
    make(engine)
    accounts = open_accounts(engine, KEYRING)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="flask byok db upgrade"):
            accounts.find([ANN])
    assert not inspect(engine).has_table("byok_credentials")
    migrate.upgrade(engine)
    assert accounts.find([ANN]) == []


def test_session_store_on_an_older_schema(engine: Engine) -> None:
    """Tables that session keys need are missed by their store too, and an upgrade makes them beside the others."""
    made_by_first_version(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE byok_canary"))
    store = session_store(engine)
    with pytest.raises(ConfigurationError, match="flask byok db upgrade"):
        store.establish("sid-1")
    migrate.upgrade(engine)
    assert differences(engine) == []
    assert store.canary("key", "sealed") == "sealed"


def test_refusal_is_an_answer(engine: Engine) -> None:
    """An older schema is told each time, without keeping anybody out for a while."""
    made_by_first_version(engine)
    accounts = open_accounts(engine, KEYRING)
    accounts.breaker.fault()
    with pytest.raises(ConfigurationError):
        accounts.find([ANN])
    accounts.breaker.fault()
    assert not accounts.breaker.is_open


@pytest.mark.parametrize("make", EVERY_EARLIER)
def test_own_file_is_upgraded_at_first_use(sqlite_url: str, make: Callable[[Engine], None]) -> None:
    """In a file that is ours alone an older schema is upgraded by itself, with what is in it."""
    before = open_engine(sqlite_url)
    make(before)
    begin_session(before)
    before.dispose()
    store = SqlSessionStore(sqlite_url, ttl=DAY, max_age=30 * DAY, own_file=True)
    found = store.read(SessionRef(SID, REF), VISITOR, ["openai"]).records
    assert found == {"openai": RECORD}
    assert differences(store.engine) == []
    assert migrate.current(store.engine) == migrate.head()
    kept = open_accounts(sqlite_url, KEYRING, own_file=True).find([ANN])
    assert [key.id for key in kept] == ["1"] * (make in WITH_ACCOUNTS)
    store.engine.dispose()


def test_databases_made_at_once(tmp_path: Path) -> None:
    """Threads that make the tables of several databases at once do not get into each other's way."""
    urls = [f"sqlite:///{tmp_path / str(number)}" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda url: session_store(open_engine(url)).establish("sid-1"), urls))
    for url in urls:
        engine = open_engine(url)
        assert differences(engine) == []
        engine.dispose()


def test_missing_column_is_refused(engine: Engine) -> None:
    """Tables of the right names that lack a column are refused as well."""
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE byok_credentials DROP COLUMN description"))
    with pytest.raises(ConfigurationError, match="flask byok db upgrade"):
        open_accounts(engine, KEYRING).find([ANN])


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
        query = text(f"SELECT version_num FROM {migrate.VERSION_TABLE}")
        assert connection.execute(query).scalars().all() == ["0004"]
    assert len(open_accounts(engine, KEYRING).page(None)[0]) == 4
    engine.dispose()


def _first_use(url: str, read: int, write: int, number: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.close(write)
        os.read(read, 1)
        open_accounts(url, KEYRING).create(make_record(f"user:{number}"), event_of())
        session_store(open_engine(url)).establish(f"sid-{number}")
        os._exit(0)
    finally:
        os._exit(1)


def test_host_takes_the_tables_over(engine: Engine, tmp_path: Path) -> None:
    """A host's own Alembic makes the tables with its own, and BYOK then needs no migration of its own."""
    config = Config(str(tmp_path / "alembic.ini"), stdout=(tmp_path / "out").open("w"))
    command.init(config, str(tmp_path / "host"))
    config.set_main_option("script_location", str(tmp_path / "host"))
    config.set_main_option("path_separator", "os")
    (tmp_path / "host/env.py").write_text(HOST_ENVIRONMENT)
    for step in (
        lambda: command.revision(config, "all tables", autogenerate=True),
        lambda: command.upgrade(config, "head"),
        lambda: command.check(config),
    ):
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            step()
    store = open_accounts(engine, KEYRING)
    store.create(make_record(), event_of())
    session_store(engine).establish("sid-1")
    assert not inspect(engine).has_table(migrate.VERSION_TABLE)
    assert inspect(engine).has_table("notes")
    assert store.audit.verify() == []
    config.stdout.close()


#: How a host's ``env.py`` leaves our tables alone, and how it takes them over.
LEFT_ALONE = {
    "target_metadata": [MetaData()],
    "include_name": lambda name, type_, _: type_ != "table" or not name.startswith("byok_"),
}
TAKEN_OVER = {
    "target_metadata": [MetaData(), metadata],
    "include_name": lambda name, _type, _parents: name != "byok_alembic_version",
}


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        (LEFT_ALONE, set()),
        (TAKEN_OVER, set()),
        ({"target_metadata": [MetaData()]}, {*metadata.tables, "byok_alembic_version"}),
    ],
)
def test_host_drops_nothing(engine: Engine, options: dict[str, Any], dropped: set[str]) -> None:
    """With the lines that the documentation gives a host's Alembic finds nothing to change."""
    session_store(engine).establish("sid-1")
    with engine.connect() as connection:
        script = produce_migrations(
            MigrationContext.configure(connection, opts=options), options["target_metadata"]
        )
    found = script.upgrade_ops.ops if script.upgrade_ops else []
    assert {op.table_name for op in found if isinstance(op, DropTableOp)} == dropped
    assert bool(found) == bool(dropped)


def test_upgrade_of_what_the_host_made(engine: Engine) -> None:
    """Tables that are complete without our version table are only stamped by an upgrade."""
    metadata.create_all(engine)
    open_accounts(engine, KEYRING).create(make_record(), event_of())
    assert migrate.current(engine) is None
    migrate.upgrade(engine)
    assert migrate.current(engine) == "0004"
    assert len(open_accounts(engine, KEYRING).find([ANN])) == 1


def test_statements_make_the_same(engine: Engine) -> None:
    """What `db sql` prints makes the same tables when an administrator runs it."""
    printed = migrate.sql(engine.dialect.name)
    with Transactions(engine).single() as connection:
        for statement in printed.split(";"):
            lines = [line for line in statement.splitlines() if not line.startswith("--")]
            if code := "\n".join(lines).strip():
                connection.exec_driver_sql(code)
    assert differences(engine) == []
    assert migrate.current(engine) == "0004"
    with engine.connect() as connection:
        assert connection.execute(select(sessions)).all() == []


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
    """A user who may not make the tables, or not use them, is told what an administrator has to run."""
    store, role = open_accounts(limited_url, KEYRING), str(make_url(limited_url).username)
    every = f"ON ALL TABLES IN SCHEMA public TO {role}"
    for grant in (None, f"GRANT SELECT ON byok_canary TO {role}", f"GRANT SELECT {every}"):
        if grant is not None:
            as_administrator(postgres_url, grant)
        for _ in range(3):
            with pytest.raises(ConfigurationError, match="flask byok db sql"):
                store.create(make_record(), event_of())
        if grant is None:
            with pytest.raises(ConfigurationError, match="flask byok db sql"):
                migrate.upgrade(store.engine)
            as_administrator(postgres_url, migrate.sql("postgresql"))
    as_administrator(postgres_url, f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
    as_administrator(postgres_url, *documented_grants(role))
    store.create(make_record(), event_of())
    store.audit.restart(event_of("restart"))
    assert store.audit.verify() == []
    assert migrate.current(store.engine) == "0004"
    sessions_there = SqlSessionStore(limited_url, ttl=DAY, max_age=30 * DAY)
    assert sessions_there.establish("sid-1")
    sessions_there.engine.dispose()
    store.engine.dispose()
