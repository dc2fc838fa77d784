"""Answers read as they come, by readers that must not be held up: each wait ends after a second."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import cast

import httpx2

from ..errors import ByokError, ProviderUnavailableError
from . import transport
from .connections import Line, until

#: Seconds within which the rest of a refusal has come: it is short, and sent whole.
REST_SECONDS = 5.0


class Exchange:
    """A request and its answer, which any thread can end at any time."""

    def __init__(self, client: httpx2.Client, request: httpx2.Request) -> None:
        self._client = client
        self._request = request
        self.line = Line()
        # Whoever closes the answer must not do so while another thread reads. Reentrant: see Line.
        self._lock = threading.RLock()
        self._response: httpx2.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def send(self) -> httpx2.Response:
        """Send the request, and wait for the answer's head."""
        with self.line.in_use():
            response = self._client.send(self._request, stream=True)
        with self._lock:
            self._response = response
            # It is closed already if a refusal was observed, and read for that.
            stream = cast(httpx2.SyncByteStream, response.stream)
            self._pieces = iter([response.content]) if response.is_closed else iter(stream)
        if self.line.is_cut:
            self.close()
        return response

    def next(self) -> bytes | None:
        """Return the next piece: an empty one after a second of silence, None at the end, also if this was closed."""
        with self._lock:
            try:
                return None if self.line.is_cut else next(self._pieces, None)
            except Exception:
                if self.line.is_cut:
                    return None
                raise

    def close(self) -> None:
        """Close the connection to the provider at once, unless the answer has ended and it serves others.

        While a connection is being made it cannot be closed; then nothing is sent on it.
        """
        self.line.cut()
        with self._lock:
            if self._response is not None:
                self._response.close()


class LiveCall:
    """A request whose answer is read piece by piece. Its readers get control back each second of silence.

    A thread waits for the answer's head; the body is read without one. Every fault of the network is raised as
    :class:`ProviderUnavailableError`. A call that is dropped is closed by garbage collection.
    """

    def __init__(self, exchange: Exchange) -> None:
        #: The answer's HTTP status; 0 until its head has come.
        self.status = 0
        #: The answer's headers; names in any case.
        self.headers: Mapping[str, str] = {}
        self._exchange = exchange
        self._sent: Future[httpx2.Response] | None = None
        weakref.finalize(self, exchange.close).atexit = False

    def head(self) -> Iterator[None]:
        """Send the request, and yield None about each second until the answer's head has come.

        If the call is closed meanwhile, this ends and the status stays 0.

        :raises RateLimitedError: too many calls of people's own servers are running.
        :raises ProviderUnavailableError: no answer came; the message says why.
        """
        if self._sent is None:
            self._sent = _send_elsewhere(self._exchange)
        while not self._exchange.line.is_cut and not wait([self._sent], transport.TICK).done:
            yield None
        if not self._exchange.line.is_cut:
            response = self._sent.result()
            self.status, self.headers = response.status_code, response.headers

    def body(self) -> Iterator[bytes | None]:
        """Yield the body's bytes as they come, and None after each second of silence.

        :raises ProviderUnavailableError: the body broke off, was silent for too long, or is too long.
        """
        try:
            while (piece := self._exchange.next()) is not None:
                yield piece or None
            return
        except Exception as error:
            fault = _in_our_words(error)
        # Raised out here, so that the request with its headers does not hang on the error.
        raise fault

    def rest(self, limit: int) -> bytes:
        """Return the rest of the body, for a refusal: at most ``limit`` bytes, of what comes within 5 seconds."""
        found, end = b"", time.monotonic() + REST_SECONDS
        with suppress(ProviderUnavailableError), until(end):
            for piece in self.body():
                found += piece or b""
                if len(found) > limit:
                    break
        self.close()
        return found[:limit]

    def close(self) -> None:
        """End the call, from any thread at any time. The connection to the provider is closed at once.

        Only an attempt to connect goes on, for 5 seconds at most, and then nothing is sent.
        """
        self._exchange.close()


def _send_elsewhere(exchange: Exchange) -> Future[httpx2.Response]:
    """Send on a thread of its own, which keeps nothing alive but the exchange."""
    sent: Future[httpx2.Response] = Future()

    def send() -> None:
        try:
            sent.set_result(exchange.send())
        except BaseException as error:
            sent.set_exception(_in_our_words(error))

    # The context holds the deadline of a block `until`.
    run = partial(copy_context().run, send)
    threading.Thread(target=run, daemon=True, name="flask-byok-call").start()
    return sent


def _in_our_words(error: BaseException) -> BaseException:
    """Return what to raise instead of an error: nothing of the HTTP client's, which holds the request."""
    fault = None if isinstance(error, ByokError) else transport.network_fault(error)
    return error if fault is None else ProviderUnavailableError(fault)
