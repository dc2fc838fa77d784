"""Tell how each call with a key ended, and each once: streams of ours, and what a host does with the SDK's client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..catalog import ProviderSpec
from ..credentials import Credential
from ..usage import Count, Outcome
from .failures import describe, failure_in


class Outcomes:
    """Counts the calls that are made with one credential.

    It sees every request of the client that it is given to. By itself each is a call; within an SDK's
    call with its retries, or a stream of ours, the whole has one outcome.
    """

    def __init__(self, spec: ProviderSpec, credential: Credential, count: Count) -> None:
        self._spec = spec
        self._credential = credential
        self.count = count

    def observe(self, status: int, body: bytes) -> None:
        """Take in what a request brought: its status, 0 where no answer came, and the body of a refusal."""
        call, outcome = _call.get(), self._outcome(status, body)
        if call is None or not call.take(self, outcome):
            self.count(outcome)

    def _outcome(self, status: int, body: bytes) -> Outcome:
        if 200 <= status < 300:
            return "used"
        if not status:
            return "failed"
        _, verdict = describe(self._spec, self._credential, failure_in(status, body))
        return "failed" if verdict is None else "rejected"


class Call:
    """One call, however many requests it takes."""

    def __init__(self, outcomes: Outcomes | None) -> None:
        self.outcomes = outcomes
        #: Of its latest request; None where none was made.
        self.latest: Outcome | None = None
        self._ended = False

    def take(self, outcomes: Outcomes, outcome: Outcome) -> bool:
        """Take in a request's outcome, and say whether it was one of this call's."""
        if self.outcomes is None:
            self.outcomes = outcomes
        if self.outcomes is not outcomes:
            return False
        self.latest = outcome
        return True

    def end(self, outcome: Outcome) -> None:
        """Count the call, unless that was done before."""
        if self.outcomes is not None and not self._ended:
            self._ended = True
            self.outcomes.count(outcome)

    def failed(self, *, rejected: bool) -> None:
        """Count a call that raised, if it came as far as a request."""
        if self.latest is not None:
            self.end("rejected" if rejected else "failed")

    def follow(self, pieces: Iterator[str]) -> Iterator[str]:
        """Yield the pieces of an answer: with the first of them, or at a good end, the key was used."""
        if self.outcomes is None:
            yield from pieces
            return
        try:
            while (piece := self._next(pieces)) is not None:
                self.end("used")
                yield piece
            self.end("used")
        except Exception:
            raise  # what it means is read elsewhere
        except BaseException:
            self.failed(rejected=False)
            raise
        finally:
            if (close := getattr(pieces, "close", None)) is not None:
                close()

    def _next(self, pieces: Iterator[str]) -> str | None:
        # For this step only: whoever reads on may call others in between.
        reset = _call.set(self)
        try:
            return next(pieces, None)
        finally:
            _call.reset(reset)


_call: ContextVar[Call | None] = ContextVar("flask_byok_call", default=None)


@contextmanager
def one_call() -> Iterator[None]:
    """Count all requests of this block as one call, which ends as the last of them does."""
    if _call.get() is not None:
        yield
        return
    call = Call(None)
    reset = _call.set(call)
    try:
        yield
    finally:
        _call.reset(reset)
        if call.latest is not None:
            call.end(call.latest)
