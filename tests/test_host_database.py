"""A host with a database of its own, through Flask-SQLAlchemy or Flask-SQLAlchemy-Lite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flask_sqlalchemy
import flask_sqlalchemy_lite
import pytest
from cachelib import SimpleCache
from flask import Flask
from flask_session import Session
from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_byok import BYOK, StoreError, UnknownProviderError
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import ENCRYPTION_KEY


class Base(DeclarativeBase):
    """The host's tables."""


class Note(Base):
    """Something that the host keeps."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@dataclass
class Host:
    """A host's app, its database and its extension."""

    app: Flask
    db: Any
    byok: BYOK
    #: What has happened to the host's session.
    ends: list[str] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        """Return the host's engine."""
        with self.app.app_context():
            engine: Engine = self.db.engine
            return engine

    def notes(self) -> int:
        """Count what has been committed."""
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(Note)).scalar_one()

    def serves(self) -> str:
        """Return the key that serves Ann."""
        with self.app.test_request_context():
            return self.byok.get_api_key("openai")


def _flask_sqlalchemy(app: Flask, url: str) -> Any:
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    return flask_sqlalchemy.SQLAlchemy(app, model_class=Base)


def _flask_sqlalchemy_lite(app: Flask, url: str) -> Any:
    app.config["SQLALCHEMY_ENGINES"] = {"default": url}
    return flask_sqlalchemy_lite.SQLAlchemy(app)


EXTENSIONS = {
    "Flask-SQLAlchemy": _flask_sqlalchemy,
    "Flask-SQLAlchemy-Lite": _flask_sqlalchemy_lite,
}


@pytest.fixture(params=EXTENSIONS)
def host(
    request: pytest.FixtureRequest, tmp_path: Path, fake: FakeProviders, database_url: str
) -> Iterator[Host]:
    """Make a host whose extension was set up before ours, and where Ann is signed in."""
    app = plain_app(tmp_path, fake)
    db = EXTENSIONS[request.param](app, database_url)
    made = Host(app, db, with_byok(app))
    Base.metadata.create_all(made.engine)
    with app.app_context():
        factory = db.session.session_factory if hasattr(db.session, "session_factory") else None
        watched = factory or db.session
    for name in ("after_commit", "after_rollback"):
        event.listen(watched, name, lambda _, name=name: made.ends.append(name))
    yield made
    made.engine.dispose()
    let_go(app)


def plain_app(directory: Path, fake: FakeProviders) -> Flask:
    """Return a host with sessions and no database yet."""
    app = Flask("host", instance_path=str(directory))
    app.config.update(
        SECRET_KEY="a host's own secret",
        SESSION_TYPE="cachelib",
        SESSION_CACHELIB=SimpleCache(),
        BYOK_ENCRYPTION_KEY=ENCRYPTION_KEY,
        BYOK_SECRETS_DIR=str(directory),
        BYOK_BASE_URLS={"openai": fake.base_url("openai")},
    )
    Session(app)
    return app


def with_byok(app: Flask) -> BYOK:
    """Set our extension up for a user who is always signed in."""
    byok = BYOK()
    byok.owner_loader(lambda: "ann")
    byok.init_app(app)
    return byok


def let_go(app: Flask) -> None:
    """Close our own connections, with no use left to count."""
    service = get_state(app).service
    with suppress(StoreError):
        service.traffic.flush()
    service.accounts.store.engine.dispose()


def work_in_a_view(host: Host, work: Callable[[], object], end: str) -> list[str]:
    """Do this in a request between a change of the host's and its end; return what it did to the host's session."""

    def view() -> str:
        session = host.db.session
        note = Note(text="pending")
        session.add(note)
        if host.engine.dialect.name == "postgresql":
            session.flush()  # SQLite has one writer at a time, which would be the host now
        host.ends.clear()
        work()
        done.extend(host.ends)
        assert note in session
        getattr(session, end)()
        return "ok"

    done: list[str] = []
    host.app.add_url_rule("/work", view_func=view, methods=["POST"])
    answer = host.app.test_client().post("/work")
    assert answer.text == "ok"
    return done


def change_keys(host: Host) -> None:
    """Set, use, list and clear keys, and be refused."""
    byok = host.byok
    byok.set("openai", "sk-proj-of-the-account", persist=True, validate="off")
    byok.set("groq", "gsk_of-the-account", persist=True, validate="off")
    assert byok.get_api_key("openai") == "sk-proj-of-the-account"
    assert byok.list_keys()
    assert byok.clear("groq") == ["user"]
    with pytest.raises(UnknownProviderError):
        byok.set("nothing", "sk-proj-of-the-account")


@pytest.mark.parametrize(("end", "notes"), [("rollback", 0), ("commit", 1)])
def test_the_hosts_session_is_its_own(host: Host, end: str, notes: int) -> None:
    """Keys are stored if the host keeps its changes or not, and neither commits nor rolls the other back."""
    assert work_in_a_view(host, lambda: change_keys(host), end) == []
    assert host.notes() == notes
    assert host.serves() == "sk-proj-of-the-account"


def test_the_hosts_database_is_used(host: Host) -> None:
    """With no BYOK_DATABASE_URL keys are where the host's data is: on PostgreSQL over the host's own engine."""
    accounts = get_state(host.app).service.accounts.store
    assert accounts is not None
    assert accounts.engine.url == host.engine.url
    assert (accounts.engine is host.engine) == (host.engine.dialect.name == "postgresql")
    with host.app.test_request_context():
        host.byok.set("openai", "sk-proj-of-the-account", persist=True, validate="off")
    with host.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT owner FROM byok_credentials").scalar_one()
    assert found == "user:ann"


def test_sqlite_has_one_writer(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> None:
    """Where a host has flushed changes to SQLite, a key is refused after a while, and the changes are whole."""
    app = plain_app(tmp_path, fake)
    host = Host(app, _flask_sqlalchemy(app, sqlite_url), with_byok(app))
    Base.metadata.create_all(host.engine)
    with app.test_request_context():
        host.db.session.add(Note(text="flushed"))
        host.db.session.flush()
        with pytest.raises(StoreError):
            host.byok.set("openai", "sk-proj-of-the-account", persist=True, validate="off")
        host.db.session.commit()
        assert host.notes() == 1
        host.byok.set("openai", "sk-proj-of-the-account", persist=True, validate="off")
    assert host.serves() == "sk-proj-of-the-account"
    host.engine.dispose()
    let_go(app)
