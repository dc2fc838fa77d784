"""Time limits for PostgreSQL, whose drivers wait for an answer without end.

A connection that is asked may be shut from outside: its driver then raises at once. Where there is
no connection yet, another thread waits for one, and whoever wants it gives up in time.
"""

from __future__ import annotations

import contextvars
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)

#: Whether nobody's request waits for what is done here; see ``patiently``.
patient = contextvars.ContextVar("flask_byok_patient", default=False)


@contextmanager
def patiently() -> Iterator[None]:
    """Give every call of a database the long time, as an operator's command can wait."""
    before = patient.set(True)
    try:
        yield
    finally:
        patient.reset(before)


class Watchdog:
    """Shuts the sockets of connections that are in use past their deadline.

    Its thread runs while there is something to watch, and this much longer.

    :param interval: seconds between two looks.
    :param idle: looks at nothing after which the thread ends.
    """

    def __init__(self, interval: float = 0.05, idle: int = 200) -> None:
        self._interval = interval
        self._idle = idle
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a forked process has to: it has none of its parent's threads."""
        self._watched: dict[int, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self.running = False

    def watch(self, connection: Any, until: float) -> None:
        """Shut this driver's connection unless it is released until then (monotonic seconds)."""
        self._watched[id(connection)] = (until, connection)
        if not self.running:
            self._start()

    def release(self, connection: Any) -> bool:
        """Watch no longer; say whether the connection is still whole."""
        # Whoever takes the entry out decides, so a connection that has gone on to the next caller
        # is not shut. That needs no lock: taking out is one step.
        if self._watched.pop(id(connection), None) is not None:
            return True
        with self._lock:  # not while it is being shut: its number would be another's once closed
            return False

    def _start(self) -> None:
        with self._lock:
            if not self.running:
                self.running = True
                threading.Thread(target=self._run, name="byok-watchdog", daemon=True).start()

    def _run(self) -> None:
        looks = 0
        while looks < self._idle or not self._may_end():
            time.sleep(self._interval)
            looks = 0 if self._watched else looks + 1
            self._look(time.monotonic())

    def _may_end(self) -> bool:
        with self._lock:
            self.running = False
            # Who has come meanwhile has either been seen here or finds that nobody runs.
            self.running = bool(self._watched)
            return not self.running

    def _look(self, now: float) -> None:
        for key, (until, connection) in list(self._watched.items()):
            if until <= now:
                with self._lock:
                    if self._watched.pop(key, None) is not None:
                        _shut(connection)


def _shut(connection: Any) -> None:
    # Drivers raise errors of their own for what is closed by now.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def within(seconds: float, connect: Callable[[], C]) -> C:
    """Return the connection that this makes, on another thread.

    :raises TimeoutError: it takes longer; what it makes later is closed.
    """
    job = _Job(connect)
    try:
        helper = _idle_helpers.pop()
    except IndexError:
        helper = _Helper()
        helper.start()
    helper.jobs.put(job)
    made: C = job.wait(seconds)
    return made


class _Job:
    def __init__(self, connect: Callable[[], _Closable]) -> None:
        self._connect = connect
        self._context = contextvars.copy_context()  # the host's listeners may look at its request
        self._claim = [True]
        self._finished = threading.Lock()
        self._finished.acquire()
        self._made: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._made = self._context.run(self._connect)
        except BaseException as error:
            self._error = error
        if self._claimed():
            self._finished.release()
        elif self._made is not None:
            with suppress(Exception):
                self._made.close()

    def wait(self, seconds: float) -> Any:
        if not self._finished.acquire(timeout=max(seconds, 0)) and self._claimed():
            raise TimeoutError("The database gave no connection in time.")
        if self._error is not None:
            raise self._error
        return self._made

    def _claimed(self) -> bool:
        """Decide between finished and given up: one of both gets True, once."""
        try:
            return self._claim.pop()
        except IndexError:
            return False


class _Helper(threading.Thread):
    """Makes one connection after the other; there are as many as have been made at once."""

    def __init__(self) -> None:
        super().__init__(name="byok-connect", daemon=True)
        self.jobs: SimpleQueue[_Job] = SimpleQueue()

    def run(self) -> None:
        while True:
            self.jobs.get().run()
            _idle_helpers.append(self)


_idle_helpers: deque[_Helper] = deque()
#: One for the process.
watchdog = Watchdog()


def _leave_parents_threads() -> None:
    _idle_helpers.clear()
    watchdog.forget()


os.register_at_fork(after_in_child=_leave_parents_threads)
