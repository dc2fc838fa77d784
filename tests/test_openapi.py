"""The description of the HTTP interface, held against what the app does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flask_login import current_user
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from flask_byok.testing import FakeProviders
from flask_byok.web.blueprint import ROUTES
from flask_byok.web.openapi import describe
from tests.app import HostApp, browser, make_app

DOCUMENT = describe(ROUTES, url="/api", version="1")
CALLS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in item]
WITH_BODY = [
    (path, method) for path, method in CALLS if "requestBody" in DOCUMENT["paths"][path][method]
]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BOUNDED = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


#: Who calls: a visitor, a user, and a user who administers shared keys.
ROLES = {"visitor": None, "user": "ann", "admin": "root"}


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Make a host whose keys are not limited in number."""
    app = make_app(tmp_path, fake, WTF_CSRF_ENABLED=False, BYOK_KEYS_PER_PROVIDER=1000)
    app.byok.admin_loader(lambda: current_user.get_id() == "root")
    return app


@pytest.fixture
def cookies(app: HostApp, fake: FakeProviders) -> dict[str, str]:
    """Establish a session for each role."""
    return {role: _cookie(app, user) for role, user in ROLES.items()}


def _cookie(app: HostApp, user: str | None) -> str:
    client = browser(app)
    if user:
        client.post(f"/sign-in/{user}")
    client.load()
    return client.session_id


def _schema(app: HostApp) -> Any:
    return schemathesis.openapi.from_wsgi("/api/providers/openapi.json", app)


def _answers(cookie: str, strategy: Any, examples: int = 50) -> set[int]:
    """Make the calls that the strategy draws, check each answer, and return the statuses."""
    statuses = set()

    @settings(BOUNDED, max_examples=examples)
    @given(case=strategy)
    def check(case: Any) -> None:
        answer = case.call(cookies={"session": cookie})
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    check()
    return statuses


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("path", "method"), CALLS)
def test_the_app_does_as_described(
    app: HostApp, cookies: dict[str, str], path: str, method: str, role: str
) -> None:
    """No input that fits the description gets an answer whose status, type or shape is not described."""
    strategy = _schema(app)[path][method].as_strategy()
    statuses = _answers(cookies[role], strategy, 10 if role == "visitor" else 30)
    if path.startswith("/admin/"):
        assert statuses <= {"visitor": {401}, "user": {403}}.get(role, statuses - {401})


@pytest.mark.parametrize(("path", "method"), WITH_BODY)
def test_the_app_does_as_described_with_bad_input(
    app: HostApp, fake: FakeProviders, cookies: dict[str, str], path: str, method: str
) -> None:
    """Input that does not fit the description gets a described answer too, and changes nothing."""
    ids = _store(app, fake, "root", path)

    def existing(case: Any, id: str) -> Any:
        if case.path_parameters:
            case.path_parameters["id"] = id
        return case

    negative = _schema(app)[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE)
    strategy = st.builds(existing, negative, st.sampled_from(ids))
    assert {400, 415, 422} & _answers(cookies["admin"], strategy)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        (path, method)
        for path, method in CALLS
        if path.startswith("/providers/keys/") or not path.startswith("/providers/")
    ],
)
def test_the_app_does_as_described_for_what_exists(
    app: HostApp, fake: FakeProviders, cookies: dict[str, str], path: str, method: str
) -> None:
    """The same with providers, keys and records that exist, so that the calls get to their end."""
    role = "admin" if path.startswith("/admin/") else "user"
    strategy = st.builds(
        _with_what_exists,
        _schema(app)[path][method].as_strategy(),
        st.sampled_from(_store(app, fake, ROLES[role] or "", path)),
        st.sampled_from(_keys(fake)),
        st.booleans(),
    )
    statuses = _answers(cookies[role], strategy)
    assert "promote" in path or {200, 201, 204} & statuses


def _keys(fake: FakeProviders) -> list[str]:
    behaviours = ("good", "bad", "restricted", "broke", "rate_limited", "disabled")
    return [fake.api_key("openai", behaviour) for behaviour in behaviours]


def _store(app: HostApp, fake: FakeProviders, user: str, path: str) -> list[str]:
    """Store some keys and return their ids."""
    client = browser(app)
    client.post(f"/sign-in/{user}")
    base = "/api/admin/keys" if path.startswith("/admin") else "/api/keys"
    body = {"provider": "openai", "api_key": fake.api_key("openai"), "validate": "off"}
    return [client.post(base, json=body).get_json()["id"] for _ in range(5)]


def _with_what_exists(case: Any, id: str, api_key: str, bare: bool) -> Any:
    if case.path_parameters:
        case.path_parameters["id"] = id
    for name in ("If-Match", "cursor", "limit", "provider", "owner", "include_value"):
        for sent in (case.headers, case.query) if bare else ():
            (sent or {}).pop(name, None)
    if not isinstance(case.body, dict) or case.path.endswith("/promote"):
        return case
    if case.method == "POST":
        case.body["provider"] = "openai"
    if not case.path.endswith("/clear"):
        case.body["api_key"] = api_key
    for name in ("fields", "base_url", "expires_at", "slot", "owner", "persist") if bare else ():
        case.body.pop(name, None)
    return case
