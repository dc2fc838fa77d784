"""The five calls as a browser makes them."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flask_byok.testing import FakeProviders
from tests.app import KEYS, Browser, HostApp, browser, fingerprint, make_app, problem_of

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

BARE = {"provider": "openai"}
TYPED = BARE | {"api_key": "k-12345678"}
#: Bodies of ``set`` that are turned away, with the status and code of the answer, and a part of its detail.
REFUSED_BODIES: list[tuple[Any, int, str, str]] = [
    *(
        (TYPED | {"api_key": api_key}, 422, "malformed_api_key", "")
        for api_key in ("", "  ", "short", "has a space", "bell\u0007bell", "k" * 4097)
    ),
    (BARE, 422, "malformed_api_key", ""),
    (TYPED | {"api_key": "", "label": "mine"}, 422, "malformed_api_key", ""),
    (TYPED | {"provider": "nobody"}, 404, "unknown_provider", ""),
    ({"api_key": "k-12345678"}, 422, "invalid_field", "The field 'provider' is missing."),
    ({"provider": 7}, 422, "invalid_field", "The field 'provider' has an invalid value."),
    *((TYPED | {"api_key": k}, 422, "invalid_field", "") for k in (12345678, ["k-12345678"])),
    (TYPED | {"fields": {}}, 422, "invalid_field", ""),
    (BARE | {"fields": {"other": "k-12345678"}}, 422, "invalid_field", ""),
    (
        BARE | {"fields": {f"f{n}": "k-12345678" for n in range(17)}},
        422,
        "invalid_field",
        "'fields'",
    ),
    (BARE | {"fields": {"api_key": 1}}, 422, "invalid_field", "The field 'fields' has an invalid"),
    (
        TYPED | {"owner": "user:a"},
        422,
        "invalid_field",
        "no field 'owner' here. The fields are: 'api_key'",
    ),
    (
        BARE | {"sk-12345678": ""},
        422,
        "invalid_field",
        "no field of that name here. The fields are",
    ),
    (BARE | {"k" * 31: ""}, 422, "invalid_field", "no field of that name here. The fields are"),
    (TYPED | {"persist": True}, 401, "owner_required", ""),
    *((TYPED | {"label": label}, 422, "invalid_field", "") for label in ("a\nb", "x" * 101)),
    *(
        (TYPED | {"validate": mode}, 422, "invalid_field", "The field 'validate' has an invalid")
        for mode in ("no", "`$.label`")
    ),
    *(
        (TYPED | {"expires_at": at}, 422, "invalid_field", "'2027-01-31T00:00:00Z', or null.")
        for at in ("soon", 1)
    ),
    *(
        (TYPED | {"expires_at": at}, 422, "invalid_field", "")
        for at in ("2099-01-01T00:00:00", "1999-01-01T00:00:00Z")
    ),
    (TYPED | {"base_url": "https://elsewhere.example/v1"}, 422, "endpoint_not_allowed", ""),
    ([], 422, "invalid_field", "The body is a JSON object. Its fields are: 'api_key', 'fields'"),
    ("[" * 60_000, 422, "invalid_field", ""),
    *(
        (body, 400, "bad_request", "")
        for body in (
            *("{", "", '{"provider": "\\ud800"}'),
            '{"provider": "openai", "api_key": ' + "[" * 60_000,
            '{"provider": "openai", "api_key": ' + '{"a":' * 12_000,
            '{"provider": "openai", "fields": {"api_key": ' + "[" * 60_000,
        )
    ),
]


def test_status_of_a_new_visitor(visitor: Browser) -> None:
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


def test_expiry_is_kept_and_ends_the_key(visitor: Browser, fake: FakeProviders) -> None:
    """A key serves until the time that was given with it."""
    later = datetime.now(UTC) + timedelta(hours=1)
    visitor.save(fake.api_key("openai"), expires_at=later.isoformat(), validate="off")
    assert visitor.get("/used/openai").status_code == 200
    soon = datetime.now(UTC) + timedelta(seconds=2)
    visitor.save(fake.api_key("openai"), expires_at=soon.isoformat(), validate="off")
    time.sleep((soon - datetime.now(UTC)).total_seconds())
    assert visitor.get("/used/openai").status_code == 409
    assert visitor.status()["state"] == "expired"


def test_far_expiry_never_breaks_the_list(visitor: Browser, fake: FakeProviders) -> None:
    """A time at the edge of the calendar is taken or refused, and the list still answers."""
    for clock in ("T23:59:59-23:59", "T23:59:59.999999Z", "T00:00:00+23:59"):
        expires_at = f"9999-12-31{clock}"
        answer = visitor.save(fake.api_key("openai"), expires_at=expires_at, validate="off")
        assert answer.status_code in (200, 422), clock
        assert visitor.get(KEYS).status_code == 200, clock


def test_bodies_that_are_refused(visitor: Browser) -> None:
    """An invalid body is refused with its own code; of what was sent the answer repeats no more than a plain word."""
    visitor.load()
    headers, kind = {"X-CSRFToken": visitor.token or ""}, "application/json"
    for body, status, code, said in REFUSED_BODIES:
        sent = body if isinstance(body, str) else json.dumps(body)
        answer = visitor.post(f"{KEYS}/set", data=sent, content_type=kind, headers=headers)
        assert problem_of(answer) == (status, code), sent[:100]
        assert said in answer.get_json()["detail"], sent[:100]
        for repeated in ("12345678", "kkkk", "elsewhere", "nobody"):
            assert repeated not in answer.text, sent[:100]


def test_body_limit_and_type(visitor: Browser) -> None:
    """More than 64 KiB are not read, and what an HTML form can send is not read as JSON."""
    visitor.load()
    token, form = {"X-CSRFToken": visitor.token or ""}, "application/x-www-form-urlencoded"
    for size in (64 * 1024 + 1, 1024 * 1024):
        for kind in ("application/json", form):
            sent = b"x" * size
            answer = visitor.post(f"{KEYS}/set", data=sent, content_type=kind, headers=token)
            assert problem_of(answer) == (413, "too_large"), kind
    for kind in ("text/plain", form, ""):
        body = '{"provider": "openai"}'
        answer = visitor.post(f"{KEYS}/clear", data=body, content_type=kind, headers=token)
        assert problem_of(answer) == (415, "unsupported_media_type"), kind


#: Texts with a key in them, and words that only hold the beginning of one.
NOTES = [
    "OPENAI_API_KEY=sk-proj-REALKEYREALKEYREALKEY01",
    "export KEY=AIzaREALKEYREALKEYREALKEY01;",
    '"sk-proj-REALKEYREALKEYREALKEY01"',
    "key:gsk_REALKEYREALKEYREALKEY01,mine",
    "an admin's: sk-ant-admin01-REALKEYREALKEY",
    "https://host/?key=xai-REALKEYREALKEYREALKEY01",
    "typedkeyABCDEF0123456",
    "mine is typedkeyABCDEF0123456",
]
WORDS = [
    "sk-learn experiments",
    "desk-and-chair-reservations-of-2026",
    "risk-assessment-of-the-whole-department",
    "task-force-meeting-notes-and-more-of-it",
    "FAQ.for-all-of-the-people-here-in-town",
    "SK- a b c d e f g h i j k l m n o p q",
]


def test_a_key_in_a_text_is_refused(visitor: Browser) -> None:
    """A key is found wherever it stands in a text, and however the key itself was pasted; words are no keys."""
    for name in ("label", "description"):
        for note in NOTES:
            answer = visitor.save("'typedkeyABCDEF0123456'", validate="off", **{name: note})
            assert problem_of(answer) == (422, "invalid_field"), (name, note)
    assert visitor.status()["has_key"] is False
    for note in WORDS:
        assert visitor.save("typedkeyABCDEF0123456", validate="off", label=note).status_code == 200


@pytest.mark.parametrize("prefix", ["/x/y", "/api", "/"])
@pytest.mark.parametrize("mount", ["", "/below"])
def test_openapi_names_where_it_is(tmp_path: Path, prefix: str, mount: str) -> None:
    """The description names the address under which this very app serves the calls."""
    app = make_app(tmp_path, BYOK_URL_PREFIX=prefix)
    below = prefix.rstrip("/")
    path = f"{below}/providers/openapi.json"
    found = app.test_client().get(path, base_url=f"http://localhost{mount}").get_json()
    assert found["servers"][0]["url"] == (f"{mount}{below}" or "/")


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
