"""What the audit log takes and gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Who did what, and what came of it.

    ``actor`` is ``user:<id>``, ``system`` or ``cli``. ``fingerprint`` tells keys apart, never shows
    one.
    """

    actor: str
    action: str
    outcome: str = "done"
    request_id: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain of the audit log ended: its last row's number and hash."""

    owner: str
    number: int
    hash: str
