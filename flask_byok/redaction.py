"""Keep keys out of logs and error reports: every secret alive in the process is blotted out.

The redactor knows the exact values, so it finds them in whatever a library writes, at any level.
"""

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from .credentials import live_secrets

REDACTED = "[redacted]"
#: A shorter value is not looked for: it would blot out ordinary words.
SHORTEST_SECRET = 8


def redact(text: str) -> str:
    """Return a text without any secret that is alive, be it plain, URL-, JSON- or base64-encoded."""
    for secret in set(live_secrets()):
        if len(secret) >= SHORTEST_SECRET:
            for form in _forms(secret):
                text = text.replace(form, REDACTED)
    return text


def install_log_redaction() -> None:
    """Redact every log record of the process as it is made. Calling it again changes nothing."""
    make_record = logging.getLogRecordFactory()
    if not isinstance(make_record, _RedactingFactory):
        logging.setLogRecordFactory(_RedactingFactory(make_record))


def sentry_before_send(event: Any, hint: Any) -> Any:
    """Redact an event of Sentry: ``sentry_sdk.init(before_send=sentry_before_send)``."""
    return _redact_within(event)


class _RedactingFactory:
    """Makes log records as the factory before it does, and redacts them."""

    def __init__(self, make_record: Any) -> None:
        self._make_record = make_record

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make_record(*args, **kwargs)
        if any(True for _ in live_secrets()):
            _redact_record(record)
        return record


def _redact_record(record: logging.LogRecord) -> None:
    message = _message(record)
    redacted = redact(message)
    if redacted != message:
        record.msg, record.args = redacted, None
    if record.stack_info:
        record.stack_info = redact(record.stack_info)
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        redacted = redact(text)
        if redacted != text:
            # A formatter prints exc_text, and would make the text anew from exc_info.
            record.exc_info, record.exc_text = None, redacted


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        # logging prints such a record's parts to stderr, so they are looked through all the same.
        return f"{record.msg!r} {record.args!r}"


def _redact_within(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {_redact_within(name): _redact_within(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_within(inner) for inner in value]
    if isinstance(value, bytes):
        return redact(value.decode(errors="replace")).encode()
    return value


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it may be written; longer forms first, as one may hold another."""
    forms = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    forms |= {json.dumps(secret)[1:-1], repr(secret)[1:-1], *_base64_forms(secret.encode())}
    yield from sorted(forms, key=len, reverse=True)


def _base64_forms(secret: bytes) -> Iterator[str]:
    """Yield the part of its base64 that does not depend on what stands before and after it.

    Three bytes are four characters, so a secret can begin at any of three places in a group.
    """
    for before in range(3):
        text = base64.b64encode(b"\0" * before + secret).decode()
        first = (before * 8 + 5) // 6
        last = (before + len(secret)) * 8 // 6
        yield text[first:last]
        yield text[first:last].replace("+", "-").replace("/", "_")
