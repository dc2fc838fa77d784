"""Time limits for PostgreSQL, whose drivers wait for an answer without end.

A connection in use may be shut from outside: its driver then raises at once. If there is no
connection yet, another thread waits for one, and the caller gives up in time.
"""

from __future__ import annotations

import contextvars
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: Seconds that a call may take, including the wait for a connection.
LIMIT = 0.4
#: Seconds for what takes longer and keeps no request waiting: making tables, batches, reports.
LONG_LIMIT = 30

T = TypeVar("T")


_patient = contextvars.ContextVar("flask_byok_patient", default=False)


@contextmanager
def patiently() -> Iterator[None]:
    """Give every call the long time, as an operator's command can wait."""
    before = _patient.set(True)
    try:
        yield
    finally:
        _patient.reset(before)


class _Call(threading.local):
    """This thread's call under way: its seconds, and its end in monotonic seconds."""

    seconds: float | None = None
    until: float | None = None


_call = _Call()


def within_call(limit: float | None, function: Callable[..., T], *args: Any) -> T:
    """Call a function and give it so many seconds; None means ``LIMIT``, or ``LONG_LIMIT`` for a command.

    A nested call has its own budget, which is not charged to the outer one.
    """
    started, outer = time.monotonic(), (_call.seconds, _call.until)
    _call.seconds = limit or (LONG_LIMIT if _patient.get() else LIMIT)
    _call.until = started + _call.seconds
    try:
        return function(*args)
    finally:
        _call.seconds, until = outer
        _call.until = None if until is None else until + time.monotonic() - started


def seconds() -> float:
    """Return the seconds of the call under way."""
    return _call.seconds or LIMIT


def time_left() -> float:
    """Return the seconds that are left of the call under way."""
    return LIMIT if _call.until is None else _call.until - time.monotonic()


def watch_new(connection: Any) -> None:
    """Let the watchdog shut a driver's connection that is not in use yet when the call should have ended."""
    if _call.until is not None:
        watchdog.watch(connection, _call.until)


@contextmanager
def watched(connection: Connection) -> Iterator[None]:
    """Let the watchdog shut a connection that is still in use when the call should have ended."""
    driver = connection.connection.dbapi_connection
    watchdog.watch(driver, time.monotonic() + time_left())
    try:
        yield
    finally:
        if not watchdog.release(driver):
            connection.invalidate()


class Watchdog:
    """Shuts the sockets of connections that are in use past their deadline.

    :param interval: seconds between two looks.
    :param idle: looks at nothing after which the thread ends.
    """

    def __init__(self, interval: float = 0.05, idle: int = 200) -> None:
        self._interval = interval
        self._idle = idle
        self.forget()

    def forget(self) -> None:
        """Watch nothing, as in a forked process, which has none of its parent's threads."""
        self._watched: dict[int, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self.running = False

    def watch(self, connection: Any, until: float) -> None:
        """Shut this driver's connection unless it is released until then (monotonic seconds)."""
        self._watched[id(connection)] = (until, connection)
        if not self.running:
            self._start()

    def release(self, connection: Any) -> bool:
        """Stop watching; return False if the connection was shut."""
        # Taking the entry out is one step and decides, so a connection that has gone on to the next
        # caller is not shut.
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
            # A connection that has come meanwhile is seen here, or its caller starts another thread.
            self.running = bool(self._watched)
            return not self.running

    def _look(self, now: float) -> None:
        for key, (until, connection) in list(self._watched.items()):
            if until <= now:
                with self._lock:
                    if self._watched.pop(key, None) is not None:
                        _shut(connection)


def _shut(connection: Any) -> None:
    # Drivers raise errors of their own for a connection that is closed by now.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def within(seconds: float, connect: Callable[[], Any]) -> Any:
    """Return the connection that a function makes, on another thread.

    :raises TimeoutError: it takes longer; a connection that it makes later is closed.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            made = connect()
        except BaseException as error:
            with suppress(InvalidStateError):
                outcome.set_exception(error)
            return
        try:
            outcome.set_result(made)
        except InvalidStateError:  # the caller has given up
            with suppress(Exception):
                made.close()

    threading.Thread(target=work, name="byok-connect", daemon=True).start()
    try:
        return outcome.result(max(seconds, 0))
    except TimeoutError:
        if outcome.cancel():
            raise TimeoutError("The database gave no connection in time.") from None
        return outcome.result()


#: One for the process.
watchdog = Watchdog()
os.register_at_fork(after_in_child=watchdog.forget)
