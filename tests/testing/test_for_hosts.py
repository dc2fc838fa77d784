"""What hosts use in their tests: a fixture that costs other runs little, and an assertion that finds bleeding keys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flask_byok.testing import RecordedCall, assert_no_key_bleed

ROOT = Path(__file__).parents[2]
HOST_TEST = """
from urllib.request import Request, urlopen
from flask_byok.testing import assert_no_key_bleed

def test_one(byok_fake_providers):
    api_key = byok_fake_providers.api_key("demo")
    url = byok_fake_providers.base_url("demo") + "/models"
    with urlopen(Request(url, headers={"Authorization": f"Bearer {api_key}"})) as answer:
        assert answer.status == 200
    assert [call.api_key for call in byok_fake_providers.calls] == [api_key]
    assert_no_key_bleed(byok_fake_providers.calls, {})

def test_two(byok_fake_providers):
    assert byok_fake_providers.calls == []
"""


def run(*arguments: str, cwd: Path) -> str:
    """Run Python on this source tree, with no other plugin and without proxies; return what it says."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_hosts_use_the_fixture(tmp_path: Path) -> None:
    """A host's tests each get a server with nothing recorded, and no warning is left behind."""
    (tmp_path / "test_host.py").write_text(HOST_TEST)
    plugin = ("-p", "flask_byok.testing.plugin")
    said = run("-m", "pytest", "-q", "-W", "error", *plugin, "test_host.py", cwd=tmp_path)
    assert "2 passed" in said, said


def test_loading_the_plugin_is_light(tmp_path: Path) -> None:
    """The plugin loads no SDK, no HTTP client and no database."""
    heavy = "openai anthropic google.genai httpx2 httpx sqlalchemy redis"
    code = f"""
import sys
import pytest
before = set(sys.modules)
import flask_byok.testing.plugin
print([name for name in {heavy.split()} if name in sys.modules and name not in before])
"""
    assert run("-c", code, cwd=tmp_path).strip() == "[]"


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


GOOD = [call("7"), call("8"), call("guest")]
BLEEDING = [
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
]


def test_bleeding_is_found() -> None:
    """Each way of bleeding fails with the owners' names and without a key; calls with own keys pass."""
    check = call("7", method="GET", path="/openai/v1/models", body=None)
    assert_no_key_bleed([*GOOD, check], KEYS)
    for bad, words in BLEEDING:
        with pytest.raises(AssertionError) as caught:
            assert_no_key_bleed([*GOOD, bad], KEYS)
        assert words in str(caught.value)
        assert "sk-" not in str(caught.value)


def test_an_owner_without_a_call_proves_nothing() -> None:
    """No call at all of an expected owner fails."""
    with pytest.raises(AssertionError, match="no call of owner 8, guest was seen"):
        assert_no_key_bleed([call("7")], KEYS)
