"""Keys follow the host's session: emptied, renewed, signed out, passed on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import request, session, stream_with_context
from flask_session import Session

from flask_byok import BYOK, ConfigurationError, StoreError
from flask_byok.storage.sql import SqlDocuments
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from flask_byok.web.session_binding import MARKER, index_key
from tests.app import (
    ENCRYPTION_KEY,
    KEYS,
    OTHER_ENCRYPTION_KEY,
    Browser,
    HostApp,
    bare,
    browser,
    fingerprint,
    make_app,
)


class CountingStore:
    """A session store that counts the calls to another, and fails on demand."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.name = inner.name
        self.calls: list[str] = []
        self.failing = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if self.failing:
                raise StoreError(tier="session")
            return method(*args, **kwargs)

        return call


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    """Count what is asked of the store."""
    return CountingStore(SqlDocuments(f"sqlite:///{tmp_path / 'byok.sqlite'}"))


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders, store: CountingStore) -> HostApp:
    """Make a host on the counting store."""
    return make_app(tmp_path, fake, BYOK_SESSION_STORE=store, BYOK_VALIDATE_ON_SET="off")


def _key(fake: FakeProviders, owner: str = "") -> str:
    return fake.api_key("openai", owner=owner)


def _used(client: Browser) -> str | None:
    answer = client.get("/used/openai")
    return answer.get_json().get("fingerprint") if answer.status_code == 200 else None


def _edit(app: HostApp, client: Browser, **data: Any) -> None:
    """Write to the host's session data from outside of any request; None deletes an entry."""
    cache, name = app.config["SESSION_CACHELIB"], f"session:{client.session_id}"
    changed = {k: v for k, v in {**cache.get(name), **data}.items() if v is not None}
    cache.set(name, changed)


@pytest.mark.parametrize("path", ["/empty", "/empty?then=1"])
def test_an_emptied_session_has_no_keys(
    app: HostApp, visitor: Browser, fake: FakeProviders, path: str
) -> None:
    """session.clear() deletes the keys, also when the same request fills the session again."""
    visitor.save(_key(fake))
    twin = visitor.twin()
    visitor.post(path)
    assert _used(visitor) is None
    assert _used(twin) is None
    assert visitor.status()["has_key"] is False
    assert visitor.save(_key(fake, "new")).status_code == 200
    assert _used(visitor) == fingerprint(_key(fake, "new"))


@pytest.mark.parametrize("new_data", ["entries of other names", "entries of the same names"])
def test_emptied_after_a_race_has_lost_the_marker(
    app: HostApp, visitor: Browser, fake: FakeProviders, new_data: str
) -> None:
    """An overlapping request may have written the marker away; emptying still deletes the keys."""
    visitor.get("/visit")
    visitor.save(_key(fake))
    same = {"then": "0"} if new_data == "entries of the same names" else {}
    _edit(app, visitor, **{MARKER: None}, **same)
    visitor.post("/empty?then=1")
    assert _used(visitor) is None


def test_a_lost_marker_loses_no_key(app: HostApp, visitor: Browser, fake: FakeProviders) -> None:
    """If an overlapping request has lost the marker, the keys are found by the session's id."""
    visitor.get("/visit")
    visitor.save(_key(fake))
    _edit(app, visitor, **{MARKER: None})
    assert _used(visitor) == fingerprint(_key(fake))


def test_a_renewed_session_keeps_its_keys(
    app: HostApp, visitor: Browser, fake: FakeProviders
) -> None:
    """regenerate() takes the keys along, and the old cookie leads to nothing."""
    visitor.save(_key(fake))
    thief = visitor.twin()
    visitor.post("/renew")
    assert _used(visitor) == fingerprint(_key(fake))
    assert _used(thief) is None


def test_sign_out_deletes_the_keys(app: HostApp, visitor: Browser, fake: FakeProviders) -> None:
    """After Flask-Login's logout_user() the next person in the same session finds no key."""
    visitor.post("/sign-in/a")
    visitor.get("/visit")
    visitor.save(_key(fake))
    assert _used(visitor) == fingerprint(_key(fake))
    visitor.post("/sign-out")
    assert _used(visitor) is None
    visitor.post("/sign-in/a")
    assert _used(visitor) is None
    assert visitor.status()["has_key"] is False


def _visitor_of_a_forgetful_host(
    tmp_path: Path, fake: FakeProviders, store: CountingStore
) -> Browser:
    """Return a visitor of a host that keeps a user's id in the session, and takes it out to sign out."""
    app = make_app(tmp_path, fake, BYOK_SESSION_STORE=store, csrf_protect=False)
    app.byok.owner_loader(lambda: session.get("uid"))
    app.add_url_rule("/in/<uid>", "in", lambda uid: str(session.update(uid=uid)), methods=["POST"])
    app.add_url_rule("/out", "out", lambda: str(session.pop("uid")), methods=["POST"])
    return browser(app)


