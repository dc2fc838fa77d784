"""Measure what happens to keys and stores, for Prometheus or OpenTelemetry, if the operator switches it on.

The other rooms call ``record`` with the name of an instrument below. Labels are ids of providers in the catalog, tiers,
verdicts, error codes, names of stores, and directions of tokens: words of ours, few in number, and never an owner, a
key or a hint.
All apps of a process are measured together, as both libraries do by default.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from .errors import ConfigurationError

Library = Literal["prometheus", "opentelemetry"]
#: Takes an instrument's name, a value and the values of its labels.
Sink = Callable[[str, float, tuple[str, ...]], None]


class Instrument(NamedTuple):
    """One measure. A ``level`` goes up and down by its values; a ``state`` is its last value."""

    kind: Literal["count", "seconds", "level", "state"]
    labels: tuple[str, ...]
    about: str


INSTRUMENTS = {
    "resolves": Instrument(
        "count", ("provider", "source", "outcome"), "Keys looked up for use, by what came of it."
    ),
    "checks": Instrument("count", ("provider", "verdict"), "Keys checked with their provider."),
    "refusals": Instrument(
        "count", ("provider", "source"), "Keys that their provider rejected in real calls."
    ),
    "tokens": Instrument(
        "count", ("provider", "direction"), "Tokens of conversations, as providers tell them."
    ),
    "streams_open": Instrument("level", ("provider",), "Answers being streamed."),
    "store_call_seconds": Instrument(
        "seconds", ("store", "outcome"), "Time of calls of a store: ok, fault, or skipped."
    ),
    "breaker_open": Instrument(
        "state", ("store",), "1 while a store that does not answer is not asked."
    ),
}
#: Upper bounds in seconds: our own connections give a store 0.5 (Redis) or 2 seconds by default.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

#: Where measures go; empty unless an app of this process has ``BYOK_METRICS``.
sinks: list[Sink] = []


def record(name: str, value: float, *labels: str) -> None:
    """Give a value to each sink."""
    # A named endpoint is "custom/" and what a person typed: only the catalog's id is a label.
    for sink in sinks:
        sink(name, value, tuple(label.partition("/")[0] for label in labels))


def switch_on(library: Library) -> None:
    """Measure from now on with a library.

    :raises ConfigurationError: it is not installed.
    """
    try:
        sink = _open_sink(library)
    except ImportError:
        extra = "otel" if library == "opentelemetry" else library
        raise ConfigurationError(
            f"BYOK_METRICS is {library!r}, which is not installed: pip install 'flask-byok[{extra}]'."
        ) from None
    if sink not in sinks:
        sinks.append(sink)


@cache
def _open_sink(library: Library) -> Sink:
    """Return the sink of a library, always the same: instruments are registered once."""
    return _prometheus() if library == "prometheus" else _opentelemetry()


def _prometheus() -> Sink:
    from prometheus_client import Counter, Gauge, Histogram

    timer = partial(Histogram, buckets=BUCKETS)
    # Of several processes: the sum of those that live.
    gauge = partial(Gauge, multiprocess_mode="livesum")
    kinds: dict[str, Any] = {"count": Counter, "seconds": timer, "level": gauge, "state": gauge}
    verbs = {"count": "inc", "seconds": "observe", "level": "inc", "state": "set"}
    made: dict[str, Any] = {
        name: kinds[one.kind](f"flask_byok_{name}", one.about, one.labels)
        for name, one in INSTRUMENTS.items()
    }

    def sink(name: str, value: float, labels: tuple[str, ...]) -> None:
        getattr(made[name].labels(*labels), verbs[INSTRUMENTS[name].kind])(value)

    return sink


def _opentelemetry() -> Sink:
    from opentelemetry.metrics import get_meter

    meter = get_meter("flask_byok")
    timer = partial(meter.create_histogram, unit="s", explicit_bucket_boundaries_advisory=BUCKETS)
    counter, level, gauge = meter.create_counter, meter.create_up_down_counter, meter.create_gauge
    kinds: dict[str, Any] = {"count": counter, "seconds": timer, "level": level, "state": gauge}
    verbs = {"count": "add", "seconds": "record", "level": "add", "state": "set"}
    made = {
        name: kinds[one.kind](f"flask_byok.{name}", description=one.about)
        for name, one in INSTRUMENTS.items()
    }

    def sink(name: str, value: float, labels: tuple[str, ...]) -> None:
        about = INSTRUMENTS[name]
        getattr(made[name], verbs[about.kind])(value, dict(zip(about.labels, labels, strict=True)))

    return sink
