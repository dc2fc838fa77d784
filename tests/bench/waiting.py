"""How long a call waits for a store that does not answer, and what a log record costs that is searched for keys."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from flask_byok.accounts.wing import open_accounts
from flask_byok.errors import StoreError
from flask_byok.model.credential import Secret
from flask_byok.redaction import install_log_redaction
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.engine import LIMIT
from flask_byok.storage.redis import TIMEOUT, RedisDocuments
from tests.app import ENCRYPTION_KEY
from tests.services import PostgresServer, RedisServer, Server

from .measure import interleaved, show

#: Calls while a server is frozen; the breaker lets one through each second.
CALLS = 200


def bench_waiting() -> None:
    """Freeze a Redis and a PostgreSQL, and ask them."""
    with RedisServer() as redis:
        sessions = RedisDocuments(redis.url)
        show_waiting("Redis", redis, TIMEOUT, lambda: sessions.find("sid-1"))
    with PostgresServer() as postgres:
        accounts = open_accounts(postgres.create_database(), Keyring(ENCRYPTION_KEY))
        call = partial(accounts.find, ["user:ann"], ["openai"])
        show_waiting("PostgreSQL", postgres, LIMIT, call)


def show_waiting(name: str, server: Server, limit: float, call: Callable[[], object]) -> None:
    """Ask a frozen server again and again, and say how long that took at most and as a rule.

    :param limit: seconds that a call may wait for it.
    """
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
    print(f"\n{CALLS} calls of a frozen {name}  (goal: < {limit + 0.1:.1f} s)")
    print(f"  the longest {times[-1]:.3f} s, half of them under {times[CALLS // 2] * 1e6:.0f} µs")


def bench_log_records() -> None:
    """Make a log record without redaction, and with it."""
    arguments = ("x", 20, "f", 1, "GET /chat/openai HTTP/1.1 200 " * 8, (), None)
    bare, one = "a log record without redaction", "a log record, no key alive"
    times = interleaved({bare: lambda: logging.LogRecord(*arguments)})
    install_log_redaction()
    times |= interleaved({one: lambda: logging.getLogRecordFactory()(*arguments)})
    alive = [Secret(f"sk-proj-{number:06}-0123456789abcdef") for number in range(200)]
    many = f"a log record, {len(alive)} keys alive"
    times |= interleaved({many: lambda: logging.getLogRecordFactory()(*arguments)})
    show("Log records", times, against=bare)
