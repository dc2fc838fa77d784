"""Keep keys out of logs and error reports: redact every secret that is alive in the process.

The redactor knows the exact values, so it finds them in all that libraries write, at any level.
"""

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import copy
from datetime import date, time, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote, quote_plus

from .model.credential import Secret, all_alive

REDACTED = "[redacted]"
#: Shorter values are not looked for: they would redact ordinary words.
SHORTEST_SECRET = 8
#: From this many secrets on, texts of up to LONG_TEXT characters are indexed before the search.
MANY_SECRETS, LONG_TEXT = 10, 10_000
# Values whose text holds no key.
_PLAIN = (int, float, complex, type(None), date, time, timedelta, type)
#: How many levels of lists and mappings are searched one by one.
DEEPEST = 20


def redact(text: str) -> str:
    """Return a text without the secrets that are alive, whether plain, URL-, JSON- or base64-encoded."""
    if len(text) < SHORTEST_SECRET:
        return text
    secrets = [secret for secret in all_alive() if _may_be_in(text, secret.reveal())]
    # Many secrets with all their forms take long to look for: anchors of eight characters rule out most.
    if len(secrets) >= MANY_SECRETS and len(text) <= LONG_TEXT:
        eights = {text[i : i + SHORTEST_SECRET] for i in range(len(text) - SHORTEST_SECRET + 1)}
        secrets = [secret for secret in secrets if not eights.isdisjoint(_written(secret)[0])]
    found = {form for secret in secrets for form in _written(secret)[1] if form in text}
    for form in sorted(found, key=len, reverse=True):  # one may hold another
        text = text.replace(form, REDACTED)
    return text


def install_log_redaction() -> None:
    """Redact every log record of the process as it is made. Calling it again changes nothing."""
    make_record = logging.getLogRecordFactory()
    if getattr(make_record, "func", None) is not _make_redacted:
        logging.setLogRecordFactory(partial(_make_redacted, make_record))


def sentry_before_send(event: Any, hint: Any) -> Any:
    """Redact an event of Sentry: ``sentry_sdk.init(before_send=sentry_before_send)``."""
    return _redact_within(event)


def _make_redacted(make_record: Any, *args: Any, **kwargs: Any) -> logging.LogRecord:
    """Make a log record with the factory that was there before, and redact it."""
    record: logging.LogRecord = make_record(*args, **kwargs)
    if any(True for _ in all_alive()):
        _redact_record(record)
        record.__dict__ = _Redacting(record.__dict__)
    return record


class _Redacting(dict[str, Any]):
    """A record's attributes, redacted as they are set: logging adds those of ``extra`` later."""

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, _redact_within(value))

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(_redact_within(dict(*args, **kwargs)))

    def __reduce__(self) -> Any:
        # Another process that receives the record need not know this class.
        return dict, (dict(self),)


def _redact_record(record: logging.LogRecord) -> None:
    # Formatters may write the arguments by themselves, such as gunicorn's parts of an access line.
    given, record.args = record.args, _redact_within(record.args)
    try:
        message = record.getMessage()
    except Exception:
        # logging prints the parts of such a record to stderr, so they are redacted too.
        message = f"{record.msg!r} {given!r}"
    redacted = redact(message)
    if redacted != message:
        record.msg, record.args = redacted, None
    if record.stack_info:
        record.stack_info = redact(record.stack_info)
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        redacted = redact(text)
        if redacted != text:
            # A formatter prints exc_text; from exc_info it would make the text again.
            record.exc_info, record.exc_text = None, redacted


def _redact_within(value: Any, depth: int = 0) -> Any:
    """Redact every text in a value. Return the value itself if nothing is to redact."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes) or depth > DEEPEST:  # a list may hold itself
        text = value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
        redacted = redact(text)
        if redacted is text:
            return value
        return redacted.encode() if isinstance(value, bytes) else redacted
    inner = partial(_redact_within, depth=depth + 1)
    if isinstance(value, Mapping):
        parts: Any = {inner(name): inner(part) for name, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = (list if isinstance(value, list) else tuple)(map(inner, value))
    else:
        return value if isinstance(value, _PLAIN) else _redact_object(value)
    if parts == value:
        return value
    if isinstance(value, dict) and type(value) is not dict:
        parts, found = copy(value), parts  # gunicorn's has an answer for every name
        parts.clear()
        parts.update(found)
    return parts


def _redact_object(value: Any) -> Any:
    """Return an object's text, redacted, if a formatter would write a key; else the object itself."""
    try:
        for text in (str(value), repr(value)):
            if (redacted := redact(text)) != text:
                return redacted
    except Exception:  # a formatter would meet the same
        return value
    return value


def _may_be_in(text: str, value: str) -> bool:
    """Return True unless a text is too short for a value: no form is shorter than the value, or than its parts."""
    return SHORTEST_SECRET <= len(value) <= len(text) or value.startswith("{")


def _parts(value: str) -> Iterator[str]:
    """Yield what is looked for: the value; of a service account's file also its private key, and each line of that.

    Libraries read the key out of the file, and write it as PEM: with line breaks, escaped ones, or none.
    """
    yield value
    if not value.startswith("{"):
        return
    with suppress(ValueError, RecursionError):
        private_key = json.loads(value).get("private_key")
        if isinstance(private_key, str):
            yield private_key.strip()
            lines = (line.strip() for line in private_key.splitlines())
            yield from (x for x in lines if len(x) >= SHORTEST_SECRET and not x.startswith("-----"))


def _written(secret: Secret) -> tuple[frozenset[str], frozenset[str]]:
    """Return a secret's anchors, one of which is in every text that holds it, and the forms that it is written in."""
    if secret.written_forms is None:
        forms = frozenset(form for part in _parts(secret.reveal()) for form in _forms(part))
        # Out of the middle, as many keys share their beginnings.
        middles = ((form, len(form) // 2 - SHORTEST_SECRET // 2) for form in forms)
        anchors = frozenset(form[i : i + SHORTEST_SECRET] for form, i in middles)
        secret.written_forms = anchors, forms
    return secret.written_forms


def _forms(text: str) -> set[str]:
    forms = {text, quote(text), quote(text, safe=""), quote_plus(text)}
    return forms | {json.dumps(text)[1:-1], repr(text)[1:-1], *_base64_forms(text.encode())}


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
