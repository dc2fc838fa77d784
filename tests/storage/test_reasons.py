"""Why a store failed, and what to do: what real servers and files say, in a sentence without an address."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import create_engine, make_url

from flask_byok.accounts.wing import open_accounts
from flask_byok.errors import StoreError
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.breaker import reason_of
from flask_byok.storage.engine import patiently
from flask_byok.storage.redis import limited_client
from tests import services

KEYRING = Keyring("f1534392279bddbf9d43dde8701cb5be14b82f76ec6607bf8d6ad557f60f304e")


@pytest.fixture(scope="module")
def strict_server() -> Iterator[services.PostgresServer]:
    """Run a PostgreSQL that asks Ann for a password, has no connection for Cid, and lets in no unknown user."""
    with services.PostgresServer() as server:
        with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE ROLE ann LOGIN PASSWORD 'hunter23'")
            connection.execute("CREATE ROLE cid LOGIN CONNECTION LIMIT 0")
        rules = "host all ann 127.0.0.1/32 scram-sha-256\nhost all byok,cid 127.0.0.1/32 trust\n"
        (server.directory / "data" / "pg_hba.conf").write_text(rules)
        server.restart()
        yield server


def why(url: str) -> str | None:
    """Return why a store on this address fails."""
    store = open_accounts(url, KEYRING)
    with patiently(), pytest.raises(StoreError) as caught:  # a resolver may take a second
        store.find(["system"])
    store.engine.dispose()
    reason = reason_of(caught.value)
    assert "hunter22" not in str(reason)
    return reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"database": "hunter22"}, "no database of this name"),
        ({"username": "ann", "password": "hunter22"}, "does not let this user in"),
        ({"username": "ann"}, "does not let this user in"),
        ({"username": "ben", "password": "hunter22"}, "does not let this user in"),
        ({"host": "hunter22.invalid"}, "host is not known"),
        ({"port": services.free_port(), "password": "hunter22"}, "Nothing listens"),
        ({"username": "cid"}, "no connection left"),
        ({"query": {"sslmode": "require"}}, "TLS does not fit"),
        ({"query": {"hunter22": "1"}}, "parameter that libpq does not know"),
    ],
)
def test_postgres_that_refuses(
    strict_server: services.PostgresServer, changes: dict[str, Any], words: str
) -> None:
    """Each part of an address that is wrong has a sentence of its own."""
    url = make_url(strict_server.url).set(**changes)
    assert words in str(why(url.render_as_string(hide_password=False)))


def test_other_addresses_that_are_wrong(postgres_url: str, tmp_path: Path) -> None:
    """A user unknown to a trusting server and a file that is no database have sentences too."""
    (tmp_path / "text").write_text("hunter22 " * 1000)
    stranger = make_url(postgres_url).set(username="nobody").render_as_string()
    assert "does not let this user in" in str(why(stranger))
    assert "not a SQLite database" in str(why(f"sqlite:///{tmp_path / 'text'}"))


def test_file_that_is_read_only(tmp_path: Path) -> None:
    """A file that cannot be written is called read-only."""
    store = open_accounts(f"sqlite:///{tmp_path / 'keys.sqlite'}", KEYRING)
    store.canary.secret()
    store.engine.dispose()  # the file then has all that was written
    copy = shutil.copy(tmp_path / "keys.sqlite", tmp_path / "copy.sqlite")
    with sqlite3.connect(copy) as connection:
        connection.execute("DELETE FROM byok_canary")
    connection.close()
    store = open_accounts(f"sqlite:///file:{copy}?mode=ro&uri=true", KEYRING)
    with pytest.raises(StoreError) as caught:
        store.canary.secret()
    assert "read-only" in str(reason_of(caught.value))
    store.engine.dispose()


def test_full_disk(tmp_path: Path) -> None:
    """A file that can grow no more is on a full disk; PostgreSQL's code for it means the same."""
    engine = create_engine(f"sqlite:///{tmp_path / 'small.sqlite'}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        with pytest.raises(Exception, match="full") as caught:
            connection.exec_driver_sql("CREATE TABLE t (x)")
    engine.dispose()
    for error in (caught.value, psycopg.errors.DiskFull()):
        assert "disk is full" in str(reason_of(error))


def test_redis(redis_url: str) -> None:
    """A Redis that is not there, or asks for a password, has sentences of its own."""
    away = limited_client(f"redis://127.0.0.1:{services.free_port()}")
    with pytest.raises(redis.ConnectionError) as caught:
        away.ping()
    assert "Redis does not answer" in str(reason_of(caught.value))
    stranger = limited_client(redis_url.replace("redis://", "redis://ann:hunter22@"))
    with pytest.raises(redis.AuthenticationError) as refused:
        stranger.ping()
    assert "refuses this user or password" in str(reason_of(refused.value))


def test_nothing_known() -> None:
    """Of anything else nothing more is known."""
    assert reason_of(StoreError()) is None
    assert reason_of(psycopg.errors.UndefinedTable()) is None
