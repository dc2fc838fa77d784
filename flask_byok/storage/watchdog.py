"""End the waiting for a server whose driver waits without end: shut the connection's socket, or give up connecting.

Only time in which the server owes an answer counts: a process that waits for the CPU blames no store.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

#: libpq's number for a connection whose command has no answer yet, the same in both drivers.
_ACTIVE = 1
#: Seconds between two looks at a connection under way.
_SHORT_WAIT = 0.05


@dataclass(eq=False, slots=True)
class Budget:
    """The seconds that a call may still wait for the server."""

    left: float


#: That of this thread's call under way.
budget_of_call: ContextVar[Budget | None] = ContextVar("flask_byok_budget", default=None)


class Watchdog:
    """Shuts the sockets of connections whose server owes an answer for too long.

    Each look charges a connection for the time since the last one, unless the answer is there to be read or nothing
    was asked: then it is we who are slow. A look that comes late, because the process had no CPU or was stopped,
    charges for two intervals at most.

    :param interval: seconds between two looks.
    """

    def __init__(self, interval: float = _SHORT_WAIT) -> None:
        self._interval = interval
        self.forget()

    def forget(self) -> None:
        """Watch nothing, as in a forked process, which has none of its parent's threads."""
        self._watched: dict[int, tuple[Budget, Any]] = {}
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._runs = False

    def watch(self, connection: Any, budget: Budget) -> None:
        """Shut this driver's connection, unless it is released before, once the budget is used up."""
        with self._lock:
            self._watched[id(connection)] = (budget, connection)
            self._busy.set()
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="byok-watchdog", daemon=True).start()

    def release(self, connection: Any) -> bool:
        """Stop watching; return False if the connection was shut."""
        # Not while it is being shut: once it is closed, its number would be another's.
        with self._lock:
            return self._watched.pop(id(connection), None) is not None

    def leave(self, budget: Budget) -> None:
        """Close what still has this budget: older versions of SQLAlchemy do not."""
        with self._lock:
            left = [held for held in self._watched.values() if held[0] is budget]
        for _, connection in left:
            self.release(connection)
            with suppress(Exception):
                connection.close()

    def _run(self) -> None:
        while self._busy.wait():
            started = time.monotonic()
            time.sleep(self._interval)
            with self._lock:
                passed = min(time.monotonic() - started, 2 * self._interval)
                for key, (budget, connection) in list(self._watched.items()):
                    if not _owes_answer(connection):
                        continue
                    budget.left -= passed
                    if budget.left <= 0:
                        del self._watched[key]
                        _shut(connection)
                if not self._watched:
                    self._busy.clear()


def _owes_answer(connection: Any) -> bool:
    """Return True if a command is under way whose answer has not come yet."""
    # Drivers raise errors of their own for a connection that is closed by now.
    with suppress(Exception):
        if connection.info.transaction_status != _ACTIVE:
            return False
        look = select.poll()  # select() itself knows no number above 1023
        look.register(connection.fileno(), select.POLLIN)
        return not look.poll(0)
    return False


def _shut(connection: Any) -> None:
    # Drivers raise errors of their own for a connection that is closed by now.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def within(budget: Budget, connect: Callable[[], Any]) -> Any:
    """Return the connection that a function makes, on another thread.

    :raises TimeoutError: it takes longer; a connection that it makes later is closed.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(connect())
        except BaseException as error:
            outcome.set_exception(error)

    # Not of an executor: the process may end, and may still connect while it ends.
    threading.Thread(target=work, name="byok-connect", daemon=True).start()
    while budget.left > 0:
        # In short waits, so that time without CPU hardly counts.
        if futures.wait((outcome,), _SHORT_WAIT).done:
            return outcome.result()
        budget.left -= _SHORT_WAIT
    outcome.add_done_callback(_close)
    raise TimeoutError("The database gave no connection in time.")


def _close(late: Future[Any]) -> None:
    # Connecting may have failed, and drivers raise errors of their own.
    with suppress(Exception):
        late.result().close()


#: One for the process.
watchdog = Watchdog()
os.register_at_fork(after_in_child=watchdog.forget)
