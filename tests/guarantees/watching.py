"""Watch an app from all sides: what it logs, what its signals say, what an error reporter would see."""

from __future__ import annotations

import io
import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, got_request_exception

from flask_byok import sentry_before_send, signals

#: One key of ordinary letters, and one with every character that some encoding changes.
CANARIES = {
    "plain": "sk-proj-CANARYabcdefghijklmnopqrstuvwxyz0123456789",
    "escaped": "sk-C\"a'n\\a/r+y%41&b<c>=d?e#f{g}$h;i,j|k~l`m(n)o*p!0123456789",
}
BAD = {name: canary + "-bad" for name, canary in CANARIES.items()}
LOGGERS = (
    *("openai", "anthropic", "google_genai", "httpx2", "httpcore2", "httpx", "httpcore", "redis"),
    *("sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "werkzeug", "flask_byok", "limits"),
)


@contextmanager
def everything_logged() -> Iterator[io.StringIO]:
    """Write every record of every library, at every level, with tracebacks, to one text."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(), *map(logging.getLogger, LOGGERS)]
    levels = [logger.level for logger in loggers]
    # Alone: pytest's own handlers keep the records, and with their tracebacks the keys alive.
    others, logging.getLogger().handlers = logging.getLogger().handlers, [handler]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    try:
        yield text
    finally:
        logging.getLogger().handlers = others
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Listener:
    """Keeps what signals say and what an error reporter would see."""

    def __init__(self, app: Flask) -> None:
        self.payloads: list[str] = []
        self.tracebacks: list[str] = []
        self.reports: list[str] = []
        for name in ("set", "cleared", "validated", "promoted", "used", "rejected"):
            getattr(signals, f"key_{name}").connect(self._on_key, app)
        got_request_exception.connect(self._on_exception, app)

    def places(
        self, log: io.StringIO, printed: Any, *answers: bytes | bytearray
    ) -> dict[str, bytes]:
        """Return where a key could be: in answers, the log, what was printed, and what this one has kept."""
        return {
            "the answers": b"\n".join(answers),
            "the log": log.getvalue().encode(),
            "what was printed": (printed.out + printed.err).encode(),
            "the signals": "\n".join(self.payloads).encode(),
            "tracebacks with local variables": "\n".join(self.tracebacks).encode(),
            "error reports": "\n".join(self.reports).encode(),
        }

    def _on_key(self, sender: Flask, **facts: Any) -> None:
        self.payloads.append(json.dumps(facts) + repr(facts))

    def _on_exception(self, sender: Flask, exception: BaseException) -> None:
        # With every frame's local variables, as Sentry does.
        details = traceback.TracebackException.from_exception(exception, capture_locals=True)
        text = "".join(details.format())
        if "as_text" in text:
            # The host's own variables hold the key as text: these go through our before_send.
            event = {"exception": {"values": [{"value": str(exception), "stacktrace": text}]}}
            self.reports.append(json.dumps(sentry_before_send(event, {})))
        else:
            self.tracebacks.append(text)
