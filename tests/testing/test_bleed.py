"""The assertion that no key bled finds each way of bleeding, and repeats no key."""

from __future__ import annotations

from typing import Any

import pytest

from flask_byok.testing import RecordedCall, assert_no_key_bleed

KEYS = {"7": "sk-seven-seven", "8": "sk-eight-eight", "guest": None}


def call(owner: str, **changes: Any) -> RecordedCall:
    """Build the call that the owner should make, but for the changes."""
    api_key = KEYS.get(owner)
    facts: dict[str, Any] = {
        "provider": "openai",
        "method": "POST",
        "path": "/openai/v1/chat/completions",
        "api_key": api_key,
        "cookies": {},
        "headers": {"authorization": f"Bearer {api_key}"} if api_key else {},
        "query": {},
        "body": {"messages": [{"role": "user", "content": f"owner:{owner} hi"}]},
        "status": 200,
    }
    return RecordedCall(**(facts | changes))


def calls(*more: RecordedCall) -> list[RecordedCall]:
    """List a good call of each owner, and more."""
    return [call("7"), call("8"), call("guest"), *more]


def test_own_keys_pass() -> None:
    """Calls with their owners' keys pass, and so does a check without owners."""
    check = call("7", method="GET", path="/openai/v1/models", body=None)
    assert_no_key_bleed(calls(check), KEYS)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (call("7", api_key="sk-eight-eight"), "owner 7 was served with the key of owner 8"),
        (call("7", api_key="sk-strange"), "owner 7 was served with an unknown key"),
        (call("7", api_key=None), "owner 7 was served with no key"),
        (call("guest", api_key="sk-seven-seven"), "owner guest was served with the key of owner 7"),
        (call("8", cookies={"s": "1"}), "owner 8 brought a cookie"),
        (call("8", headers={"cookie": "odd"}), "owner 8 brought a cookie"),
        (call("8", body=None, cookies={"s": "1"}), "owner unknown brought a cookie"),
        (call("7", body={"text": "owner:7 owner:8"}), "holds messages of owner 7, 8"),
        (call("9"), "owner 9 is not among the expected ones"),
        (call("8", query={"key": "sk-seven-seven"}), "owner 8 holds the key of owner 7"),
        (call("8", headers={"x-api-key": "sk-seven-seven"}), "owner 8 holds the key of owner 7"),
    ],
)
def test_bleeding_is_found(bad: RecordedCall, words: str) -> None:
    """Each way of bleeding fails with the owners' names and without a key."""
    with pytest.raises(AssertionError) as caught:
        assert_no_key_bleed(calls(bad), KEYS)
    assert words in str(caught.value)
    assert "sk-" not in str(caught.value)


def test_an_owner_without_a_call_proves_nothing() -> None:
    """No call at all of an expected owner fails."""
    with pytest.raises(AssertionError, match="no call of owner 8, guest was seen"):
        assert_no_key_bleed([call("7")], KEYS)
