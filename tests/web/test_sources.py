"""``X-BYOK-Source`` names the key that served, and only if one did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Response

from flask_byok import get_chat_model_with_api_key, get_provider_with_api_key, key_rejected
from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp, browser

HELLO = [{"role": "user", "content": "hello"}]


def _takes_and_calls_nothing(app: HostApp, other: str) -> str:
    return get_provider_with_api_key("openai").name


def _makes_a_client(app: HostApp, other: str) -> str:
    return str(get_provider_with_api_key("openai").client.base_url)


def _chats(app: HostApp, other: str) -> str:
    return "".join(get_provider_with_api_key("openai").stream_chat(HELLO))


def _calls_with_the_client(app: HostApp, other: str) -> str:
    return str(get_provider_with_api_key("openai").client.models.list())


def _asks_a_model(app: HostApp, other: str) -> str:
    return str(get_chat_model_with_api_key("openai", "gpt-4o-mini").invoke("hello").content)


def _sets_another(app: HostApp, other: str) -> str:
    provider = get_provider_with_api_key("openai")
    provider.set_api_key(other)
    return "".join(provider.stream_chat(HELLO))


def _uses_both(app: HostApp, other: str) -> str:
    provider = get_provider_with_api_key("openai")
    text = "".join(provider.stream_chat(HELLO))
    provider.api_key = other
    return text + "".join(provider.stream_chat(HELLO))


def _brings_its_own(app: HostApp, other: str) -> str:
    return "".join(get_provider_with_api_key("openai", other).stream_chat(HELLO))


def _takes_the_key(app: HostApp, other: str) -> str:
    return str(len(app.byok.get_api_key("openai")))


def _streams(app: HostApp, other: str) -> Response:
    provider = get_provider_with_api_key("openai")

    def pieces() -> Iterator[str]:
        yield from provider.stream_chat(HELLO)

    return Response(pieces())


def _streams_with_another(app: HostApp, other: str) -> Response:
    provider = get_provider_with_api_key("openai")
    provider.set_api_key(other)
    return Response(provider.stream_chat(HELLO))


def _streams_ours(app: HostApp, other: str) -> Response:
    get_provider_with_api_key("openai")
    return app.byok.stream_response(get_provider_with_api_key("openai", other), HELLO)


@pytest.mark.parametrize(
    ("view", "named"),
    [
        (_takes_and_calls_nothing, None),
        (_makes_a_client, None),
        (_chats, "session"),
        (_calls_with_the_client, "session"),
        (_asks_a_model, "session"),
        (_sets_another, "argument"),
        (_uses_both, "session, argument"),
        (_brings_its_own, "argument"),
        (_takes_the_key, "session"),
        (_streams, "session"),
        (_streams_with_another, "argument"),
        (_streams_ours, "argument"),
    ],
)
def test_the_header_names_the_key_that_served(
    app: HostApp,
    visitor: Browser,
    fake: FakeProviders,
    view: Callable[[HostApp, str], Any],
    named: str | None,
) -> None:
    """An object counts once it has made a call, with the key that it had; in a stream, with the one that it has."""
    other = fake.api_key("openai", owner="other")
    app.add_url_rule("/view", view_func=lambda: view(app, other), endpoint="view")
    visitor.save(fake.api_key("openai"))
    answer = visitor.get("/view")
    assert (answer.status_code, answer.headers.get("X-BYOK-Source")) == (200, named)


def test_hooks_that_the_host_had_before_read_the_header(
    app: HostApp, visitor: Browser, fake: FakeProviders
) -> None:
    """A hook of the host's that was there before ours, such as one that bills, sees which key served."""
    seen: list[str | None] = []

    def bill(response: Response) -> Response:
        seen.append(response.headers.get("X-BYOK-Source"))
        return response

    app.after_request_funcs[None].insert(1, bill)  # the first is ours, and runs last of all
    visitor.save(fake.api_key("openai"))
    visitor.get("/used/openai")
    assert seen[-1] == "session"


def test_all_keys_of_a_view_that_fails_are_redacted(
    app: HostApp, fake: FakeProviders, caplog: pytest.LogCaptureFixture
) -> None:
    """A log line of a view that took several keys shows none of them, of other providers and people too."""
    people = {name: fake.api_key("openai", owner=name) for name in ("ann", "bob")}
    others = {name: fake.api_key("groq", owner=name) for name in people}

    @app.get("/fail")
    def fail() -> str:
        taken = []
        for name in people:
            with app.byok.acting_for(name):
                taken.append(app.byok.get_api_keys(["openai", "groq"]))
        app.logger.error("refused: %s", [dict(keys) for keys in taken])
        return str(len(taken))

    with app.app_context():
        for name in people:
            with app.byok.acting_for(name):
                app.byok.set("openai", people[name], persist=True)
                app.byok.set("groq", others[name], persist=True)
    assert browser(app).get("/fail").text == "2"
    assert "refused: " in caplog.text
    assert not [key for key in (*people.values(), *others.values()) if key in caplog.text]


def test_a_reported_refusal_is_checked_first(
    app: HostApp, visitor: Browser, fake: FakeProviders
) -> None:
    """`report_rejected` marks the key that serves, and sends the signal, only if its provider refuses it too."""
    told: list[Any] = []
    app.add_url_rule("/report", "report", lambda: app.byok.report_rejected("openai").to_dict())
    api_key = fake.api_key("openai")
    visitor.save(api_key)
    with key_rejected.connected_to(lambda _, **facts: told.append(facts["source"]), app):
        assert visitor.get("/report").get_json()["verdict"] == "valid"
        assert visitor.status()["state"] == "active"
        fake.revoke("openai", api_key)
        assert visitor.get("/report").get_json()["valid"] is False
    assert told == ["session"]
    assert visitor.status()["state"] == "rejected"
    assert visitor.get("/used/openai").get_json()["code"] == "key_rejected"


def test_reports_are_limited_and_fail_no_view(tmp_path: Any, fake: FakeProviders) -> None:
    """Beyond `BYOK_VALIDATE_RATE` a report is not checked, and raises no error of its own."""
    from tests.app import browser, make_app

    app = make_app(tmp_path, fake, BYOK_VALIDATE_RATE="1/hour")
    app.add_url_rule("/report", "report", lambda: str(app.byok.report_rejected("openai")))
    visitor = browser(app)
    visitor.save(fake.api_key("openai"), validate="off")
    assert [visitor.get("/report").status_code for _ in range(2)] == [200, 200]
    assert len(fake.calls) == 1
