"""A host whose own session store is down goes on where it needs no session."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy.exc
from flask import Flask, Request, Response, session, stream_with_context
from flask.sessions import SessionInterface
from flask_session import Session
from flask_session.base import ServerSideSession
from flask_sqlalchemy import SQLAlchemy

from flask_byok import BYOK, StoreError
from flask_byok.storage.breaker import Breaker
from flask_byok.web import session_guard
from flask_byok.web.session_guard import SLOW_FAULT, UnavailableSession
from tests.app import KEYS, bare, limited_redis


class BrokenInterface(SessionInterface):
    """A session store that can fail when it is read or written, slowly or at once."""

    def __init__(self) -> None:
        self.open_error: Exception | None = None
        self.save_error: Exception | None = None
        self.seconds = 0.0
        self.opened = self.opened_at_once = self.saved = 0
        self.sid: Any = "the-sid"

    def open_session(self, app: Flask, request: Request) -> Any:
        self.opened += 1
        if self.open_error is not None:
            time.sleep(self.seconds)
            raise self.open_error
        self.opened_at_once += 1
        return ServerSideSession(sid=self.sid)

    def save_session(self, app: Flask, session: Any, response: Response) -> None:
        self.saved += 1
        if self.save_error is not None:
            time.sleep(self.seconds)
            raise self.save_error


@pytest.fixture
def interface() -> BrokenInterface:
    """Provide a session store to break."""
    return BrokenInterface()


@pytest.fixture
def app(tmp_path: Path, interface: BrokenInterface) -> Flask:
    """Make a host on the breakable store."""
    app = bare(tmp_path, WTF_CSRF_ENABLED=False)
    app.session_interface = interface
    byok = BYOK(app)

    @app.get("/plain")
    def plain() -> str:
        return "plain"

    @app.get("/look")
    def look() -> str:
        return str(session.get("user"))

    @app.get("/stream")
    def stream() -> Response:
        def pieces() -> Iterator[str]:
            try:
                yield byok.resolve("openai").api_key
            except StoreError:
                yield "away"

        return Response(stream_with_context(pieces()))

    @app.post("/write")
    def write() -> Response:
        session["user"] = "a"
        return Response("written", headers={"X-Done": "yes"})

    @app.after_request
    def look_afterwards(response: Response) -> Response:
        # As Flask-Login does for its remember-me cookie.
        if "_remember" in session:
            session.pop("_remember")
        return response

    return app


def test_routes_without_a_session_go_on(app: Flask, interface: BrokenInterface) -> None:
    """A route that does not touch the session answers as ever, also if a hook looks at it afterwards."""
    interface.open_error = ConnectionError("redis://:password@host is down")
    answer = app.test_client().get("/plain")
    assert (answer.status_code, answer.text) == (200, "plain")


@pytest.mark.parametrize(("method", "path"), [("GET", "/look"), ("POST", "/write"), ("GET", KEYS)])
def test_routes_with_a_session_answer_503(
    app: Flask, interface: BrokenInterface, caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    """A route that needs the session answers 503; the log has the fault without the store's address."""
    interface.open_error = ConnectionError("redis://:password@host is down")
    answer = app.test_client().open(path, method=method)
    assert (answer.status_code, answer.get_json()["code"]) == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "ConnectionError" in caplog.text
    assert "password" not in caplog.text + answer.text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (redis.ConnectionError("redis://:password@host is down"), "Redis does not answer"),
        (redis.TimeoutError("redis://:password@host"), "Redis did not answer in time"),
        (ConnectionError("password"), "ConnectionError"),
    ],
)
def test_log_has_the_fault_once_and_the_recovery_once(
    app: Flask,
    interface: BrokenInterface,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
) -> None:
    """The log says once why the session store fails, and once that it works, as soon as a session was saved."""
    interface.open_error = error
    for _ in range(3):
        assert app.test_client().get("/look").status_code == 503
    interface.open_error = None
    assert app.test_client().get("/look").status_code == 200
    fault = [record.getMessage() for record in caplog.records]
    assert len(fault) == 1
    assert fault[0].startswith(f"The host's session store failed: {reason}")
    for _ in range(2):
        assert app.test_client().post("/write").status_code == 200
    assert [record.getMessage() for record in caplog.records][1:] == [
        "The host's session store works again."
    ]
    assert "password" not in caplog.text


def test_a_change_that_cannot_be_saved_is_no_success(
    app: Flask, interface: BrokenInterface
) -> None:
    """If a changed session cannot be saved, the answer is replaced by a 503."""
    interface.save_error = ConnectionError("down")
    answer = app.test_client().post("/write")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "store_unavailable")
    assert int(answer.headers["Content-Length"]) == len(answer.data)
    assert "X-Done" not in answer.headers


