"""The SDKs' lowest and newest versions against the same servers: the same requests, and the same outcomes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from flask_byok.providers.installed import NEEDED
from flask_byok.testing import FakeProviders

from .sdk_calls import WAYS
from .servers import ROOT, Aimock, LiteLLM

pytestmark = pytest.mark.stress

SDKS = ("openai", "anthropic", "google")
VERSIONS = ("lowest", "newest")
BEHAVIOURS = ("good", "bad", "broke", "restricted", "rate_limited", "overloaded")
MODELS = LiteLLM.MODELS
#: By these an SDK names itself, its release and the try; the request's id is aimock's own.
_OF_THE_SDK = ("user-agent", "x-stainless-", "x-goog-api-client", "x-request-id")

Target = Mapping[str, str]


def python(version: str) -> Path:
    """Return the interpreter of an environment that `scripts/lowest sdks` makes."""
    path = ROOT / f".venv-sdks-{version}/bin/python"
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT)} not found: run scripts/lowest sdks.")
    return path


def run(version: str, targets: Iterable[Target]) -> list[Any]:
    """Make all calls with these versions; return the outcomes."""
    done = subprocess.run(
        [python(version), "-m", "tests.peers.sdk_calls"],
        input=json.dumps([*targets]),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def lasting(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that are no names of a release."""
    return {n: v for n, v in headers.items() if not n.lower().startswith(_OF_THE_SDK)}


def test_they_are_the_lowest_and_the_newest() -> None:
    """One environment has the releases that the extras name, the other later ones of each."""
    found = {}
    for version in VERSIONS:
        [site] = python(version).parents[1].glob("lib/python*/site-packages")
        found[version] = {d.name: d.version for d in distributions(path=[str(site)])}
    for sdk in SDKS:
        [(package, lowest)] = NEEDED[sdk].items()
        at = found["lowest"][package]
        assert at == lowest or at.removeprefix(f"{lowest}.").strip("0.") == ""
        assert found["newest"][package] != at


def test_fakes(fake: FakeProviders) -> None:
    """At our fakes: answers, tools, streams, lists and refusals, in sync and async code."""
    targets = [
        {"provider": sdk, "base_url": fake.base_url(sdk), "model": MODELS[sdk], "api_key": key}
        for sdk in SDKS
        for key in (fake.api_key(sdk, behaviour) for behaviour in BEHAVIOURS)
    ]
    seen: list[Any] = []
    for version in VERSIONS:
        fake.clear_calls()
        outcomes = run(version, targets)
        requests = [
            (
                c.provider,
                c.method,
                c.path,
                c.api_key,
                c.query,
                c.cookies,
                c.body,
                lasting(c.headers),
            )
            for c in fake.calls
        ]
        seen.append((outcomes, requests))
    assert_same(*seen)
    used = [told for _, _, told in outcomes if told["counted"][:1] == ["used"]]
    assert len(used) >= len(SDKS) * len(WAYS), "good keys were answered in every way"


def test_aimock(aimock: Aimock) -> None:
    """At aimock, which nobody here wrote."""
    targets = [
        {"provider": sdk, "base_url": aimock.base_urls[sdk], "model": MODELS[sdk], "api_key": key}
        for sdk in SDKS
        for key in (aimock.API_KEYS[sdk], aimock.API_KEYS[sdk][:-4] + "0000")
    ]
    seen: list[Any] = []
    for version in VERSIONS:
        aimock.reset()
        aimock.tell("hello", {"content": "Hi — “there”, it’s aimock."})
        outcomes = run(version, targets)
        requests = [
            (c["method"], c["path"], c["body"], lasting(c["headers"])) for c in aimock.calls()
        ]
        seen.append((outcomes, requests))
    assert_same(*seen)


def test_litellm(litellm: LiteLLM) -> None:
    """At LiteLLM's proxy: what it asks its own providers is the same too."""
    targets = [
        {"provider": sdk, "base_url": litellm.base_urls[sdk], "model": MODELS[sdk], "api_key": key}
        for sdk in SDKS
        for key in (litellm.MASTER_KEY, "sk-litellm-wrong-0000000000000000")
    ]
    seen: list[Any] = []
    for version in VERSIONS:
        litellm.upstream.clear_calls()
        outcomes = run(version, targets)
        requests = [(c.provider, c.method, c.path, c.query, c.body) for c in litellm.upstream.calls]
        seen.append((outcomes, requests))
    assert_same(*seen)


def assert_same(lowest: tuple[list[Any], list[Any]], newest: tuple[list[Any], list[Any]]) -> None:
    """Compare outcomes and requests one by one, so that a difference is told by itself."""
    for before, after in zip(lowest, newest, strict=True):
        assert len(before) == len(after) > 0
        for one, other in zip(before, after, strict=True):
            assert one == other
