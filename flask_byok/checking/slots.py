"""How many checks of people's own servers run at once: such a server can be slow on purpose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from ..errors import RateLimitedError

#: In a process, and for one owner. The rest of the workers stay free for everybody's requests.
ALL_CHECKS = 16
CHECKS_OF_ONE = 2


class Slots:
    """Counts what runs, in all and for each owner.

    :param seconds: how long one may run, for who has to wait.
    """

    def __init__(self, overall: int, each: int, *, seconds: float) -> None:
        self._overall = overall
        self._each = each
        self._seconds = seconds
        self._lock = Lock()
        self._running: Counter[str | None] = Counter()

    @contextmanager
    def take(self, owner: str | None) -> Iterator[None]:
        """Hold a slot for this block; without an owner only the whole is counted.

        :raises RateLimitedError: there is none left.
        """
        with self._lock:
            full = self._running.total() >= self._overall
            if full or (owner is not None and self._running[owner] >= self._each):
                raise RateLimitedError(
                    "Too many checks are running. Try again in a moment.",
                    retry_after=round(self._seconds),
                )
            self._running[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[owner] -= 1
                self._running += Counter()  # drops who has none left
