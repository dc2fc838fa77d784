"""G6: the next tier is asked only when this one has nothing usable, and every use says whose key served."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flask_byok.catalog import Catalog
from flask_byok.keys import faults
from flask_byok.model.credential import make_hint
from flask_byok.testing import FakeProviders
from tests.app import Browser, browser, fingerprint, make_app
from tests.documents import change_records

OPERATORS = "operators-key-0123456789"


@pytest.fixture(autouse=True)
def _operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operator have a key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", OPERATORS)


def _host(tmp_path: Path, fake: FakeProviders, **config: Any) -> Browser:
    fake.add_key("openai", OPERATORS)
    return browser(make_app(tmp_path, fake, BYOK_VALIDATE_ON_SET="off", **config))


def _served(client: Browser, fake: FakeProviders) -> tuple[str | None, str | None]:
    """Stream, and return the source that the answer names and the key that the provider saw."""
    fake.clear_calls()
    answer = client.get("/chat/openai")
    answer.get_data()
    keys = {call.api_key for call in fake.calls}
    assert len(keys) <= 1
    return answer.headers.get("X-BYOK-Source"), keys.pop() if keys else None


def _make_unreadable(tmp_path: Path) -> None:
    change_records(
        tmp_path, lambda record: record | {"ciphertext": record["ciphertext"].replace(".f.", ".g.")}
    )


def _make_rejected(client: Browser, fake: FakeProviders, api_key: str) -> None:
    fake.revoke("openai", api_key)
    client.get("/chat/openai").get_data()


def test_whose_key_served_is_said_and_true(tmp_path: Path, fake: FakeProviders) -> None:
    """The header, the status and the key that the provider sees agree, for each source."""
    client = _host(tmp_path, fake)
    own = fake.api_key("openai")
    assert _served(client, fake) == ("env", OPERATORS)
    assert client.status()["source"] == "env"
    client.save(own)
    assert _served(client, fake) == ("session", own)
    assert client.status()["source"] == "session"
    client.call("clear", provider="openai")
    assert _served(client, fake) == ("env", OPERATORS)


def test_an_expired_key_gives_way(tmp_path: Path, fake: FakeProviders) -> None:
    """A key whose time is over counts as none."""
    client = _host(tmp_path, fake, BYOK_MAX_KEY_LIFETIME=1)
    client.save(fake.api_key("openai"))
    change_records(tmp_path, lambda record: record | {"expires_at": "2001-01-01T00:00:00Z"})
    assert _served(client, fake) == ("env", OPERATORS)
    assert client.status()["source"] == "env"


def test_a_rejected_key_stops_the_search(tmp_path: Path, fake: FakeProviders) -> None:
    """When its provider refused the person's key, the operator's does not pay instead."""
    client = _host(tmp_path, fake)
    client.save(fake.api_key("openai"))
    _make_rejected(client, fake, fake.api_key("openai"))
    assert _served(client, fake) == (None, None)
    assert client.get("/used/openai").get_json()["code"] == "key_rejected"
    status = client.status()
    assert (status["source"], status["state"]) == ("session", "rejected")


def test_an_unreadable_key_stops_the_search(tmp_path: Path, fake: FakeProviders) -> None:
    """When the person's key does not open, the operator's does not pay instead."""
    client = _host(tmp_path, fake)
    client.save(fake.api_key("openai"))
    _make_unreadable(tmp_path)
    assert _served(client, fake) == (None, None)
    assert client.get("/used/openai").get_json()["code"] == "key_unreadable"
    assert client.get("/used/openai").status_code == 409


@pytest.mark.parametrize("reason", ["rejected", "unreadable"])
def test_the_operator_may_allow_a_reason(tmp_path: Path, fake: FakeProviders, reason: str) -> None:
    """BYOK_FALLBACK_ON lets the search go on for the reason that it names, openly, and for no other."""
    client = _host(tmp_path, fake, BYOK_FALLBACK_ON=[reason])
    own = fake.api_key("openai")
    client.save(own)
    _make_rejected(client, fake, own)
    expected = ("env", OPERATORS) if reason == "rejected" else (None, None)
    assert _served(client, fake) == expected
    fake.add_key("openai", own)
    client.save(own)
    assert _served(client, fake) == ("session", own)
    _make_unreadable(tmp_path)
    expected = ("env", OPERATORS) if reason == "unreadable" else (None, None)
    assert _served(client, fake) == expected


def test_an_operators_unusable_key_is_no_reason_to_look_further(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken variable is an error of the operator's, not an absent key."""
    monkeypatch.setenv("OPENAI_API_KEY", "has a space")
    client = _host(tmp_path, fake)
    assert client.get("/used/openai").get_json()["code"] == "key_unreadable"


