"""Which of an owner's slots for a provider serves first, and which a new key goes to."""

from __future__ import annotations

from collections.abc import Collection

#: The slot of a key that nobody named one for.
FIRST = ""


def serving_order(slot: str) -> tuple[int, str]:
    """Return what to sort slots by: ``""``, ``"2"``, ``"3"``, … ``"10"`` serve in this order."""
    return len(slot), slot


def has_place(slot: str, taken: Collection[str], at_most: int | None) -> bool:
    """Say whether a key may be in a slot: one is there already, or there is room for one more.

    :param taken: the slots that the owner has for the provider.
    :param at_most: how many these may be.
    """
    return slot in taken or at_most is None or len(taken) < at_most


def free_slot(taken: Collection[str]) -> str:
    """Return the first slot that is not taken."""
    names = (FIRST, *map(str, range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def main_slot(taken: Collection[str], at_most: int | None) -> str:
    """Return where a key goes that takes the place of the owner's one for a provider.

    That is the first slot; where it is not there and there is no room for it, the one that serves first.
    """
    return FIRST if has_place(FIRST, taken, at_most) else min(taken, key=serving_order)
