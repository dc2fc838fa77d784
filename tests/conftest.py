"""Offer the real services to every test, and let nothing be skipped in CI."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest
import redis

from flask_byok.testing import FakeProviders
from tests import services
from tests.app import Browser, HostApp, browser, make_app
from tests.patience import give_time

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a shell; the programs that tests start and interrupt would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

give_time()
# A busy machine is no failure.
hypothesis.settings.register_profile("byok", deadline=None)
hypothesis.settings.load_profile("byok")
# What the package logs is for `caplog`. On the terminal it would stand between the dots, wherever pytest does not
# catch it: in a worker that is done before the others, and at the end of a process.
logging.getLogger("flask_byok").addHandler(logging.NullHandler())

#: Folders and files of slow tests, the slowest first.
_SLOW = ("guarantees", "ui", "test_openapi", "web", "cli", "storage", "test_litellm")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _fail_if_skipped(report: Report) -> Report:
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped when CI=true: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: at the end, each would keep one process busy alone."""

    def rank(item: pytest.Item) -> int:
        names = (item.path.parent.name, item.path.stem)
        return next((rank for rank, name in enumerate(_SLOW) if name in names), len(_SLOW))

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a skipped test fail in CI."""
    return _fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let a skipped module fail in CI."""
    return _fail_if_skipped((yield))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[services.RedisServer]:
    """Run one Redis for the whole run; a test that kills or freezes a server makes its own."""
    if services.redis_binary() is None:
        pytest.skip("redis-server is not installed")
    with services.RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """Return the address of an empty Redis: our own or, if none is installed, the one at REDIS_URL."""
    if services.redis_binary() is None and "REDIS_URL" in os.environ:
        url = os.environ["REDIS_URL"]
    else:
        server: services.RedisServer = request.getfixturevalue("redis_server")
        url = server.url
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """Return the address of a PostgreSQL: our own or, if none is installed, the one at DATABASE_URL."""
    if services.postgres_binary("initdb") is not None:
        with services.PostgresServer() as server:
            yield server.url
    elif "DATABASE_URL" in os.environ:
        yield os.environ["DATABASE_URL"]
    else:
        pytest.skip("PostgreSQL is not installed")


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """Return the address of an empty database on PostgreSQL, for SQLAlchemy with psycopg."""
    url = services.create_database(postgres_server_url)
    yield url
    services.drop_database(url, postgres_server_url)


@pytest.fixture
def limited_url(postgres_url: str) -> Iterator[str]:
    """Return the address of an empty database on PostgreSQL, for a user who may create nothing."""
    with services.limited_user(postgres_url) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Return the address of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'byok.sqlite'}"


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Return the address of an empty database, of each kind in turn."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def fake() -> Iterator[FakeProviders]:
    """Run fake providers whose slow keys take 0.3 seconds."""
    with FakeProviders() as providers:
        providers.slow_seconds = 0.3
        yield providers


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Return a host with fake providers, its sessions and keys in files."""
    return make_app(tmp_path, fake)


@pytest.fixture
def visitor(app: HostApp) -> Browser:
    """Return a browser on the host."""
    return browser(app)
