"""How long a call waits for a store that does not answer, and what watching for that costs while all is well."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from flask_byok.accounts import open_accounts
from flask_byok.errors import StoreError
from flask_byok.keys.traffic import Traffic
from flask_byok.model.credential import Secret
from flask_byok.redaction import install_log_redaction
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.breaker import Breaker
from flask_byok.storage.engine import Watchdog
from flask_byok.storage.redis import RedisDocuments
from tests.services import PostgresServer, RedisServer, Server

from .measure import interleaved, show

#: Calls while a server is frozen; the breaker lets one through each second.
CALLS = 200


def bench_waiting() -> None:
    """Freeze a Redis and a PostgreSQL, and ask them; then measure the small parts."""
    with RedisServer() as redis:
        sessions = RedisDocuments(redis.url)
        show_waiting("Redis", redis, lambda: sessions.find("sid-1"))
    with PostgresServer() as postgres:
        accounts = open_accounts(postgres.create_database(), Keyring("00" * 32))
        show_waiting("PostgreSQL", postgres, lambda: accounts.find(["user:ann"], ["openai"]))
    show_small_parts()


def show_waiting(name: str, server: Server, call: Callable[[], object]) -> None:
    """Ask a frozen server again and again, and say how long that took at most and as a rule."""
    call()
    times = []
    with server.frozen():
        for _ in range(CALLS):
            started = time.perf_counter()
            with suppress(StoreError):
                call()
            times.append(time.perf_counter() - started)
            time.sleep(0.02)
    times.sort()
    print(f"\n{CALLS} calls of a frozen {name}  (goal: < 0.5 s)")
    print(f"  the longest {times[-1]:.3f} s, half of them under {times[CALLS // 2] * 1e6:.0f} µs")


def show_small_parts() -> None:
    """Measure what each call or log record pays for these."""
    install_log_redaction()
    breaker, dog = Breaker(), Watchdog()
    uses = Traffic(lambda use: None, interval=3600)
    ours, theirs = socket.socketpair()
    alive: list[Secret] = []
    line = "GET /chat/openai HTTP/1.1 200 " * 8

    def watched() -> None:
        dog.watch(ours, time.monotonic() + 9)
        dog.release(ours)

    def asked() -> None:
        breaker.allow()
        breaker.success()

    def logged() -> None:
        logging.getLogRecordFactory()("x", 20, "f", 1, line, (), None)

    def logged_with_keys() -> None:
        alive[:] = alive or [
            Secret(f"sk-proj-{number:06}-0123456789abcdef") for number in range(200)
        ]
        logged()

    parts: dict[str, Callable[[], object]] = {
        "a log record without redaction": lambda: logging.LogRecord(
            "x", 20, "f", 1, line, (), None
        ),
        "a log record, no key alive": logged,
        "the breaker, once a call": asked,
        "the watchdog, once a call": watched,
        "a use, noted": lambda: uses.note("user:ann", "openai", "id", "used"),
    }
    times = interleaved(parts, repeat=1000)
    times |= interleaved({"a log record, 200 keys alive": logged_with_keys}, repeat=100)
    show("Small parts", times, against="a log record without redaction")
    ours.close()
    theirs.close()
