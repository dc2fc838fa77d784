"""What is public: the names, what importing them costs, and the tree of errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import flask_byok
from flask_byok import errors
from flask_byok.errors import ByokError, KeyRefusedError, RateLimitedError, StoreError
from flask_byok.model.credential import Validation, Verdict

HEAVY = ("alembic", "anthropic", "google.genai", "httpx", "httpx2", "langchain_core", "openai")
HEAVY += ("psycopg", "redis", "sqlalchemy")


def test_all_names_can_be_imported_and_are_defined_here() -> None:
    """``__all__`` has every public name once: the classes, functions and signals, but no submodule."""
    names = flask_byok.__all__
    assert {"BYOK", "ByokError", "Secret", "get_provider_with_api_key", "key_set"} <= set(names)
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(flask_byok, name).__module__.startswith(("flask_byok.", "blinker."))
    with pytest.raises(AttributeError, match="'flask_byok' has no attribute 'Byok'"):
        _ = flask_byok.Byok


def test_every_name_is_documented() -> None:
    """The page on the Python interface has every public name, and all that a provider's object does."""
    page = (Path(__file__).parents[1] / "docs" / "api.rst").read_text()
    words = set(re.findall(r"\w+", page))
    methods = {
        name for name in vars(flask_byok.BaseProvider) if "stream_" in name and name[0] != "_"
    }
    assert words.issuperset([*flask_byok.__all__, *methods, "astream_chat"])


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("from flask_byok import BYOK; BYOK()", set()),
        ("import flask_byok.keys.service, flask_byok.keys.checks, flask_byok.http", set()),
        # Before the first call, not in it.
        ("import flask_byok.http; flask_byok.http.Outbound()", {"httpx2"}),
    ],
)
def test_import_is_light(code: str, loaded: set[str]) -> None:
    """Importing the package loads no SDK, no SQLAlchemy, no Redis and no HTTP client."""
    report = f"import sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == loaded


START = """
import sys
from pathlib import Path
import click
import flask.cli
from flask import Flask
from flask_byok import BYOK
from tests.app import bare
before = {name for name in sys.modules if name in ("openai", "anthropic", "google.genai")}
folder, mode, *command = sys.argv[1:]

def make():
    app = bare(Path(folder), TESTING=mode == "testing", BYOK_PROVIDERS=["groq", "anthropic"])
    app.cli.command("mine")(report)
    BYOK(app)
    return app

def report(*_, **__):
    print(before, *(name for name in ("openai", "anthropic", "google.genai") if name in sys.modules))

flask.cli.run_simple = report
if mode == "flask":
    flask.cli.FlaskGroup(create_app=make).main(command)
elif mode == "click":
    click.Command("server", callback=lambda: report(make())).main([])
else:
    report(make())
"""


@pytest.mark.parametrize(
    ("mode", "is_child", "loaded"),
    [
        ("serving", False, "openai anthropic"),
        ("testing", False, ""),
        ("flask run --reload", False, ""),
        ("flask run --reload", True, "openai anthropic"),
        ("flask mine", False, ""),
        ("click", False, ""),
    ],
)
def test_a_start_loads_the_sdks(tmp_path: Path, mode: str, is_child: bool, loaded: str) -> None:
    """An app that starts to serve has loaded the SDKs of its providers, and no others; tests and commands load none."""
    command = [sys.executable, "-c", START, str(tmp_path), *mode.split()]
    environ = {**os.environ, **({"WERKZEUG_RUN_MAIN": "true"} if is_child else {})}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert run.stdout.splitlines()[-1].split() == ["set()", *loaded.split()]


TREE = errors.__doc__ or ""


def every_error(root: type[ByokError] = ByokError) -> set[type[ByokError]]:
    """Return the whole tree of public errors."""
    children = {child for child in root.__subclasses__() if child.__module__ == errors.__name__}
    return {root} | {error for child in children for error in every_error(child)}


def test_tree_is_as_drawn() -> None:
    """The drawing names every error with its status and code, and no two that have codes share one, or a title."""
    for name, status, code in re.findall(r"^ +(\w+Error) +(\d{3}) (\w+)$", TREE, re.MULTILINE):
        error = getattr(errors, name)
        assert (error.status, error.code) == (int(status), code)
    drawn = {getattr(errors, name) for name in re.findall(r"^ +(\w+Error)\b", TREE, re.MULTILINE)}
    assert drawn == every_error()
    own = {error for error in drawn if "code" in vars(error)}
    assert len({error.code for error in own}) == len({error.title for error in own}) == len(own)


def test_credential_errors_are_one_family() -> None:
    """One except catches all that stands between a caller and a usable key."""
    family = {error.__name__ for error in every_error(errors.CredentialError)}
    kinds = ("", "Missing", "Rejected", "Unreadable")
    assert family == {f"{kind}CredentialError" for kind in kinds}


def test_what_an_error_says() -> None:
    """An error has its provider and tier, a message or its title, and what was found or when to try again."""
    error = errors.RejectedCredentialError(provider="openai", tier="session")
    assert (error.provider, error.tier) == ("openai", "session")
    assert str(error) == "The provider rejected this API key"
    assert str(errors.ConfigurationError("Say what to do.")) == "Say what to do."
    assert errors.UnknownProviderError().provider is None
    validation = Validation("openai", Verdict.INVALID, "Not known.", datetime.now(UTC))
    refused = KeyRefusedError(validation, provider="openai")
    assert (refused.validation, str(refused)) == (validation, "Not known.")
    assert StoreError(tier="session").retry_after == 1
    assert RateLimitedError(retry_after=7).retry_after == 7