def test_an_unchanged_session_need_not_be_saved(app: Flask, interface: BrokenInterface) -> None:
    """If the session is unchanged, a failure to save it does not matter."""
    interface.save_error = ConnectionError("down")
    assert app.test_client().get("/plain").text == "plain"


def test_what_the_developer_did_wrong_is_not_hidden(app: Flask, interface: BrokenInterface) -> None:
    """Something in the session that cannot be written down is a fault of the program."""
    interface.save_error = TypeError("cannot serialize")
    app.testing = True
    with pytest.raises(TypeError, match="cannot serialize"):
        app.test_client().post("/write")


def test_a_slow_fault_is_not_waited_for_again(app: Flask, interface: BrokenInterface) -> None:
    """After two slow faults requests do not wait for the store for a while; after quick ones they try each time."""
    interface.open_error = TimeoutError()
    interface.seconds = SLOW_FAULT * 1.5
    for _ in range(6):
        assert app.test_client().get("/plain").status_code == 200
    assert interface.opened == 2


def test_a_quick_fault_is_forgotten_at_once(app: Flask, interface: BrokenInterface) -> None:
    """One person's unreadable session does not keep the others out."""
    for _ in range(5):
        interface.open_error = ValueError("unreadable")
        assert app.test_client().get("/look").status_code == 503
        interface.open_error = None
        assert app.test_client().get("/look").status_code == 200


def test_new_visitors_take_no_fault_back(app: Flask, interface: BrokenInterface) -> None:
    """Requests without a cookie, for which no store is asked, do not let the others wait for a slow one each time."""
    error, interface.seconds = TimeoutError(), SLOW_FAULT * 1.5
    for _ in range(6):
        interface.open_error = None
        app.test_client().get("/plain")
        interface.open_error = error
        known = app.test_client()
        known.set_cookie("session", "the-sid")
        known.get("/plain")
    assert interface.opened - interface.opened_at_once == 2


def test_new_visitors_decide_nothing_after_the_pause(
    app: Flask, interface: BrokenInterface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the store may be asked again, requests for which it is not asked leave that to others; a saved one tells."""
    now, asked = 0.0, 0
    monkeypatch.setattr(session_guard, "Breaker", lambda: Breaker(lambda: now))
    error, interface.seconds = TimeoutError(), SLOW_FAULT * 1.5
    known = app.test_client()
    known.set_cookie("session", "the-sid")
    for path, more in ((None, 2), ("/plain", 1), ("/plain", 1), ("/write", 2)):
        if path:
            interface.open_error = None
            method = "POST" if path == "/write" else "GET"
            answers = [app.test_client().open(path, method=method) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 200]
        interface.open_error = error
        for _ in range(3):
            known.get("/plain")
        asked += more
        assert interface.opened - interface.opened_at_once == asked
        now += 1.1


def test_new_visitors_who_write_wait_once(
    app: Flask, interface: BrokenInterface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a store that hangs may be asked again, one of many new sessions is tried; the others are refused at once."""
    now = 0.0
    monkeypatch.setattr(session_guard, "Breaker", lambda: Breaker(lambda: now))
    interface.open_error, interface.seconds = TimeoutError(), 0.4
    for _ in range(2):
        app.test_client().get("/plain")
    interface.open_error, interface.save_error = None, TimeoutError()
    now += 1.1
    with ThreadPoolExecutor(8) as visitors:
        answers = list(visitors.map(lambda _: app.test_client().post("/write"), range(8)))
    assert {answer.status_code for answer in answers} == {503}
    assert interface.saved == 1


@pytest.mark.parametrize("sid", [None, b"abc"])
def test_a_session_id_is_text(app: Flask, interface: BrokenInterface, sid: Any) -> None:
    """Sessions whose id is missing, or is no text, are refused with a problem that says what is needed."""
    interface.sid = sid
    answer = app.test_client().get(KEYS)
    assert (answer.status_code, answer.get_json()["code"]) == (500, "configuration")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(), "ConnectionRefusedError"),
        (redis.exceptions.ReadOnlyError(), "read-only"),
        (redis.exceptions.OutOfMemoryError(), "full"),
    ],
)
def test_faults_are_logged_once(
    app: Flask,
    interface: BrokenInterface,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    words: str,
) -> None:
    """A session store that is away, or takes no changes, is one line, and another one when it works again."""
    interface.save_error = error
    interface.open_error = error if isinstance(error, OSError) else None
    known = app.test_client()
    known.set_cookie("session", "the-sid")
    for _ in range(4):
        assert known.post("/write").status_code == 503
    interface.save_error = interface.open_error = None
    for _ in range(3):
        assert known.post("/write").status_code == 200
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("The host's session store failed: ")
    assert words in first
    assert second == "The host's session store works again."


