"""Errors as problem objects: every code of the contract, with its status."""

from __future__ import annotations

import pytest
from flask import Flask, abort
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import Forbidden, MethodNotAllowed

from flask_byok import Validation, Verdict, errors
from flask_byok.model.credential import utcnow
from flask_byok.web.problems import (
    NOT_SET_UP,
    TYPE_PREFIX,
    http_problem_response,
    problem,
    problem_response,
)
from flask_byok.web.text import REASONS
from tests.app import KEYS, Browser, HostApp, browser

CODES = {
    errors.UnknownProviderError: (404, "unknown_provider"),
    errors.ProviderLockedError: (403, "provider_locked"),
    errors.OwnerRequiredError: (401, "owner_required"),
    errors.SessionRequiredError: (409, "session_required"),
    errors.NotAllowedError: (403, "not_allowed"),
    errors.MalformedApiKeyError: (422, "malformed_api_key"),
    errors.KeyExistsError: (409, "key_exists"),
    errors.KeyNotFoundError: (404, "key_not_found"),
    errors.MissingCredentialError: (409, "key_missing"),
    errors.RejectedCredentialError: (409, "key_rejected"),
    errors.UnreadableCredentialError: (409, "key_unreadable"),
    errors.EndpointNotAllowedError: (422, "endpoint_not_allowed"),
    errors.ProviderUnavailableError: (502, "provider_unavailable"),
    errors.StreamIncompleteError: (502, "stream_incomplete"),
    errors.StoreError: (503, "store_unavailable"),
    errors.RateLimitedError: (429, "rate_limited"),
    errors.InvalidFieldError: (422, "invalid_field"),
}


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_every_error_in_a_view(app: HostApp, kind: type[errors.ByokError]) -> None:
    """Raised in a view of the host, each error is answered with its own status and code, and not cached."""

    @app.get("/raise")
    def fail() -> str:
        raise kind()

    answer = browser(app).get("/raise")
    status, code = CODES[kind]
    body = answer.get_json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["type"] == TYPE_PREFIX + code
    assert body["title"] == kind.title
    assert body["detail"]
    assert answer.mimetype == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"


def test_what_a_problem_has_beside() -> None:
    """A problem names the provider where one is meant, and a refused key's has the validation."""
    assert problem(errors.MissingCredentialError("…", provider="openai"))["provider"] == "openai"
    assert "provider" not in problem(errors.StoreError())
    found = Validation("openai", Verdict.INVALID, "No such key.", utcnow())
    body = problem(errors.KeyRefusedError(found, provider="openai"))
    assert (body["status"], body["code"], body["detail"]) == (422, "key_refused", "No such key.")
    assert body["validation"]["verdict"] == "invalid"


def test_waiting_is_counted_in_seconds(app: HostApp) -> None:
    """Retry-After comes with the two errors that pass by themselves, a challenge with 401."""
    with app.app_context():
        assert problem_response(errors.StoreError()).headers["Retry-After"] == "1"
        limited = errors.RateLimitedError(retry_after=9)
        assert problem_response(limited).headers["Retry-After"] == "9"
        assert "Retry-After" not in problem_response(errors.KeyExistsError()).headers
        assert problem_response(errors.OwnerRequiredError()).headers["WWW-Authenticate"]


def test_a_store_that_is_away_is_no_dead_end() -> None:
    """The message about a store that does not answer says what to do."""
    assert str(errors.StoreError()).endswith("Please try again in a moment.")
    assert REASONS["store_unavailable"] == str(errors.StoreError())
    assert (
        str(errors.RateLimitedError(retry_after=9)) == "Too many attempts. Try again in 9 seconds."
    )
    assert str(errors.RateLimitedError(retry_after=1)).endswith("Try again in 1 second.")


def test_http_errors_are_problems_too() -> None:
    """Flask's own errors become problems with a code made of their name."""
    answer = http_problem_response(Forbidden("Not today."))
    assert (answer.status_code, answer.get_json()["code"]) == (403, "forbidden")
    assert answer.get_json()["detail"] == "Not today."
    answer = http_problem_response(MethodNotAllowed(["GET"]))
    assert (answer.get_json()["code"], answer.headers["Allow"]) == ("method_not_allowed", "GET")
    with Flask(__name__).test_request_context():
        assert http_problem_response(CSRFError("…")).get_json()["code"] == "csrf"


def test_a_hosts_hook_that_aborts(app: HostApp, visitor: Browser) -> None:
    """An error that a host's hook raises on our routes is a problem object, with our headers."""

    @app.before_request
    def closed() -> None:
        abort(503, "Closed for the night.")

    answer = visitor.get("/api/providers/keys")
    assert (answer.status_code, answer.get_json()["code"]) == (503, "service_unavailable")
    assert answer.get_json()["type"] == "about:blank"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_an_unforeseen_error_on_our_routes_says_nothing(
    app: HostApp, visitor: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault in a host's loader is a bare 500 problem, and its traceback goes to the log."""

    def broken() -> str:
        raise RuntimeError("the loader's secret")

    app.byok.owner_loader(broken)
    answer = visitor.get("/api/providers/keys")
    assert (answer.status_code, answer.get_json()["code"]) == (500, "internal_server_error")
    assert "the loader's secret" not in answer.text
    assert "the loader's secret" in caplog.text


def test_a_wrong_setting_is_told_to_the_operator_alone(caplog: pytest.LogCaptureFixture) -> None:
    """In a stream too, the problem of a wrong setting is neutral, and the sentence is logged."""
    body = problem(errors.ConfigurationError("BYOK_SECRET_THING is '/etc/secret'."))
    assert (body["code"], body["detail"]) == ("configuration", NOT_SET_UP)
    assert "BYOK_SECRET_THING" in caplog.text


def test_a_hosts_own_page_for_csrf_errors(app: HostApp, visitor: Browser) -> None:
    """A host's handler for CSRF errors, as Flask-WTF's documentation has it, does not take ours."""
    app.register_error_handler(CSRFError, lambda error: ("<h1>Sorry</h1>", 400))
    app.config["WTF_CSRF_ENABLED"] = True
    answer = visitor.post(f"{KEYS}/set", json={"provider": "openai", "api_key": "sk-12345678"})
    assert (answer.status_code, answer.get_json()["code"]) == (400, "csrf")
