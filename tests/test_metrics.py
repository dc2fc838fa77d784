"""``BYOK_METRICS``: what Prometheus and OpenTelemetry are told after real calls, and what they are never told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics as opentelemetry_metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY
from werkzeug.test import TestResponse

from flask_byok import ConfigurationError, metrics
from flask_byok.catalog import PROVIDERS
from flask_byok.errors import ALL_ERRORS
from flask_byok.model.credential import Verdict
from flask_byok.model.owner import Tier
from flask_byok.testing import FakeProviders
from tests.app import HostApp, make_app
from tests.keeper import SHARED, close, keeper
from tests.services import RedisServer

#: Values by the measure's name and its labels in the order of ``INSTRUMENTS``.
Values = dict[tuple[str, ...], float]

_reader = InMemoryMetricReader()


@pytest.fixture(scope="module", autouse=True)
def sdk() -> Iterator[None]:
    """Set OpenTelemetry up as an app's author would, once in the process."""
    provider = MeterProvider(metric_readers=[_reader], shutdown_on_exit=False)
    opentelemetry_metrics.set_meter_provider(provider)
    yield
    provider.shutdown()


@pytest.fixture(autouse=True)
def off_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nothing in other tests."""
    monkeypatch.setattr(metrics, "sinks", [])


def from_prometheus() -> Values:
    """Read the values of the process's registry; of times only how many there are."""
    found: Values = {}
    for family in REGISTRY.collect():
        name = family.name.removeprefix("flask_byok_")
        for sample in family.samples:
            if family.name != name and not sample.name.endswith(("_bucket", "_sum", "_created")):
                labels = (sample.labels[label] for label in metrics.INSTRUMENTS[name].labels)
                found[name, *labels] = sample.value
    return found


def from_opentelemetry() -> Values:
    """Read the values from OpenTelemetry's SDK; of times only how many there are."""
    data: Any = _reader.get_metrics_data()
    found: Values = {}
    for one in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
        name = one.name.removeprefix("flask_byok.")
        for point in one.data.data_points:
            labels = (point.attributes[label] for label in metrics.INSTRUMENTS[name].labels)
            value = point.count if hasattr(point, "count") else point.value
            found[name, *labels] = value
    return found


@pytest.fixture(params=["prometheus", "opentelemetry"])
def library(request: pytest.FixtureRequest) -> str:
    """Name each library in turn."""
    return str(request.param)


@pytest.fixture
def measured(library: str) -> Callable[[], Values]:
    """Return a function that says what was measured since the last time."""
    read = from_prometheus if library == "prometheus" else from_opentelemetry
    last = read()

    def since() -> Values:
        nonlocal last
        before, last = last, read()
        return {
            key: value
            if metrics.INSTRUMENTS[key[0]].kind == "state"
            else value - before.get(key, 0)
            for key, value in last.items()
            if value != before.get(key, 0)
        }

    return since


@pytest.fixture
def host(tmp_path: Path, fake: FakeProviders, library: str) -> Iterator[HostApp]:
    """Make a host that measures with the library."""
    app = make_app(tmp_path, fake, BYOK_METRICS=library)
    yield app
    close(app)


def test_keys(host: HostApp, fake: FakeProviders, measured: Callable[[], Values]) -> None:
    """Look-ups, checks, refusals and tokens are counted by provider and kind, streams while they are open."""
    client = keeper(host, "ann")
    assert client.get("/used/openai").status_code == 409
    api_key = fake.api_key("openai")
    client.save(api_key)
    client.save(fake.api_key("openai", "bad"))
    assert client.get("/used/openai").status_code == 200
    found = measured()
    assert found["resolves", "openai", "none", "key_missing"] == 1
    assert found["resolves", "openai", "session", "served"] == 1
    assert found["checks", "openai", "valid"] == 1
    assert found["checks", "openai", "invalid"] == 1
    assert found["store_call_seconds", "sessions", "ok"] > 0
    assert found["store_call_seconds", "accounts", "ok"] > 0

    stream: TestResponse = client.get("/chat/openai", buffered=False)
    assert any(b"delta" in piece for piece in stream.response), "the provider's answer has begun"
    assert measured()["streams_open", "openai"] == 1
    stream.close()
    assert measured() == {("streams_open", "openai"): -1.0}

    fake.stream_next("openai", "Once", usage=(9, 2))
    assert "event: done" in client.get("/chat/openai").text
    tokens = {key[2]: value for key, value in measured().items() if key[0] == "tokens"}
    assert tokens == {"input": 9, "output": 2}

    fake.revoke("openai", api_key)
    assert "key_rejected" in client.get("/chat/openai").text
    assert client.get("/used/openai").status_code == 409
    found = measured()
    assert found["refusals", "openai", "session"] == 1
    assert found["resolves", "openai", "session", "key_rejected"] == 1
    assert ("streams_open", "openai") not in found


