"""The five calls as a browser makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flask_byok.testing import FakeProviders
from tests.app import KEYS, Browser, HostApp, browser, fingerprint, make_app

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

#: Bodies of ``set`` that are turned away, with the status and code of the answer.
REFUSED_BODIES = [
    ('{"provider": "openai", "api_key": "short"}', 422, "malformed_api_key"),
    ('{"provider": "openai"}', 422, "malformed_api_key"),
    ('{"provider": "openai", "api_key": "  "}', 422, "malformed_api_key"),
    ('{"provider": "openai", "api_key": "", "label": "mine"}', 422, "malformed_api_key"),
    ('{"provider": "openai", "api_key": "has a space"}', 422, "malformed_api_key"),
    ('{"provider": "openai", "api_key": "bell\\u0007bell"}', 422, "malformed_api_key"),
    ('{"provider": "openai", "api_key": "' + "k" * 4097 + '"}', 422, "malformed_api_key"),
    ('{"provider": "nobody", "api_key": "k-12345678"}', 404, "unknown_provider"),
    ('{"provider": "openai", "api_key": 12345678}', 422, "invalid_field"),
    ('{"provider": "openai", "api_key": ["k-12345678"]}', 422, "invalid_field"),
    ('{"provider": "openai", "fields": {"api_key": 1}}', 422, "invalid_field"),
    ('{"provider": "openai", "fields": {"other": "k-12345678"}}', 422, "invalid_field"),
    ('{"provider": "openai", "api_key": "k-12345678", "fields": {}}', 422, "invalid_field"),
    ('{"provider": "openai", "api_key": "k-12345678", "owner": "user:a"}', 422, "invalid_field"),
    ('{"provider": "openai", "api_key": "k-12345678", "persist": true}', 401, "owner_required"),
    ('{"provider": "openai", "api_key": "k-12345678", "label": "a\\nb"}', 422, "invalid_field"),
    (
        '{"provider": "openai", "api_key": "k-12345678", "label": "' + "x" * 101 + '"}',
        422,
        "invalid_field",
    ),
    ('{"provider": "openai", "api_key": "k-12345678", "validate": "no"}', 422, "invalid_field"),
    ('{"provider": "openai", "api_key": "k-12345678", "expires_at": "soon"}', 422, "invalid_field"),
    (
        '{"provider": "openai", "api_key": "k-12345678", "expires_at": "2099-01-01T00:00:00"}',
        422,
        "invalid_field",
    ),
    (
        '{"provider": "openai", "api_key": "k-12345678", "expires_at": "1999-01-01T00:00:00Z"}',
        422,
        "invalid_field",
    ),
    (
        '{"provider": "openai", "api_key": "k-12345678", "base_url": "https://elsewhere.example/v1"}',
        422,
        "endpoint_not_allowed",
    ),
    ("[]", 422, "invalid_field"),
    ("{", 400, "bad_request"),
    ("", 400, "bad_request"),
    ("[" * 60_000, 422, "invalid_field"),
    ('{"provider": "openai", "api_key": ' + "[" * 60_000, 400, "bad_request"),
    ('{"provider": "openai", "api_key": ' + '{"a":' * 12_000, 400, "bad_request"),
    ('{"provider": "openai", "fields": {"api_key": ' + "[" * 60_000, 400, "bad_request"),
    ('{"provider": "\\ud800"}', 400, "bad_request"),
]


def test_status_of_nobody_yet(visitor: Browser) -> None:
    """A new visitor sees every provider without a key, and is given a session and a token."""
    body = visitor.load()
    assert [row["provider"] for row in body["providers"]][:3] == ["openai", "anthropic", "google"]
    assert not any(row["has_key"] or row["source"] or row["hint"] for row in body["providers"])
    assert body["precedence"] == ["session", "user", "team", "system", "secret", "env"]
    assert body["authenticated"] is False
    assert body["csrf_token"]


def test_set_use_clear(visitor: Browser, fake: FakeProviders) -> None:
    """A saved key is shown by its hint alone, serves at once, and is gone once cleared."""
    api_key = fake.api_key("openai")
    saved = visitor.save(api_key, label="mine")
    assert saved.status_code == 200
    assert saved.get_json()["success"] is True
    assert saved.get_json()["validation"]["verdict"] == "valid"
    status = visitor.status()
    assert (status["source"], status["state"], status["label"]) == ("session", "active", "mine")
    assert status["hint"] == f"sk-proj-…{api_key[-4:]}"
    assert status["validity"]["verdict"] == "valid"
    assert visitor.get("/used/openai").get_json() == {
        "source": "session",
        "fingerprint": fingerprint(api_key),
    }
    cleared = visitor.call("clear", provider="openai").get_json()
    assert (cleared["success"], cleared["cleared"]) == (True, ["session"])
    assert visitor.call("clear", provider="openai").get_json()["cleared"] == []
    assert visitor.get("/used/openai").status_code == 409


def test_refused_key_leaves_the_old_one(visitor: Browser, fake: FakeProviders) -> None:
    """A key that its provider refuses is not stored, and the one before it goes on serving."""
    good = fake.api_key("openai")
    visitor.save(good)
    refused = visitor.call("set", provider="openai", api_key=fake.api_key("openai", "bad"))
    assert refused.status_code == 422
    assert refused.get_json()["code"] == "key_refused"
    assert refused.get_json()["validation"]["verdict"] == "invalid"
    assert visitor.get("/used/openai").get_json()["fingerprint"] == fingerprint(good)


def test_validate_typed_stores_nothing(visitor: Browser, fake: FakeProviders) -> None:
    """A typed key can be checked without being stored; without one the key in use is checked."""
    visitor.load()
    typed = visitor.call("validate", provider="openai", api_key=fake.api_key("openai"))
    assert typed.get_json()["valid"] is True
    assert visitor.status()["has_key"] is False
    unset = visitor.call("validate", provider="openai")
    assert (unset.status_code, unset.get_json()["code"]) == (409, "key_missing")
    visitor.call("set", provider="openai", api_key=fake.api_key("openai"), validate="off")
    assert visitor.status()["validity"] is None
    assert visitor.call("validate", provider="openai").get_json()["valid"] is True
    assert visitor.status()["validity"]["verdict"] == "valid"


def test_promote_asks_for_a_user(visitor: Browser) -> None:
    """A visitor has no account to keep keys for."""
    visitor.load()
    assert visitor.call("promote").status_code == 401
    assert visitor.call("promote").get_json()["code"] == "owner_required"


def test_expiry_is_kept_and_ends_the_key(visitor: Browser, fake: FakeProviders) -> None:
    """A key serves until the time that was given with it."""
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    visitor.save(fake.api_key("openai"), expires_at=soon.isoformat(), validate="off")
    assert visitor.get("/used/openai").status_code == 200
    while datetime.now(UTC) < soon:
        pass
    assert visitor.get("/used/openai").status_code == 409
    assert visitor.status()["state"] == "expired"


@pytest.mark.parametrize(
    "expires_at",
    ["9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59.999999Z", "9999-12-31T00:00:00+23:59"],
)
def test_far_expiry_never_breaks_the_list(
    visitor: Browser, fake: FakeProviders, expires_at: str
) -> None:
    """A time at the edge of the calendar is taken or refused, and the list still answers."""
    answer = visitor.save(fake.api_key("openai"), expires_at=expires_at, validate="off")
    assert answer.status_code in (200, 422)
    assert visitor.get(KEYS).status_code == 200


def test_bodies_that_are_refused(visitor: Browser) -> None:
    """An invalid body is refused with its own code and status, and nothing of it is repeated."""
    visitor.load()
    headers, kind = {"X-CSRFToken": visitor.token or ""}, "application/json"
    for body, status, code in REFUSED_BODIES:
        answer = visitor.post(f"{KEYS}/set", data=body, content_type=kind, headers=headers)
        found = (answer.status_code, answer.get_json()["code"], answer.mimetype)
        assert found == (status, code, "application/problem+json"), body[:100]
        for repeated in ("12345678", "kkkk", "elsewhere", "nobody"):
            assert repeated not in answer.text, body[:100]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            '{"provider": "openai", "owner": "user:a"}',
            "no field 'owner' here. The fields are: 'prov",
        ),
        ('{"provider": "openai", "sk-12345678": ""}', "no field of that name here. The fields are"),
        (
            '{"provider": "openai", "' + "k" * 31 + '": ""}',
            "no field of that name here. The fields",
        ),
        ('{"api_key": "k-12345678"}', "The field 'provider' is missing."),
        ('{"provider": 7}', "The field 'provider' has an invalid value."),
        (
            '{"provider": "openai", "fields": {"api_key": 1}}',
            "The field 'fields' has an invalid value",
        ),
        ('{"provider": "openai", "expires_at": "soon"}', "'2027-01-31T00:00:00Z', or null."),
        ('{"provider": "openai", "expires_at": 1}', "'2027-01-31T00:00:00Z', or null."),
        (
            '{"provider": "openai", "validate": "`$.label`"}',
            "The field 'validate' has an invalid value",
        ),
        ("[]", "The body is a JSON object. Its fields are: 'provider', 'api_key'"),
    ],
)
def test_what_is_refused_is_named(visitor: Browser, body: str, said: str) -> None:
    """The answer names the field that is wrong, and of what was sent no more than a plain word."""
    visitor.load()
    headers = {"X-CSRFToken": visitor.token or ""}
    answer = visitor.post(
        f"{KEYS}/set", data=body, content_type="application/json", headers=headers
    )
    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_field")
    assert said in answer.get_json()["detail"]
    assert "12345678" not in answer.text
    assert "kkkk" not in answer.text


def test_body_limit_and_type(visitor: Browser) -> None:
    """More than 64 KiB are not read, and what an HTML form can send is not read as JSON."""
    visitor.load()
    token, form = {"X-CSRFToken": visitor.token or ""}, "application/x-www-form-urlencoded"
    for size in (64 * 1024 + 1, 1024 * 1024):
        for kind in ("application/json", form):
            sent = b"x" * size
            answer = visitor.post(f"{KEYS}/set", data=sent, content_type=kind, headers=token)
            assert (answer.status_code, answer.get_json()["code"]) == (413, "too_large"), kind
    for kind in ("text/plain", form, ""):
        body = '{"provider": "openai"}'
        answer = visitor.post(f"{KEYS}/clear", data=body, content_type=kind, headers=token)
        found = (answer.status_code, answer.get_json()["code"])
        assert found == (415, "unsupported_media_type"), kind


def test_a_key_in_the_label_is_refused(visitor: Browser, fake: FakeProviders) -> None:
    """A label that contains the key is refused."""
    api_key = fake.api_key("openai")
    for label in (api_key, f"mine: {api_key}", fake.api_key("anthropic")):
        answer = visitor.save(api_key, description=label, validate="off")
        assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_field")
    assert visitor.save(api_key, label="sk-learn experiments", validate="off").status_code == 200


def test_a_key_within_other_text_is_refused(visitor: Browser) -> None:
    """A key is found wherever it stands in a text, and however the key itself was pasted."""
    for note in (
        "OPENAI_API_KEY=sk-proj-REALKEYREALKEYREALKEY01",
        "export KEY=AIzaREALKEYREALKEYREALKEY01;",
        '"sk-proj-REALKEYREALKEYREALKEY01"',
        "key:gsk_REALKEYREALKEYREALKEY01,mine",
        "an admin's: sk-ant-admin01-REALKEYREALKEY",
        "https://host/?key=xai-REALKEYREALKEYREALKEY01",
        "mine is typedkeyABCDEF0123456",
    ):
        for name in ("label", "description"):
            answer = visitor.save("'typedkeyABCDEF0123456'", validate="off", **{name: note})
            found = (answer.status_code, answer.get_json()["code"])
            assert found == (422, "invalid_field"), (name, note)
    assert visitor.status()["has_key"] is False


def test_words_are_no_keys(visitor: Browser, fake: FakeProviders) -> None:
    """Words that hold the beginning of a key are words."""
    for note in (
        "sk-learn experiments",
        "desk-and-chair-reservations-of-2026",
        "risk-assessment-of-the-whole-department",
        "task-force-meeting-notes-and-more-of-it",
        "FAQ.for-all-of-the-people-here-in-town",
        "SK- a b c d e f g h i j k l m n o p q",
    ):
        assert visitor.save(fake.api_key("openai"), label=note).status_code == 200, note


@pytest.mark.parametrize("prefix", ["/x/y", "/api", ""])
@pytest.mark.parametrize("mount", ["", "/below"])
def test_openapi_names_where_it_is(tmp_path: Path, prefix: str, mount: str) -> None:
    """The description names the address under which this very app serves the calls."""
    app = make_app(tmp_path, BYOK_URL_PREFIX=prefix)
    path = f"{prefix}/providers/openapi.json"
    found = app.test_client().get(path, base_url=f"http://localhost{mount}").get_json()
    assert found["servers"][0]["url"] == (f"{mount}{prefix}" or "/")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", KEYS, 200),
        ("HEAD", KEYS, 200),
        ("OPTIONS", KEYS, 200),
        ("GET", "/api/providers/openapi.json", 200),
        ("POST", f"{KEYS}/set", 400),
        ("OPTIONS", f"{KEYS}/set", 200),
        ("GET", f"{KEYS}/set", 405),
        ("DELETE", KEYS, 405),
        ("PUT", f"{KEYS}/promote", 405),
        ("GET", f"{KEYS}/nothing", 404),
        ("POST", f"{KEYS}/set/", 404),
        ("GET", "/api/keys", 401),
        ("GET", "/api/keys/services", 200),
        ("POST", "/api/keys", 400),
        ("DELETE", "/api/keys/0123456789abcdef0123456789abcdef", 400),
        ("POST", "/api/keys/0123456789abcdef0123456789abcdef", 405),
        ("PATCH", "/api/admin/keys", 405),
        ("GET", "/api/admin/keys/x/y", 404),
    ],
)
def test_headers_of_every_answer(visitor: Browser, method: str, path: str, status: int) -> None:
    """Good or bad, each answer carries the security headers, and an error is a problem object."""
    answer = visitor.open(path, method=method)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    if status >= 400:
        assert answer.mimetype == "application/problem+json"
        assert answer.get_json()["status"] == status
    if status == 405:
        assert answer.headers["Allow"]


def test_the_hosts_own_answers_stay_its_own(visitor: Browser) -> None:
    """Paths and methods of the host are answered as the host answers them."""
    assert visitor.get("/nothing").mimetype == "text/html"
    assert visitor.post("/plain").status_code in (400, 405)
    assert "Content-Security-Policy" not in visitor.get("/plain").headers
    assert visitor.get("/api/other").mimetype == "text/html"


def test_session_is_required_before_a_write(app: HostApp, tmp_path: Path) -> None:
    """Without an established session nothing is stored: the list is to be loaded first."""
    app.config["WTF_CSRF_ENABLED"] = False
    answer = browser(app).call("set", provider="openai", api_key="k-12345678")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "session_required")


def test_login_can_be_required(tmp_path: Path, fake: FakeProviders) -> None:
    """With BYOK_REQUIRE_LOGIN every call answers a visitor 401."""
    visitor = browser(make_app(tmp_path, fake, BYOK_REQUIRE_LOGIN=True, WTF_CSRF_ENABLED=False))
    answers = [visitor.get(KEYS)]
    answers += [visitor.call(verb, provider="openai") for verb in ("clear", "validate", "set")]
    assert {(a.status_code, a.get_json()["code"]) for a in answers} == {(401, "owner_required")}
    assert all("WWW-Authenticate" in a.headers for a in answers)
    visitor.post("/sign-in/a")
    assert visitor.save(fake.api_key("openai")).status_code == 200


def test_locked_provider(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's key serves a locked provider, and cannot be replaced by a personal one."""
    operators = fake.api_key("openai", owner="operator")
    monkeypatch.setenv("OPENAI_API_KEY", operators)
    visitor = browser(make_app(tmp_path, fake, BYOK_LOCKED_PROVIDERS=["openai"]))
    answer = visitor.save(fake.api_key("openai"))
    assert (answer.status_code, answer.get_json()["code"]) == (403, "provider_locked")
    status = visitor.status()
    assert (status["locked"], status["can_override"], status["source"]) == (True, False, "env")
    assert status["hint"] is None
    assert operators[-4:] not in visitor.get(KEYS).text


@pytest.mark.parametrize(
    ("setting", "verb"), [("BYOK_SET_RATE", "set"), ("BYOK_VALIDATE_RATE", "validate")]
)
def test_rates(tmp_path: Path, fake: FakeProviders, setting: str, verb: str) -> None:
    """A caller who exceeds a rate gets 429 with the seconds to wait."""
    visitor = browser(make_app(tmp_path, fake, **{setting: "2/minute"}))
    visitor.load()
    answers = [
        visitor.call(verb, provider="openai", api_key=fake.api_key("openai")) for _ in range(3)
    ]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert answers[-1].get_json()["code"] == "rate_limited"
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