def test_a_host_that_signs_out_by_forgetting_the_id(
    tmp_path: Path, fake: FakeProviders, store: CountingStore
) -> None:
    """Taking the user's id out of the session ends the keys in that very request: the same user finds none later."""
    visitor = _visitor_of_a_forgetful_host(tmp_path, fake, store)
    visitor.post("/in/ada")
    visitor.save(_key(fake))
    visitor.post("/out")
    visitor.get("/plain")
    visitor.post("/in/ada")
    assert visitor.status()["has_key"] is False


def test_a_host_can_end_the_keys_itself(
    tmp_path: Path, fake: FakeProviders, store: CountingStore
) -> None:
    """`byok.end_session()` deletes the session's keys; the host's own entries stay."""
    app = make_app(tmp_path, fake, BYOK_SESSION_STORE=store, csrf_protect=False)
    app.add_url_rule("/end", "end", lambda: str(app.byok.end_session()), methods=["POST"])
    visitor = browser(app)
    visitor.save(_key(fake))
    visitor.get("/visit")
    visitor.post("/end")
    assert visitor.status()["has_key"] is False
    assert visitor.get("/visit").text == "2"


def test_another_user_in_the_same_session(
    app: HostApp, visitor: Browser, fake: FakeProviders
) -> None:
    """Keys of A serve neither B nor A again once B was here."""
    visitor.post("/sign-in/a")
    visitor.save(_key(fake))
    visitor.post("/sign-in/b")
    assert _used(visitor) is None
    assert visitor.status()["has_key"] is False
    visitor.post("/sign-in/a")
    assert _used(visitor) is None
    visitor.post("/sign-in/b")
    assert visitor.save(_key(fake, "b")).status_code == 200
    assert _used(visitor) == fingerprint(_key(fake, "b"))


def test_a_visitors_key_waits_for_the_user(
    app: HostApp, visitor: Browser, fake: FakeProviders
) -> None:
    """A key from before the sign-in is shown and not used until the user keeps it."""
    visitor.save(_key(fake))
    visitor.post("/sign-in/a")
    assert _used(visitor) is None
    status = visitor.status()
    assert (status["has_key"], status["promotable"]) == (False, True)
    assert status["hint"].endswith(_key(fake)[-4:])
    assert visitor.call("promote").get_json() == {"promoted": ["openai"], "kept": []}
    assert _used(visitor) == fingerprint(_key(fake))


def test_requests_without_keys_cost_nothing(tmp_path: Path, store: CountingStore) -> None:
    """A host's request that uses no key asks the store nothing, and is answered as it was without us."""
    answers = []
    for with_byok in (True, False):
        app = bare(tmp_path, SESSION_REFRESH_EACH_REQUEST=False, BYOK_SESSION_STORE=store)
        Session(app)
        if with_byok:
            BYOK(app)
            store.calls.clear()  # what the start asks
        app.add_url_rule("/plain", view_func=lambda: "plain", endpoint="plain")
        app.add_url_rule("/fill", view_func=lambda: session.update(a=1) or "ok", endpoint="fill")
        app.add_url_rule("/look", view_func=lambda: str(session.get("a")), endpoint="look")
        client = app.test_client()
        seen = [client.get(path) for path in ("/plain", "/fill", "/plain", "/look")]
        answers.append([(list(a.headers.keys()), a.headers.get("Vary"), a.text) for a in seen])
    assert answers[0] == answers[1]
    assert "Set-Cookie" not in answers[0][0][0]
    assert store.calls == []


def test_one_use_is_one_round_trip(
    app: HostApp, visitor: Browser, fake: FakeProviders, store: CountingStore
) -> None:
    """Resolving one key or several asks the store once, and so does the status of all providers."""
    app.add_url_rule("/all", view_func=lambda: app.byok.get_api_keys(["openai", "groq", "xai"]))
    visitor.save(_key(fake))
    for path in ("/used/openai", "/all", KEYS):
        store.calls.clear()
        assert visitor.get(path).status_code == 200
        assert store.calls == ["load"], path


