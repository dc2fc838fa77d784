"""Run every measurement: `python -m tests.bench`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import redis
from cryptography.fernet import Fernet
from flask import Flask
from flask.testing import FlaskClient
from openai import OpenAI

from flask_byok import BYOK, get_provider_with_api_key
from flask_byok.keys.sessions import Sessions
from flask_byok.storage.redis import RedisDocuments
from flask_byok.testing import FakeProviders
from tests.services import RedisServer
from tests.storage.contract import DAY, VISITOR, begin, make_record

from .accounts import bench_accounts
from .host import NaiveHost, byok_host, plain_host, stream
from .keys import bench_keys
from .measure import interleaved, show
from .streams import bench_streams
from .waiting import bench_log_records, bench_waiting


def main() -> None:
    """Measure against a real Redis, SQLite, a real PostgreSQL and a local provider server."""
    warnings.simplefilter("ignore", DeprecationWarning)
    with RedisServer() as server, FakeProviders() as fake:
        app, byok = byok_host(fake, server.url)
        visitor = app.test_client()
        visitor.get("/api/providers/keys")
        api_key = fake.api_key("openai", "good")
        body = {"provider": "openai", "api_key": api_key}
        assert visitor.post("/api/providers/keys/set", json=body).status_code == 200
        raw = redis.Redis.from_url(server.url)
        bench_resolve(app, byok, visitor, raw, api_key)
        bench_factory(app, visitor, api_key)
        bench_round_trips(visitor, raw)
        bench_many_keys(server.url)
        bench_untouched(app)
        bench_stream(visitor, fake, raw, api_key)
        bench_accounts(fake)
    bench_keys()
    bench_streams()
    bench_waiting()
    bench_log_records()


def bench_resolve(
    app: Flask, byok: BYOK, visitor: FlaskClient, raw: redis.Redis, api_key: str
) -> None:
    """Resolve a session key, against the bare read and the bare decryption that it cannot do without."""
    fernet = Fernet(Fernet.generate_key())
    raw.hset("bench", "openai", fernet.encrypt(api_key.encode().ljust(512)))

    def bare() -> str:
        return fernet.decrypt(raw.hget("bench", "openai")).decode()  # type: ignore[arg-type]

    with within_request(app, visitor):
        times = interleaved(
            {"one HGET + one decryption": bare, "resolve": lambda: byok.resolve("openai")}
        )
    show("Resolve", times, against="one HGET + one decryption", goal="≤ × 1.5")


def bench_factory(app: Flask, visitor: FlaskClient, api_key: str) -> None:
    """Make a provider object, and its SDK client, against a fresh SDK client."""
    with within_request(app, visitor):
        work: dict[str, Callable[[], object]] = {
            "OpenAI(api_key=…)": lambda: OpenAI(api_key=api_key),
            "get_provider_with_api_key(…, api_key=…)": lambda: get_provider_with_api_key(
                "openai", api_key=api_key
            ),
            "the same and its .client": lambda: (
                get_provider_with_api_key("openai", api_key=api_key).client
            ),
            "get_provider_with_api_key(…), resolved": lambda: get_provider_with_api_key("openai"),
        }
        times = interleaved(work, rounds=15, repeat=10)
    show("Factory", times, against="OpenAI(api_key=…)", goal="≤ × 0.01")


def bench_round_trips(visitor: FlaskClient, raw: redis.Redis) -> None:
    """Count what one status call of all providers asks Redis."""
    before = commands(raw)
    visitor.get("/api/providers/keys")
    print(f"\nStatus of all providers: {commands(raw) - before} store round trip  (goal: 1)")


def bench_many_keys(redis_url: str) -> None:
    """Read one key of a session that has 25, against one that has 3."""
    sessions = Sessions(RedisDocuments(redis_url), ttl=DAY, max_age=30 * DAY)
    work: dict[str, Callable[[], object]] = {}
    for number in (3, 25):
        session = begin(sessions, f"{number} keys")
        for provider in range(number):
            sessions.write(session, VISITOR, make_record(f"p{provider}", "c" * 800))
        work[f"read of {number}"] = partial(sessions.read, session, VISITOR, ["p0"])
    show("One key of several in a session", interleaved(work), against="read of 3", goal="≤ × 1.7")


def bench_untouched(app: Flask) -> None:
    """Serve a route that does not use keys, with flask-byok and without."""
    without, with_byok = plain_host().test_client(), app.test_client()
    times = interleaved(
        {
            "host alone": lambda: without.get("/plain"),
            "host with flask-byok": lambda: with_byok.get("/plain"),
        },
        rounds=60,
        repeat=50,
    )
    show("A route that does not use keys", times, against="host alone", goal="< 20 µs more")
    print(f"  difference: {times['host with flask-byok'] - times['host alone']:.1f} µs a request")


def bench_stream(visitor: FlaskClient, fake: FakeProviders, raw: redis.Redis, api_key: str) -> None:
    """Stream an answer: until the first piece, and a piece, against the SDK called directly.

    What a piece takes is told from a long answer and a short one, so that what begins and ends a stream is left out.
    """
    naive = NaiveHost(fake, raw).app.test_client()
    naive.get(f"/set/{api_key}")
    sdk = OpenAI(api_key=api_key, base_url=fake.base_url("openai"))
    bare = "the SDK alone, one client kept"
    ways: dict[str, Callable[[str], Iterable[object]]] = {
        bare: lambda text: stream(sdk, text),
        "stream_response": lambda text: chat(visitor, text),
        "written by hand": lambda text: chat(naive, text),
    }
    begin = {way: partial(first_piece, call) for way, call in ways.items()}
    first = interleaved(begin, rounds=40, repeat=3)
    show("First piece of a stream", first, against=bare, goal="< 1 ms later")
    short, long = "word", " ".join(["word"] * 400)
    whole = {
        f"{way} {len(text)}": partial(count, call, text)
        for way, call in ways.items()
        for text in (short, long)
    }
    times = interleaved(whole, rounds=60, repeat=2)
    more = count(ways[bare], long) - count(ways[bare], short)
    each = {w: (times[f"{w} {len(long)}"] - times[f"{w} {len(short)}"]) / more for w in ways}
    show("Each piece of a stream", each, against=bare, goal="< 20 µs more")
    print(f"  difference: {each['stream_response'] - each[bare]:.1f} µs a piece")


def chat(client: FlaskClient, text: str) -> Iterable[object]:
    """Ask a host, and return its answer piece by piece."""
    return client.get("/chat", query_string={"message": text}).iter_encoded()


def first_piece(call: Callable[[str], Iterable[object]]) -> object:
    """Take the first piece and let the rest go."""
    return next(iter(call("Count to ten.")))


def count(call: Callable[[str], Iterable[object]], text: str) -> int:
    """Count the pieces of an answer."""
    return sum(1 for _ in call(text))


@contextmanager
def within_request(app: Flask, visitor: FlaskClient) -> Iterator[None]:
    """Be inside a request of a visitor's session, as a view is."""
    cookie = visitor.get_cookie("session")
    assert cookie is not None
    with app.test_request_context(headers={"Cookie": f"session={cookie.value}"}):
        app.preprocess_request()
        yield


def commands(raw: redis.Redis) -> int:
    """Return how many commands Redis has processed, this one left out."""
    stats = raw.info("commandstats")
    return sum(s["calls"] for name, s in stats.items() if "info" not in name)


if __name__ == "__main__":
    main()
