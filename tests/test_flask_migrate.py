"""A host whose Flask-Migrate takes our tables over."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import flask_migrate
import flask_sqlalchemy
import pytest
from flask import Flask
from sqlalchemy import create_engine, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_byok import BYOK, ConfigurationError
from flask_byok.storage.tables import metadata
from flask_byok.testing import FakeProviders
from tests.app import browser
from tests.cli.host import run
from tests.storage.kinds import made_by_an_older_version
from tests.test_host_database import let_go, plain_app, with_byok

# Flask-Migrate's own env.py asks old versions of Flask-SQLAlchemy first.
pytestmark = pytest.mark.filterwarnings("ignore:'get_engine' is deprecated")

#: What the page on deployment has a host's author write, in its order: to leave our tables alone, or to take them over
#: where Flask-Migrate is set up and in the ``env.py`` that it wrote.
LEAVE, TAKE, IN_ENV = (
    textwrap.dedent(block)
    for block in re.findall(
        r"\.\. code-block:: python\n\n(.*?)(?=\n\S)",
        (Path(__file__).parent.parent / "docs" / "deployment.rst")
        .read_text()
        .partition("next migration that it")[2],
        re.DOTALL,
    )
)
_OWN_METADATA = re.compile(r"def get_metadata\(\):\n(    .*\n)+")


class Base(DeclarativeBase):
    """The host's tables."""


class Memo(Base):
    """Something that the host keeps."""

    __tablename__ = "memos"
    id: Mapped[int] = mapped_column(primary_key=True)


class Host:
    """A host with a folder of migrations."""

    def __init__(self, directory: Path, fake: FakeProviders, url: str, written: str = TAKE) -> None:
        self.folder = directory / "migrations"
        self.url = url
        self.written = written
        self.app, self.byok = self._make(directory, fake)

    def _make(self, directory: Path, fake: FakeProviders) -> tuple[Flask, BYOK]:
        app = plain_app(directory, fake)
        app.config["SQLALCHEMY_DATABASE_URI"] = self.url
        db = flask_sqlalchemy.SQLAlchemy(app, model_class=Base)
        migrate = partial(flask_migrate.Migrate, directory=str(self.folder))
        exec(self.written, {"app": app, "db": db, "Migrate": migrate})
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
        text, replaced = _OWN_METADATA.subn(IN_ENV, text) if with_ours else (text, 1)
        assert replaced == 1
        env.write_text(text)

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


@pytest.mark.parametrize(("written", "with_ours"), [(TAKE, True), (LEAVE, False)])
def test_our_tables_beside_the_hosts(
    tmp_path: Path, fake: FakeProviders, database_url: str, written: str, with_ours: bool
) -> None:
    """With either of the page's blocks the host's migrations leave our tables alone, and a check finds nothing."""
    host = Host(tmp_path, fake, database_url, written)
    host.begin(with_ours=with_ours)
    script = host.migrate()
    assert "'memos'" in script
    assert "byok_" not in script
    host.check()
    host.use_keys()
    host.check()
    assert {"memos", *metadata.tables} <= host.tables()
    host.close()


def test_tables_that_would_be_dropped(
    tmp_path: Path, fake: FakeProviders, database_url: str
) -> None:
    """Without any of these lines the host's next migration drops our tables; ``flask byok check`` says so."""
    host = Host(tmp_path, fake, database_url, written="Migrate(app, db)")
    host.begin(with_ours=False)
    said = "note: Flask-Migrate is set up on this database, and nothing keeps our tables out"
    assert said in run(host.app, "check").output
    with pytest.raises(SystemExit):
        host.check()
    host.close()


def test_an_older_versions_tables(tmp_path: Path, fake: FakeProviders, database_url: str) -> None:
    """Where the tables are a version older, keys say so, and the host's next migration brings the rest."""
    engine = create_engine(database_url)
    made_by_an_older_version(engine)
    engine.dispose()
    host = Host(tmp_path, fake, database_url)
    with pytest.raises(ConfigurationError, match="your own migration"):
        host.keep_key()
    host.begin()
    script = host.migrate()
    assert "'byok_session_names'" in script
    assert "'set_at'" in script
    assert "drop_table('byok_session" not in script.partition("def downgrade")[0]
    host.check()
    host.use_keys()
    assert "byok_alembic_version" not in host.tables()
    host.close()