@pytest.mark.parametrize("lost_marker", [False, True])
@pytest.mark.parametrize("path", ["/empty?then=1", "/sign-out"])
def test_what_could_not_be_deleted_does_not_come_back(
    app: HostApp,
    visitor: Browser,
    fake: FakeProviders,
    store: CountingStore,
    path: str,
    lost_marker: bool,
) -> None:
    """A session that was emptied while the store was down has no keys when the store is back."""
    visitor.get("/visit")
    visitor.save(_key(fake))
    if lost_marker:
        _edit(app, visitor, **{MARKER: None})
    if path == "/sign-out":
        visitor.post("/sign-in/a")
    store.failing = True
    store.calls.clear()
    assert visitor.post(path).status_code == 503
    assert len(store.calls) == 1  # the visitor waits once
    assert visitor.get("/plain").status_code == 200
    store.failing = False
    assert visitor.get("/plain").status_code == 200
    assert _used(visitor) is None
    assert visitor.status()["hint"] is None
    assert visitor.save(_key(fake, "new")).status_code == 200


def test_what_could_not_be_deleted_does_not_move_along(
    app: HostApp, visitor: Browser, fake: FakeProviders, store: CountingStore
) -> None:
    """Renewing a session whose end the store has not heard of does not carry its keys over."""
    visitor.save(_key(fake))
    store.failing = True
    visitor.post("/empty?then=1")
    store.failing = False
    visitor.post("/renew")
    assert _used(visitor) is None


def test_the_order_of_extensions_does_not_matter(tmp_path: Path, fake: FakeProviders) -> None:
    """Session(app) may come after BYOK(app)."""
    visitor = browser(make_app(tmp_path, fake, session_after=True))
    visitor.save(_key(fake))
    assert _used(visitor) == fingerprint(_key(fake))
    visitor.post("/empty?then=1")
    assert _used(visitor) is None


def test_the_session_within_a_stream(app: HostApp, visitor: Browser, fake: FakeProviders) -> None:
    """A host that streams with the request's context can still resolve within it."""

    @app.get("/late")
    def late() -> Any:
        def pieces() -> Iterator[str]:
            yield "key "
            yield app.byok.resolve("openai").source

        return app.response_class(stream_with_context(pieces()))

    visitor.save(_key(fake))
    assert visitor.get("/late").text == "key session"


def test_a_rotated_encryption_key_keeps_sessions(tmp_path: Path, fake: FakeProviders) -> None:
    """The index of sessions hangs on SECRET_KEY alone, so keys are found after a rotation."""
    visitor = browser(make_app(tmp_path, fake))
    visitor.save(_key(fake))
    rotated = make_app(
        tmp_path,
        fake,
        BYOK_ENCRYPTION_KEY=OTHER_ENCRYPTION_KEY,
        BYOK_ENCRYPTION_KEY_FALLBACKS=[ENCRYPTION_KEY],
    )
    later = browser(rotated)
    later.set_cookie("session", visitor.session_id)
    assert _used(later) == fingerprint(_key(fake))
    assert index_key("a") == index_key(b"a") != index_key("b")


@pytest.fixture
def rotating(tmp_path: Path, fake: FakeProviders) -> list[HostApp]:
    """Make two workers on the same stores: one with the old SECRET_KEY, and one with both."""
    config = {"csrf_protect": False, "WTF_CSRF_ENABLED": False, "BYOK_VALIDATE_ON_SET": "off"}
    keys = ("old", []), ("new", ["old"])
    return [
        make_app(tmp_path, fake, SECRET_KEY=key, SECRET_KEY_FALLBACKS=fallbacks, **config)
        for key, fallbacks in keys
    ]


def _at(app: HostApp, client: Browser) -> Browser:
    """Return a browser in the same session at another worker."""
    other = browser(app)
    other.set_cookie("session", client.session_id)
    return other


def test_an_old_id_ends_nothing_at_another_worker(
    rotating: list[HostApp], fake: FakeProviders
) -> None:
    """While SECRET_KEY is rotated too, an id that was renewed at one worker cannot end the session at the other."""
    old, both = rotating
    person = browser(both)
    person.save(_key(fake))
    thief, person = person.twin(), _at(old, person)
    person.post("/renew")
    # As an overlapping request does that ends after the renewal.
    both.config["SESSION_CACHELIB"].set(f"session:{thief.session_id}", {"visits": 1})
    assert _used(thief) is None
    thief.post("/empty")
    for app in rotating:
        assert _used(_at(app, person)) == fingerprint(_key(fake))


def test_an_end_hides_no_later_session(rotating: list[HostApp], fake: FakeProviders) -> None:
    """What ended at the worker with both keys, and began again at the one with the old key, is found at both."""
    old, both = rotating
    person = browser(both)
    person.save(_key(fake))
    person.post("/empty?then=1")
    person = _at(old, person)
    person.save(_key(fake, "later"))
    for app in rotating:
        _edit(app, person, **{MARKER: None})
        assert _used(_at(app, person)) == fingerprint(_key(fake, "later"))