def test_the_operators_key_first(tmp_path: Path, fake: FakeProviders) -> None:
    """With env_first the operator's key serves and locks; without one the person's own does."""
    client = _host(tmp_path, fake, BYOK_PRECEDENCE="env_first")
    assert client.save(fake.api_key("openai")).status_code == 403
    assert _served(client, fake) == ("env", OPERATORS)
    groq = fake.api_key("groq")
    assert client.save(groq, "groq").status_code == 200
    assert client.get("/used/groq").get_json() == {
        "source": "session",
        "fingerprint": fingerprint(groq),
    }


def test_every_path_decides_alike(tmp_path: Path, fake: FakeProviders) -> None:
    """Status, resolving, streams and checks name the same source in each state of the person's key."""
    client = _host(tmp_path, fake)
    for prepare, source in (
        (lambda: None, "env"),
        (lambda: client.save(fake.api_key("openai")), "session"),
        (lambda: client.call("clear", provider="openai"), "env"),
    ):
        prepare()
        status = client.status()
        assert status["source"] == source
        assert client.get("/used/openai").get_json()["source"] == source
        assert client.get("/chat/openai").headers["X-BYOK-Source"] == source
        fake.clear_calls()
        assert client.call("validate", provider="openai").get_json()["valid"] is True
        expected = OPERATORS if source == "env" else fake.api_key("openai")
        assert {call.api_key for call in fake.calls} == {expected}


def _chats(fake: FakeProviders) -> list[str | None]:
    """Return the keys that conversations were asked for with; a refused key is checked beside them."""
    return [call.api_key for call in fake.calls if call.path.endswith("/chat/completions")]


#: Refusals that pass by themselves, by the reason that the operator may name.
PASSING = {
    "no_credit": (402, {"error": {"message": "no", "code": "insufficient_quota"}}),
    "rate_limited": (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}),
    "unreachable": (500, {"error": {"message": "oops", "code": "server_error"}}),
}


