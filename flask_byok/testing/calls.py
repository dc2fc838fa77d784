"""What the fake providers saw: one record a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True, repr=False)
class RecordedCall:
    """One request as it arrived. Its repr shows neither key nor content."""

    provider: str
    method: str
    path: str
    #: From the provider's own header; None when that header is absent.
    api_key: str | None
    cookies: Mapping[str, str]
    #: Names in lower case.
    headers: Mapping[str, str]
    query: Mapping[str, str]
    #: The parsed JSON, or None.
    body: object
    #: The status of the answer.
    status: int

    def __repr__(self) -> str:
        return f"<RecordedCall {self.provider} {self.method} {self.path} -> {self.status}>"

    @property
    def content(self) -> str:
        """The body as JSON text, for a search."""
        return json.dumps(self.body, ensure_ascii=False)


class CallLog:
    """The records in order of arrival. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls: list[RecordedCall] = []

    def add(self, call: RecordedCall) -> None:
        """Append a record."""
        with self._lock:
            self._calls.append(call)

    def all(self) -> list[RecordedCall]:
        """Copy the records."""
        with self._lock:
            return list(self._calls)

    def clear(self) -> None:
        """Forget the records."""
        with self._lock:
            self._calls.clear()
