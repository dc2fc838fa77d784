"""A host whose Flask-Migrate takes our tables over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flask_migrate
import flask_sqlalchemy
import pytest
from flask import Flask
from sqlalchemy import create_engine, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_byok import BYOK, ConfigurationError
from flask_byok.stores.tables import metadata
from flask_byok.testing import FakeProviders
from tests.app import browser
from tests.stores.older_tables import made_by_first_version
from tests.test_host_database import let_go, plain_app, with_byok

# Flask-Migrate's own env.py asks old versions of Flask-SQLAlchemy first.
pytestmark = pytest.mark.filterwarnings("ignore:'get_engine' is deprecated")

#: What the host's author adds to the ``env.py`` that Flask-Migrate wrote.
ADDED = """
from flask_byok.stores.tables import metadata as byok_metadata


def get_metadata():
    return [target_db.metadata, byok_metadata]


def run_migrations_offline"""


class Base(DeclarativeBase):
    """The host's tables."""


class Memo(Base):
    """Something that the host keeps."""

    __tablename__ = "memos"
    id: Mapped[int] = mapped_column(primary_key=True)


class Host:
    """A host with a folder of migrations."""

    def __init__(self, directory: Path, fake: FakeProviders, url: str) -> None:
        self.folder = directory / "migrations"
        self.url = url
        self.app, self.byok = self._make(directory, fake)

    def _make(self, directory: Path, fake: FakeProviders) -> tuple[Flask, BYOK]:
        app = plain_app(directory, fake)
        app.config["SQLALCHEMY_DATABASE_URI"] = self.url
        db = flask_sqlalchemy.SQLAlchemy(app, model_class=Base)
        flask_migrate.Migrate(
            app,
            db,
            directory=str(self.folder),
            include_name=lambda name, type_, parents: name != "byok_alembic_version",
        )
        return app, with_byok(app)

    @contextmanager
    def command(self) -> Iterator[None]:
        """Be in a command; what ``env.py`` leaves in the app is gone with its process."""
        with self.app.app_context():
            yield
        self.app.extensions["migrate"].configure_args.pop("process_revision_directives", None)

    def begin(self, *, with_ours: bool = True) -> None:
        """Run ``flask db init``, and edit ``env.py``."""
        with self.command():
            flask_migrate.init()
        env = self.folder / "env.py"
        # It would silence the loggers of this process.
        text = env.read_text().replace("fileConfig(config.config_file_name)", "")
        env.write_text(text.replace("\ndef run_migrations_offline", ADDED) if with_ours else text)

    def migrate(self) -> str:
        """Run ``flask db migrate`` and ``flask db upgrade``, and return what was written."""
        before = set(self.folder.glob("versions/*.py"))
        with self.command():
            flask_migrate.migrate()
        with self.command():
            flask_migrate.upgrade()
        (script,) = set(self.folder.glob("versions/*.py")) - before
        return script.read_text()

    def check(self) -> None:
        """Run ``flask db check``, which ends the process where it finds a difference."""
        with self.command():
            flask_migrate.check()

    def keep_key(self) -> None:
        """Keep a key in an account."""
        with self.app.test_request_context():
            self.byok.set("openai", "sk-proj-of-the-account", persist=True, validate="off")
            assert self.byok.get_api_key("openai") == "sk-proj-of-the-account"

    def use_keys(self) -> None:
        """Keep a key in an account and another for the session, and see that both serve."""
        self.keep_key()
        client = browser(self.app)
        assert client.save("gsk_of-the-session", "groq", validate="off").status_code == 200
        sources = {name: client.status(name)["source"] for name in ("openai", "groq")}
        assert sources == {"openai": "user", "groq": "session"}

    def tables(self) -> set[str]:
        """Name the tables that there are."""
        engine = create_engine(self.url)
        found = set(inspect(engine).get_table_names())
        engine.dispose()
        return found

    def close(self) -> None:
        let_go(self.app)
        with self.app.app_context():
            self.app.extensions["sqlalchemy"].engine.dispose()


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def url(request: pytest.FixtureRequest) -> str:
    """Name an empty database, of each kind in turn."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture
def host(tmp_path: Path, fake: FakeProviders, url: str) -> Iterator[Host]:
    """Make a host on an empty database, in which our tables are made at the start."""
    made = Host(tmp_path, fake, url)
    yield made
    made.close()


def test_our_tables_among_the_hosts(host: Host) -> None:
    """With our metadata beside the host's, its migrations leave our tables alone, and a check finds no difference."""
    host.begin()
    script = host.migrate()
    assert "'memos'" in script
    assert "byok_" not in script
    host.check()
    host.use_keys()
    host.check()
    assert {"memos", *metadata.tables} <= host.tables()


def test_without_our_metadata_the_check_speaks_up(host: Host) -> None:
    """A host that forgets our metadata is told so by ``flask db check``: its next migration would drop our tables."""
    host.begin(with_ours=False)
    with pytest.raises(SystemExit):
        host.check()


def test_an_older_versions_tables(tmp_path: Path, fake: FakeProviders, url: str) -> None:
    """Where the tables are a version older, keys say so, and the host's next migration brings the rest."""
    engine = create_engine(url)
    made_by_first_version(engine)
    engine.dispose()
    host = Host(tmp_path, fake, url)
    with pytest.raises(ConfigurationError, match="your own migration"):
        host.keep_key()
    host.begin()
    script = host.migrate()
    assert "'byok_credentials'" in script
    assert "drop_table('byok_session" not in script.partition("def downgrade")[0]
    host.check()
    host.use_keys()
    host.close()
