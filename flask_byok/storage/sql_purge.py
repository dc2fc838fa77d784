"""Delete what has expired in a SQL database, which does not do it by itself."""

from __future__ import annotations

from collections.abc import Callable

from . import sql_tables as tables
from .engine import Transactions

#: Sessions that one transaction deletes.
BATCH = 200
#: Seconds between two batches of a process, and while there is more than one batch to delete.
_PAUSE, _SHORT_PAUSE = 60, 1
#: Seconds since a session expired after which no request of its own can be under way.
_AFTER = 3600


class Purge:
    """Deletes expired sessions in small batches, each not long after the one before.

    :param clock: seconds since 1970.
    """

    def __init__(self, transactions: Transactions, clock: Callable[[], float]) -> None:
        self._transactions = transactions
        self._clock = clock
        self._next = 0.0

    def is_due(self) -> bool:
        """Say whether it is time for another batch, once for each time."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + _PAUSE
        return True

    def batch(self, size: int) -> int:
        """Delete up to so many sessions with their records and return how many there were."""
        values = {"before": self._clock() - _AFTER, "batch": size}
        with self._transactions.several() as connection:
            refs = connection.execute(tables.EXPIRED, values).scalars().all()
            for statement in tables.PURGE if refs else ():
                connection.execute(statement, {"refs": refs})
        if len(refs) == size:
            self._next = self._clock() + _SHORT_PAUSE
        return len(refs)