def test_the_stores_names_do_not_tell_the_session_id(
    app: HostApp, visitor: Browser, fake: FakeProviders, tmp_path: Path
) -> None:
    """The key store's contents do not let an attacker take over sessions."""
    visitor.save(_key(fake))
    files = [path.read_bytes() for path in tmp_path.glob("byok.sqlite*")]
    assert files
    assert not any(visitor.session_id.encode() in content for content in files)


def test_without_init_app() -> None:
    """Using keys in an app that was never set up says what was forgotten."""
    with pytest.raises(ConfigurationError, match="init_app"):
        get_state(HostApp("bare"))


def test_what_a_visitor_left_ends_with_the_user_who_saw_it(
    tmp_path: Path, fake: FakeProviders, store: CountingStore
) -> None:
    """A visitor's key that Ada saw and did not keep ends with her sign-out, and waits for no other user."""
    visitor = _visitor_of_a_forgetful_host(tmp_path, fake, store)
    visitor.save(_key(fake))
    visitor.post("/in/ada")
    assert visitor.status()["promotable"] is True
    visitor.post("/out")
    assert _used(visitor) is None
    visitor.post("/in/bob")
    assert visitor.status()["promotable"] is False


def test_a_change_of_the_session_alone_ends_nothing(
    tmp_path: Path, fake: FakeProviders, store: CountingStore
) -> None:
    """A view that adds to the session while the host does not know the user leaves the keys alone."""
    app = make_app(tmp_path, fake, BYOK_SESSION_STORE=store, csrf_protect=False)
    app.byok.owner_loader(lambda: "ada" if request.path != "/language" else None)
    app.add_url_rule("/language", view_func=lambda: str(session.update(language="de")))
    visitor = browser(app)
    visitor.save(_key(fake))
    visitor.get("/language")
    assert _used(visitor) == fingerprint(_key(fake))


@pytest.fixture
def flashing(tmp_path: Path, fake: FakeProviders, store: CountingStore) -> HostApp:
    """Make a host with a page that adds to the session, and one that takes that out again."""
    app = make_app(tmp_path, fake, BYOK_SESSION_STORE=store, csrf_protect=False)
    app.add_url_rule("/note", "note", lambda: str(session.update(note="saved")))
    app.add_url_rule("/flash", "flash", lambda: str(session.pop("note")))
    return app


def test_a_failing_owner_loader_fails_no_other_page(
    flashing: HostApp, fake: FakeProviders, caplog: pytest.LogCaptureFixture
) -> None:
    """A loader that raises after a page was made is logged; the page is answered."""
    flashing.byok.owner_loader(lambda: "ada" if request.path != "/flash" else str(1 / 0))
    visitor = browser(flashing)
    visitor.save(_key(fake))
    visitor.get("/note")
    assert visitor.get("/flash").status_code == 200
    assert "owner loader failed" in caplog.text


def test_a_flash_message_asks_the_store_nothing(flashing: HostApp, store: CountingStore) -> None:
    """Taking the last entry out of a session that holds no keys costs no call, and no 503 while the store is down."""
    visitor = browser(flashing)
    visitor.get("/note")
    store.calls.clear()
    store.failing = True
    assert visitor.get("/flash").status_code == 200
    assert store.calls == []


def test_a_host_may_keep_no_session_for_some_paths(tmp_path: Path, fake: FakeProviders) -> None:
    """If the host's session interface opens no session for a path, its pages work as before."""
    app = make_app(tmp_path, fake)
    opened = app.session_interface.open_session
    app.session_interface.open_session = (  # type: ignore[method-assign]
        lambda app, request: None if request.path == "/plain" else opened(app, request)
    )
    visitor = browser(app)
    assert visitor.get("/plain").status_code == 200
    assert visitor.load()["providers"]


def test_set_in_python_works_after_expiry(
    tmp_path: Path, fake: FakeProviders, redis_url: str
) -> None:
    """A host that never loads the list can save a key again once the session's keys have expired."""
    app = make_app(tmp_path, fake, csrf_protect=False, byok_redis_url=redis_url)
    app.add_url_rule(
        "/keep", view_func=lambda: app.byok.set("openai", _key(fake), validate="off")["source"]
    )
    visitor = browser(app)
    assert visitor.get("/keep").text == "session"
    with redis.Redis.from_url(redis_url) as store:
        store.flushdb()
    assert visitor.get("/keep").text == "session"
