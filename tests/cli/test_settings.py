"""What is set up: ``flask byok generate-key|providers``."""

from __future__ import annotations

from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from flask import Flask

from flask_byok.cli import byok as group
from flask_byok.model.credential import utcnow
from flask_byok.sealing.keyring import Keyring
from flask_byok.web.caller import get_state
from tests.accounts.account_kinds import event_of, make_record

from .host import SAFE, accounts_of, make_app, refused, run


def test_commands_are_found_by_flask() -> None:
    """Flask finds the commands through the entry point."""
    (entry,) = entry_points(group="flask.commands", name="byok")
    assert entry.load() is group


def test_generate_key_needs_no_app() -> None:
    """A new key is printed alone on a line, fits a keyring, and needs no application."""
    result = Flask(__name__).test_cli_runner().invoke(group, ["generate-key"])
    assert result.exit_code == 0
    assert result.output.count("\n") == 1
    assert Keyring(result.output.strip()).key_ids


def test_providers_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each provider has a line that says which tier has the operator's key, without the key."""
    (tmp_path / "groq_api_key").write_text("gsk_operators-own-key-1234\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-operators-own-key-5678")
    for name in ("GROQ_API_KEY", "XAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    result = run(make_app(tmp_path, **SAFE), "providers")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert list(lines) == ["openai", "anthropic", "google", "groq", "xai", "openrouter"]
    assert " env " in lines["openai"]
    assert " secret " in lines["groq"]
    assert " - " in lines["xai"]
    assert lines["google"].endswith("GEMINI_API_KEY, GOOGLE_API_KEY")
    assert "operators-own" not in result.output


def test_providers_name_what_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored key that has expired is not where the operator's key comes from."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-operators-own-key-5678")
    app = make_app(tmp_path, **SAFE)
    for provider in ("openai", "groq"):
        ended = utcnow() - timedelta(days=1)
        record = make_record(
            "system", provider, expires_at=ended, keyring=get_state(app).service.keyring
        )
        accounts_of(app).create(record, event_of())
    result = run(app, "providers")
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert " env " in lines["openai"]
    assert " - " in lines["groq"]


def test_app_without_byok() -> None:
    """Without init_app a command says what was forgotten."""
    said = refused(run(Flask(__name__), "providers"))
    assert "did you forget to call byok.init_app(app)?" in said