# The kinds of cookies that a driver, a store or a file system may choke on, as they travel.
BAD_COOKIES = [
    r'"a\000b"',
    r'"\000"',
    r'"a\012\015b"',
    r'"\303\050"',
    r'"\355\240\200"',
    "a\x80b",
    "a%00b",
    "../../../etc/passwd",
    "x" * 5_000,
    "x" * 300,
    "' OR 1=1 --",
    r'"\177"',
]


def _on_postgres(app: Flask, url: str) -> None:
    app.config.update(SESSION_TYPE="sqlalchemy", SQLALCHEMY_DATABASE_URI=url)
    app.config["SESSION_SQLALCHEMY"] = SQLAlchemy(app)


def _on_redis(app: Flask, url: str) -> None:
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=limited_redis(url))


def _in_files(app: Flask, url: str) -> None:
    """Keep the files that ``bare`` sets up."""


@pytest.mark.parametrize(
    ("keep", "url"),
    [(_on_postgres, "postgres_url"), (_on_redis, "redis_url"), (_in_files, "sqlite_url")],
)
def test_bad_cookies_take_nothing_from_others(
    tmp_path: Path, keep: Any, url: str, request: pytest.FixtureRequest
) -> None:
    """On each kind of store a request with an impossible session id gets a new session, and the others keep theirs."""
    app = bare(tmp_path, BYOK_DATABASE_URL=f"sqlite:///{tmp_path / 'byok.sqlite'}")
    keep(app, request.getfixturevalue(url))
    Session(app)
    BYOK(app)

    @app.get("/visit")
    def visit() -> str:
        session["visits"] = session.get("visits", 0) + 1
        return str(session["visits"])

    other = app.test_client()
    assert other.get("/visit").text == "1"
    for visits, cookie in enumerate(BAD_COOKIES, start=2):
        answer = app.test_client(use_cookies=False).get(
            "/visit", headers={"Cookie": f"session={cookie}"}
        )
        assert (answer.status_code, answer.text) == (200, "1"), cookie
        assert other.get("/visit").text == str(visits)
    if "SESSION_SQLALCHEMY" in app.config:
        with app.app_context():
            app.config["SESSION_SQLALCHEMY"].engine.dispose()


class DataError(Exception):
    """What a driver says of a value that it cannot send."""


class OperationalError(Exception):
    """What a driver says of a connection, and of a value that is too long for an index."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("text")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (DataError(), 6),
        (ValueError(), 6),
        (FileNotFoundError(), 6),
        (OperationalError("54000"), 6),
        (OperationalError("57P03"), 2),
        (OperationalError(None), 2),
        (OSError(errno.EHOSTUNREACH, "no route"), 2),
        (redis.exceptions.BusyLoadingError(), 2),
        (sqlalchemy.exc.TimeoutError(), 2),
    ],
)
def test_only_faults_of_the_connection_count(
    app: Flask, interface: BrokenInterface, error: Exception, asked: int
) -> None:
    """However slow, what one request brought is no fault of the store; a connection or a time limit that fails is."""
    interface.open_error, interface.seconds = error, SLOW_FAULT * 1.5
    for _ in range(6):
        app.test_client().get("/plain")
    assert interface.opened == asked


def test_every_way_to_touch_it_refuses() -> None:
    """Reading, writing, counting, iterating and asking for the id all raise until the view has answered."""
    refusing = UnavailableSession()
    touches: list[Any] = [
        lambda: refusing["a"],
        lambda: refusing.__setitem__("a", 1),
        lambda: refusing.pop("a"),
        lambda: refusing.get("a"),
        lambda: "a" in refusing,
        lambda: bool(refusing),
        lambda: list(refusing),
        lambda: refusing.clear(),
        lambda: refusing.sid,
        lambda: refusing.permanent,
        lambda: refusing.setdefault("a", 1),
        lambda: dict(refusing.items()),
    ]
    for touch in touches:
        with pytest.raises(StoreError):
            touch()
    refusing.let_go(Response())
    assert "a" not in refusing


def test_no_other_key_serves_after_the_view(
    app: Flask, interface: BrokenInterface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the session's store is away, a stream that asks after the view is not served the operator's key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-operators-own-key")
    interface.open_error = ConnectionError("down")
    assert app.test_client().get("/stream").text == "away"
