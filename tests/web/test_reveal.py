"""``/api/keys/<id>?include_value=1``: people read their own key back, where the operator allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Response, session
from flask_session import Session
from sqlalchemy import text

from flask_byok import BYOK
from flask_byok.testing import FakeProviders
from tests.app import bare, problem_of
from tests.keeper import OWN, Keeper, accounts_of, keeper, logged

from .conftest import MakeHost


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Name a database; the kind does not matter here."""
    return sqlite_url


def test_no_value_by_default(ann: Keeper, fake: FakeProviders) -> None:
    """A key is not shown unless the operator allows people to read back their own."""
    api_key = fake.api_key("openai")
    path = f"{OWN}/{ann.keep(api_key)['id']}"
    for asked in ("true", "1", "TRUE", "yes"):
        answer = ann.get(f"{path}?include_value={asked}")
        assert problem_of(answer) == (403, "reveal_disabled"), asked
        assert api_key not in answer.text, asked


def test_reveal(make_host: MakeHost, fake: FakeProviders) -> None:
    """If reveals are allowed, a freshly signed-in user sees the own key, and the log records it first."""
    host = make_host(BYOK_ALLOW_REVEAL=True)
    ann, api_key = keeper(host, "ann"), fake.api_key("openai")
    path = f"{OWN}/{ann.keep(api_key)['id']}"
    shown = ann.get(f"{path}?include_value=true")
    assert (shown.get_json()["value"], shown.get_json()["fields"]) == (
        api_key,
        {"api_key": api_key},
    )
    assert shown.headers["Cache-Control"] == "no-store"
    assert logged(host, "user:ann")[-1] == ("user:ann", "reveal", "done")
    assert "value" not in ann.get(path).get_json()
    assert "value" not in ann.get(f"{path}?include_value=false").get_json()
    host.byok.fresh_login_loader(lambda: False)
    stale = ann.get(f"{path}?include_value=true")
    assert problem_of(stale) == (403, "fresh_login_required")
    assert api_key not in stale.text
    bob = keeper(host, "bob")
    assert problem_of(bob.get(f"{path}?include_value=true")) == (404, "key_not_found")
    assert [action for _, action, _ in logged(host, "user:ann")] == ["set", "reveal"]


def test_reveal_after_a_remembered_sign_in(make_host: MakeHost, fake: FakeProviders) -> None:
    """By default Flask-Login decides who has just signed in: not a user whom a cookie remembered."""
    host = make_host(BYOK_ALLOW_REVEAL=True)

    @host.get("/remembered")
    def remembered() -> str:
        session["_fresh"] = False  # as Flask-Login does
        return ""

    ann = keeper(host, "ann")
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}?include_value=1"
    assert ann.get(path).status_code == 200
    ann.get("/remembered")
    assert problem_of(ann.get(path)) == (403, "fresh_login_required")
    ann.post("/sign-in/ann")
    assert ann.get(path).status_code == 200


def test_reveal_where_nobody_knows(tmp_path: Path) -> None:
    """Without Flask-Login and without a loader no sign-in counts as fresh."""
    app = bare(tmp_path, WTF_CSRF_ENABLED=False, BYOK_ALLOW_REVEAL=True)
    Session(app)
    byok = BYOK(app)
    byok.owner_loader(lambda: "ann")
    ann = Keeper(app, Response, use_cookies=True)
    path = f"{OWN}/{ann.keep('sk-key-of-anns-0001')['id']}?include_value=1"
    assert problem_of(ann.get(path)) == (403, "fresh_login_required")
    byok.fresh_login_loader(lambda: True)
    assert ann.get(path).get_json()["value"] == "sk-key-of-anns-0001"


def test_reveal_from_elsewhere(make_host: MakeHost, fake: FakeProviders) -> None:
    """Another site can have no key shown, and no reveal logged; without the key it may read."""
    host = make_host(BYOK_ALLOW_REVEAL=True)
    ann = keeper(host, "ann")
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    sites = ("cross-site", "same-site")
    elsewhere = [{"Sec-Fetch-Site": site} for site in sites] + [{"Origin": "https://x.example"}]
    for headers in elsewhere:
        answer = ann.get(f"{path}?include_value=1", headers=headers)
        assert problem_of(answer) == (400, "csrf"), headers
        assert ann.get(path, headers=headers).status_code == 200, headers
    assert [action for _, action, _ in logged(host, "user:ann")] == ["set"]
    own_page = {"Sec-Fetch-Site": "same-origin"}
    assert ann.get(f"{path}?include_value=1", headers=own_page).status_code == 200


def test_reveal_of_a_key_that_does_not_open(make_host: MakeHost, fake: FakeProviders) -> None:
    """A key that does not open is not shown, and nothing says that it was."""
    host = make_host(BYOK_ALLOW_REVEAL=True)
    ann = keeper(host, "ann")
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    with accounts_of(host).engine.begin() as connection:
        connection.execute(text("UPDATE byok_credentials SET ciphertext = 'byok1.x.fernet.y'"))
    assert problem_of(ann.get(f"{path}?include_value=true")) == (409, "key_unreadable")
    assert [action for _, action, _ in logged(host, "user:ann")] == ["set"]


def test_no_value_elsewhere(make_host: MakeHost, fake: FakeProviders) -> None:
    """No other call shows a key, even if reveals are allowed; it answers 403 and does nothing."""
    ann = keeper(make_host(BYOK_ALLOW_REVEAL=True), "ann")
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    calls: list[tuple[str, str, Any]] = [
        ("GET", OWN, None),
        ("POST", OWN, {"provider": "groq", "api_key": fake.api_key("groq")}),
        ("PATCH", path, {"label": "x"}),
        ("DELETE", path, None),
        ("POST", f"{path}/validate", None),
        ("GET", f"{OWN}/stats", None),
        ("GET", "/api/providers/keys", None),
    ]
    for method, url, sent in calls:
        answer = ann.ask(method, f"{url}?include_value=true", sent)
        assert problem_of(answer) == (403, "reveal_disabled"), (method, url)
    (record,) = ann.records()
    assert (record["version"], record["label"], record["validity"]) == (1, None, None)
