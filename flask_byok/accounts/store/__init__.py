"""What the wing keeps in the database: keys, their use and the audit log."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from ...model.credential import CredentialRecord

#: The slot of a key that is saved without naming one.
FIRST_SLOT = ""


def serving_order(slot: str) -> tuple[int, str]:
    """Return a sort key for slots: ``""``, ``"2"``, ``"3"``, … ``"10"`` serve in this order."""
    return len(slot), slot


def has_place(slot: str, taken: Collection[str], at_most: int | None) -> bool:
    """Return True if a key may be in a slot: one is there already, or there is room for one more.

    :param taken: the slots that the owner has for the provider.
    :param at_most: how many these may be.
    """
    return slot in taken or at_most is None or len(taken) < at_most


def free_slot(taken: Collection[str]) -> str:
    """Return the first slot that is not taken."""
    names = (FIRST_SLOT, *map(str, range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def main_slot(taken: Collection[str], at_most: int | None) -> str:
    """Return the slot of a key that replaces the owner's one for a provider.

    This is the first slot, or, if that is missing and there is no room for it, the one that serves first.
    """
    if has_place(FIRST_SLOT, taken, at_most):
        return FIRST_SLOT
    return min(taken, key=serving_order)


class NoRecord(NamedTuple):
    """The key that an event is about, if it has no record in the database."""

    provider: str = ""
    slot: str = ""
    id: str = ""


#: The key that an event is about.
Subject = CredentialRecord | NoRecord


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Who did what, and what came of it.

    ``actor`` is ``user:<id>``, ``system`` or ``cli``. ``fingerprint`` tells keys apart, never shows one.
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
