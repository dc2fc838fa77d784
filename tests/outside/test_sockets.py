"""A real Socket.IO client at a real server: an event uses the keys of the person who is connected."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import socketio
from flask import Flask, session
from flask_session.redis import RedisSessionInterface
from redis import Redis
from werkzeug.serving import make_server

from tests.app import Browser
from tests.outside.calls import tried
from tests.outside.conftest import Place


@pytest.fixture(params=[True, False])
def server(imported: Place, request: pytest.FixtureRequest) -> Server:
    """Serve the example, with a session that Flask-SocketIO manages and one that Flask does."""
    import sockets

    app: Flask = sockets.app
    sockets.byok.owner_loader(lambda: session.get("user"))
    app.session_interface = RedisSessionInterface(app, client=Redis.from_url(imported.redis_url))
    app.add_url_rule("/in/<user>", "in", lambda user: str(session.update(user=user)))
    app.add_url_rule("/out", "out", lambda: str(session.clear()))
    sockets.socketio.on_event("tried", lambda: tried(sockets.byok))
    sockets.socketio.on_event("keep", lambda key: sockets.byok.set("openai", key)["source"])
    sockets.socketio.server_options["manage_session"] = request.param
    sockets.socketio.manage_session = request.param
    return Server(app, imported)


class Server:
    """The example's server."""

    def __init__(self, app: Flask, place: Place) -> None:
        self.app, self.place = app, place

    def browser(self, *paths: str) -> Browser:
        """Return a browser that has visited these pages."""
        visitor = Browser(self.app, use_cookies=True)
        for path in paths:
            assert visitor.get(path).status_code == 200
        return visitor

    @contextmanager
    def connected(self, visitor: Browser) -> Iterator[Callable[..., Any]]:
        """Connect a socket with the browser's cookie, and yield the function that makes an event."""
        cookie = visitor.get_cookie("session")
        headers = {"Cookie": f"session={cookie.value}"} if cookie else {}
        web = make_server("127.0.0.1", 0, self.app, threaded=True)
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        client = socketio.Client()
        try:
            client.connect(f"http://127.0.0.1:{web.server_port}", headers, transports=["websocket"])
            yield lambda event, *data: client.call(event, data or None, timeout=8)
        finally:
            client.disconnect()
            web.shutdown()
            thread.join()
            web.server_close()


def test_a_socket_uses_its_persons_keys(server: Server) -> None:
    """A key in the session serves its visitor, and one in the account the user who has signed in."""
    place = server.place
    visitor = server.browser("/api/providers/keys")
    mine = place.fake.api_key("openai", owner="visitor")
    visitor.save(mine)
    place.fake.clear_calls()
    with server.connected(visitor) as event:
        assert event("ask", "hello") == {"source": "session"}
        assert place.used() == {mine}
    with server.connected(server.browser("/in/ada")) as event:
        assert event("ask", "hello") == {"source": "user"}
    assert place.used() == {mine, place.adas}


def test_a_socket_of_no_one_finds_no_key(server: Server) -> None:
    """Without a session and a user no call serves, the operator's key included, and the visitor reads what to do."""
    with server.connected(server.browser()) as event:
        told = {"code": "owner_required", "detail": "Load this page again, then ask."}
        assert event("ask", "hello") == told
        assert set(event("tried").values()) == {"owner_required"}
    assert server.place.used() == set()


def test_a_socket_of_a_session_that_has_changed_finds_no_key(server: Server) -> None:
    """After a sign-out or another sign-in in the browser, the socket that stayed open uses no one's key."""
    visitor = server.browser("/in/ada")
    visitor.load()
    with server.connected(visitor) as event:
        assert event("ask", "hello") == {"source": "user"}
        server.place.fake.clear_calls()
        visitor.get("/out")
        assert event("ask", "hello")["code"] == "owner_required"
    assert server.place.used() == set()


def test_a_socket_may_keep_a_key_in_an_established_session(server: Server) -> None:
    """An event stores a key where the page has established the session, and changes none of the host's session data."""
    visitor = server.browser("/api/providers/keys")
    visitor.load()
    new = server.place.fake.api_key("openai", owner="new")
    with server.connected(visitor) as event:
        assert event("keep", new) == "session"
        assert event("ask", "hello") == {"source": "session"}
    assert visitor.status()["source"] == "session"