@pytest.mark.parametrize("reason", PASSING)
def test_a_passing_fault_is_forgotten(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """A fault that a call met passes a key over, openly, until five minutes are over or a check is good."""
    client = _host(tmp_path, fake, BYOK_FALLBACK_ON=[reason])
    own = fake.api_key("openai")
    client.save(own)
    fake.answer_next("openai", *PASSING[reason])
    assert _served(client, fake) == ("session", own)
    assert _served(client, fake) == ("env", OPERATORS)
    status = client.status()
    assert status["source"] == "env"
    over = status["passed_over"]
    assert (over["tier"], over["state"], over["hint"]) == ("session", reason, status_hint(own))
    client.load()
    checked = client.call("validate", provider="openai").get_json()
    assert checked["verdict"] == "valid"
    assert [call.api_key for call in fake.calls][-1] == own
    assert _served(client, fake) == ("session", own)
    assert client.status()["passed_over"] is None
    fake.answer_next("openai", *PASSING[reason])
    assert _served(client, fake) == ("session", own)
    monkeypatch.setattr(faults, "FORGOTTEN_AFTER", timedelta(0))
    assert _served(client, fake) == ("session", own)


def status_hint(api_key: str) -> str:
    """Return what is shown of a key of OpenAI's."""
    return make_hint(api_key, Catalog().get("openai").prefixes)


@pytest.mark.parametrize("reason", PASSING)
def test_the_operators_key_may_be_passed_over_too(
    tmp_path: Path, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """A fault of the environment's key lets the next tier serve in every worker, and a new key clears it."""
    kept = {"BYOK_FALLBACK_ON": [reason], "BYOK_PRECEDENCE": ["env", "session"]}
    client = _host(tmp_path, fake, **kept)
    own = fake.api_key("openai")
    fake.answer_next("openai", *PASSING[reason])
    assert _served(client, fake) == ("env", OPERATORS)
    client.save(own)
    assert _served(client, fake) == ("session", own)
    other_worker = browser(make_app(tmp_path, fake, BYOK_VALIDATE_ON_SET="off", **kept))
    other_worker.set_cookie("session", client.session_id)
    assert _served(other_worker, fake) == ("session", own)
    assert other_worker.status()["passed_over"] == {"tier": "env", "hint": None, "state": reason}
    fake.add_key("openai", "another-operators-key")
    monkeypatch.setenv("OPENAI_API_KEY", "another-operators-key")
    assert _served(client, fake) == ("env", "another-operators-key")


def test_a_passing_fault_alone_is_no_reason(tmp_path: Path, fake: FakeProviders) -> None:
    """Without BYOK_FALLBACK_ON a fault passes no key over."""
    client = _host(tmp_path, fake)
    own = fake.api_key("openai")
    client.save(own)
    for status, body in PASSING.values():
        fake.answer_next("openai", status, body)
        assert _served(client, fake) == ("session", own)
    assert client.status()["passed_over"] is None


@pytest.mark.parametrize(
    ("reason", "protocol"),
    [("rejected", "byok"), *((reason, "byok") for reason in PASSING), ("no_credit", "openai")],
)
def test_failover_goes_on_with_the_next_key(
    tmp_path: Path, fake: FakeProviders, reason: str, protocol: str
) -> None:
    """With BYOK_FAILOVER a call that fails before its first piece goes on with the next key, and says so."""
    client = _host(tmp_path, fake, BYOK_FALLBACK_ON=[reason], BYOK_FAILOVER=True)
    own = fake.api_key("openai")
    client.save(own)
    if reason == "rejected":
        fake.revoke("openai", own)
    else:
        fake.answer_next("openai", *PASSING[reason])
    fake.clear_calls()
    text = client.get(f"/chat/openai?protocol={protocol}").text
    assert _chats(fake) == [own, OPERATORS]
    assert re.findall(r'"source":"(\w+)"', text) == ["session", "env"]
    end = "event: done\ndata: {}\n\n" if protocol == "byok" else "data: [DONE]\n\n"
    assert text.endswith(end)
    assert client.status()["passed_over"]["state"] == reason


def test_failover_is_asked_for_and_comes_before_the_first_piece(
    tmp_path: Path, fake: FakeProviders
) -> None:
    """Without BYOK_FAILOVER, for a reason that is not named, and after the first piece, the call fails as it did."""
    own = fake.api_key("openai")
    hosts = ({"BYOK_FALLBACK_ON": ["no_credit"]}, {"BYOK_FAILOVER": True})
    for number, config in enumerate(hosts):
        client = _host(tmp_path / str(number), fake, **config)
        client.save(own)
        fake.answer_next("openai", *PASSING["no_credit"])
        assert '"code":"no_credit"' in client.get("/chat/openai").text
    client = _host(tmp_path / "2", fake, BYOK_FALLBACK_ON=["rejected"], BYOK_FAILOVER=True)
    client.save(own)
    fake.clear_calls()
    assert '"code":"key_rejected"' in client.get("/chat/openai?model=revoked-midstream").text
    assert _chats(fake) == [own]


def test_failover_ends(tmp_path: Path, fake: FakeProviders) -> None:
    """If every key fails, the last error is told; no key is tried twice."""
    client = _host(tmp_path, fake, BYOK_FALLBACK_ON=["rejected"], BYOK_FAILOVER=True)
    own = fake.api_key("openai")
    client.save(own)
    fake.revoke("openai", own)
    fake.revoke("openai", OPERATORS)
    fake.clear_calls()
    assert '"code":"key_rejected"' in client.get("/chat/openai").text
    assert _chats(fake) == [own, OPERATORS]


@pytest.mark.parametrize("reason", PASSING)
def test_a_key_that_is_alone_is_tried_again(
    tmp_path: Path, fake: FakeProviders, reason: str
) -> None:
    """A passing fault passes over no key that has none beside it: the next call asks the provider again."""
    client = _host(tmp_path, fake, BYOK_FALLBACK_ON=[reason])
    for _ in range(2):
        fake.answer_next("openai", *PASSING[reason])
        assert _served(client, fake) == ("env", OPERATORS)
    status = client.status()
    assert (status["has_key"], status["source"], status["passed_over"]) == (True, "env", None)


def test_a_refused_key_of_the_operators_may_be_passed_over(
    tmp_path: Path, fake: FakeProviders
) -> None:
    """With "rejected" in BYOK_FALLBACK_ON a refused key of the environment gives way to the next tier's."""
    order = {"BYOK_FALLBACK_ON": ["rejected"], "BYOK_PRECEDENCE": ["env", "session"]}
    client = _host(tmp_path, fake, **order)
    fake.revoke("openai", OPERATORS)
    client.get("/chat/openai").get_data()
    own = fake.api_key("openai")
    client.save(own)
    assert _served(client, fake) == ("session", own)
    assert client.status()["passed_over"] == {"tier": "env", "hint": None, "state": "rejected"}
