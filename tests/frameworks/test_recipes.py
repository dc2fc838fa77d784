"""The recipes of the page on AI frameworks: each person's own key, and nothing of the operator's."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flask_byok.testing import FakeProviders, assert_no_key_bleed
from tests.poison import MARK, POISON, everything

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-frameworks" / "bin" / "python"
ALL = ["openai", "anthropic", "google"]
SPEECH = ["elevenlabs", "deepgram"]
#: The providers of each recipe.
RECIPES = {
    "with_langgraph": ALL,
    "with_pydantic_ai": ALL,
    "with_openai_agents": ["openai", "groq"],
    "with_llama_index": [*ALL, "groq"],
    "with_vendors": ["mistral", *SPEECH],
}


#: They would stop OpenAI's Agents SDK: it makes a client for its traces, also where there are none.
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def check(fake: FakeProviders, folder: Path, recipes: dict[str, list[str]], *unset: str) -> None:
    """Run recipes in one process, whose operator has set what could change a call, and look at every request."""
    if not PYTHON.exists():
        pytest.skip("The frameworks are missing: install them with scripts/frameworks.")
    fake.set_cookie = True
    keys = _keys(fake, recipes)
    told = _run({"base_urls": fake.base_urls, "recipes": keys}, folder, *unset)
    for recipe, people in keys.items():
        answers = told["answers"][recipe]
        assert len(answers) == 2 * len(people) * len(recipes[recipe])
        for owner, provider, answer in answers:
            said = fake.reply_text(provider, f"owner:{owner} hello")
            assert answer == ('{"ok": true}' if provider in SPEECH else said), recipe
    assert told["sought"] == []
    for provider in {provider for providers in recipes.values() for provider in providers}:
        people = {
            o: k[provider] for each in keys.values() for o, k in each.items() if provider in k
        }
        calls = fake.calls_for(provider)
        assert len(calls) == 2 * len(people)
        assert_no_key_bleed(calls, people)
    assert not [call for call in fake.calls if MARK in everything(call)]


def _keys(fake: FakeProviders, recipes: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Return the keys of two people for each recipe, by recipe, person and provider."""
    return {
        recipe: {
            owner: {provider: fake.api_key(provider, owner=owner) for provider in providers}
            for owner in (str(2 * number), str(2 * number + 1))
        }
        for number, (recipe, providers) in enumerate(recipes.items())
    }


def _run(given: Mapping[str, Any], folder: Path, *unset: str) -> dict[str, Any]:
    environ = os.environ | POISON | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [PYTHON, "-m", "tests.frameworks.worker", folder],
        input=json.dumps(given),
        env={name: value for name, value in environ.items() if name not in unset},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_the_recipes(fake: FakeProviders, tmp_path: Path) -> None:
    """People who use all of them at once get their own answers, and nobody but their providers is called."""
    check(fake, tmp_path, RECIPES, *CERTIFICATES)


@pytest.mark.stress
def test_litellm(fake: FakeProviders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So do those who use LiteLLM, unless OPENAI_ORGANIZATION is set, which it writes into every client."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    check(fake, tmp_path, {"with_litellm": ["openai", "groq"]}, "OPENAI_ORGANIZATION")