def test_several_at_once(
    host: HostApp, fake: FakeProviders, measured: Callable[[], Values]
) -> None:
    """Keys that are looked up together count one by one, and those without a key do not count."""

    @host.get("/several")
    def several() -> list[str]:
        return sorted(host.byok.get_api_keys(["openai", "groq", "xai"]))

    client = keeper(host, None)
    client.save(fake.api_key("openai"))
    client.save(fake.api_key("groq"), "groq")
    measured()
    assert client.get("/several").get_json() == ["groq", "openai"]
    found = measured()
    resolves = {key: value for key, value in found.items() if key[0] == "resolves"}
    assert resolves == {
        ("resolves", "openai", "session", "served"): 1,
        ("resolves", "groq", "session", "served"): 1,
    }


def test_a_store_that_is_away(
    tmp_path: Path, fake: FakeProviders, library: str, measured: Callable[[], Values]
) -> None:
    """Faults of a store, calls that its breaker keeps away from it, and the breaker itself are measured."""
    with RedisServer() as server:
        app = make_app(tmp_path, fake, byok_redis_url=server.url, BYOK_METRICS=library)
        client = keeper(app, None)
        client.save(fake.api_key("openai"))
        server.kill()
        measured()
        assert {client.get("/used/openai").status_code for _ in range(3)} == {503}
        found = measured()
        assert found["store_call_seconds", "sessions", "fault"] == 2
        assert found["store_call_seconds", "sessions", "skipped"] == 1
        assert found["breaker_open", "sessions"] == 1
        assert found["resolves", "openai", "session", "store_unavailable"] == 3
        close(app)


def test_labels_are_words_of_ours(
    host: HostApp, fake: FakeProviders, measured: Callable[[], Values]
) -> None:
    """No label has an owner, a key, a hint or a word that came with a request; each has few values."""
    own, shared = fake.api_key("openai", owner="ann"), fake.api_key("groq")
    host.byok.admin_loader(lambda: True)
    client = keeper(host, "ann@example.org")
    client.save(own, label="a label", persist=True)
    client.keep(shared, "groq", SHARED, owner="team:payroll")
    for provider in ("openai", "groq", "made-up-by-a-stranger", "custom/ann's-server"):
        client.get(f"/used/{provider}")
        assert client.get(f"/chat/{provider}?model=a-model").text
        client.call("validate", provider=provider)
    fake.revoke("openai", own)
    client.get("/chat/openai")
    labels = {label for key in measured() for label in key[1:]}
    known = {*(spec.id for spec in PROVIDERS), *Tier, *Verdict, *(kind.code for kind in ALL_ERRORS)}
    known |= {"none", "served", "ok", "fault", "skipped", "sessions", "accounts", "counts"}
    known |= {"input", "output"}
    assert {"openai", "user", "served", "valid", "input", "output"} <= labels <= known
    assert metrics.sinks
    metrics.record("resolves", 1, "custom/ann's-server", "user", "served")
    assert measured()["resolves", "custom", "user", "served"] == 1


def test_off(
    app: HostApp, fake: FakeProviders, library: str, measured: Callable[[], Values]
) -> None:
    """Without the setting nothing is measured, though the library is installed."""
    client = keeper(app, "ann")
    client.save(fake.api_key("openai"))
    assert client.get("/chat/openai").status_code == 200
    assert measured() == {}


def test_the_library_is_missing(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the library the app does not start, and the message says what to install."""
    # Not from the cache of what other apps of this process have opened.
    monkeypatch.setattr(metrics, "_open_sink", metrics._open_sink.__wrapped__)
    for name in ("prometheus_client", "opentelemetry.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-byok\[(prometheus|otel)\]'"):
        make_app(tmp_path, BYOK_METRICS=library)


_WORKER = """
import sys
from pathlib import Path
from flask_byok.testing import FakeProviders
from tests.app import browser, make_app

with FakeProviders() as fake:
    app = make_app(Path(sys.argv[1]), fake, BYOK_METRICS="prometheus")
    client = browser(app)
    client.save(fake.api_key("openai"))
    assert client.get("/used/openai").status_code == 200
"""
_SCRAPE = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_several_processes(tmp_path: Path) -> None:
    """With PROMETHEUS_MULTIPROC_DIR the counts of all workers are summed up."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}

    def python(code: str, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *args]
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)

    workers = [python(_WORKER, str(tmp_path / name)) for name in "ab"]
    assert [worker.communicate() and worker.returncode for worker in workers] == [0, 0]
    scraped, _ = python(_SCRAPE).communicate()
    line = 'flask_byok_resolves_total{outcome="served",provider="openai",source="session"} 2.0'
    assert line in scraped.splitlines()
