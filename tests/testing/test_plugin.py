"""The plugin gives hosts the fixture, and costs runs that do not use it little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python on this source tree, with no other plugin and without proxies."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)


def test_hosts_use_the_fixture(tmp_path: Path) -> None:
    """A host's tests each get a server with nothing recorded, and no warning is left behind."""
    (tmp_path / "test_host.py").write_text(HOST_TEST)
    plugin = ("-p", "flask_byok.testing.plugin")
    result = run("-m", "pytest", "-q", "-W", "error", *plugin, "test_host.py", cwd=tmp_path)
    assert "2 passed" in result.stdout, result.stdout + result.stderr


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
    result = run("-c", code, cwd=tmp_path)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
