"""The description of the HTTP interface, held against what the app does."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import schemathesis
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
from tests.app import HostApp, browser, make_app

DOCUMENT: dict[str, Any] = json.loads(files("flask_byok.web").joinpath("openapi.json").read_text())
CALLS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in item]
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


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Make a host whose keys are not limited in number."""
    return make_app(tmp_path, fake, WTF_CSRF_ENABLED=False)


@pytest.fixture
def cookie(app: HostApp) -> str:
    """Establish a session."""
    client = browser(app)
    client.load()
    held = client.get_cookie("session")
    assert held is not None
    return held.value


def _answers(cookie: str, strategy: Any) -> set[int]:
    """Make the calls that the strategy draws, check each answer, and return the statuses."""
    statuses = set()

    @BOUNDED
    @given(case=strategy)
    def check(case: Any) -> None:
        answer = case.call(cookies={"session": cookie})
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    check()
    return statuses


@pytest.mark.parametrize(("path", "method"), CALLS)
def test_the_app_does_as_described(app: HostApp, cookie: str, path: str, method: str) -> None:
    """No input that fits the description gets an answer whose status, type or shape is not described."""
    schema = schemathesis.openapi.from_wsgi("/api/providers/openapi.json", app)
    assert _answers(cookie, schema[path][method].as_strategy())


@pytest.mark.parametrize("path", [path for path, method in CALLS if method == "post"])
def test_the_app_does_as_described_with_bad_input(app: HostApp, cookie: str, path: str) -> None:
    """Input that does not fit the description gets a described answer too, and changes nothing."""
    schema = schemathesis.openapi.from_wsgi("/api/providers/openapi.json", app)
    strategy = schema[path]["post"].as_strategy(generation_mode=GenerationMode.NEGATIVE)
    assert {400, 415, 422} & _answers(cookie, strategy)


@pytest.mark.parametrize("path", [path for path, method in CALLS if method == "post"])
def test_the_app_does_as_described_for_real_providers(
    app: HostApp, fake: FakeProviders, cookie: str, path: str
) -> None:
    """The same with providers and keys that exist, so that the calls get to their end."""
    schema = schemathesis.openapi.from_wsgi("/api/providers/openapi.json", app)
    behaviours = ("good", "bad", "restricted", "broke", "rate_limited", "disabled")
    keys = [fake.api_key("openai", behaviour) for behaviour in behaviours]

    def real(case: Any, api_key: str, bare: bool) -> Any:
        if not isinstance(case.body, dict) or path.endswith("/promote"):
            return case
        case.body["provider"] = "openai"
        if not path.endswith("/clear"):
            case.body["api_key"] = api_key
        for name in ("fields", "base_url", "expires_at", "persist") if bare else ():
            case.body.pop(name, None)
        return case

    strategy = st.builds(
        real, schema[path]["post"].as_strategy(), st.sampled_from(keys), st.booleans()
    )
    statuses = _answers(cookie, strategy)
    assert "promote" in path or 200 in statuses
