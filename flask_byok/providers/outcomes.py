"""Tell how each call with a key ended, and each once: streams of ours, and what a host does with the SDK's client."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..catalog import ProviderSpec
from ..keys.usage import Count, Outcome
from ..model.credential import Credential, Verdict
from .failures import describe, failure_in

if TYPE_CHECKING:
    from ..http.transport import Request

#: Called with the verdict when a provider refuses the key in real use.
Report = Callable[[Verdict], None]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended, with the verdict on the key where it was refused."""

    outcome: Outcome
    verdict: Verdict | None = None


class Outcomes:
    """Counts the calls that are made with one credential, and reports what its provider refuses.

    It sees every request of the client that it is given to. By itself each is a call; within an SDK's
    call with its retries, or a stream of ours, the whole has one outcome.

    :param report: called for calls with the SDK's client; who makes others hears of refusals itself.
    :param paths: below the base URL, where any key of the provider's belongs, beside that of its check.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        credential: Credential,
        count: Count | None,
        report: Report | None = None,
        paths: Collection[str] = (),
    ) -> None:
        self._paths = {*paths, spec.check.path.partition("?")[0]}
        self._spec = spec
        self._credential = credential
        self._count = count
        self._report = report

    def observe(self, request: Request, status: int, body: bytes) -> None:
        """Take in what a request brought: its status, 0 where no answer came, and the body of a refusal."""
        call, ending = _call.get(), self._ending(request, status, body)
        if call is None or not call.take(self, ending):
            self.tell(ending)

    def count(self, outcome: Outcome) -> None:
        """Count a call."""
        if self._count is not None:
            self._count(outcome)

    def tell(self, ending: Ending) -> None:
        """Count a call with the SDK's client, and report what was found about the key."""
        self.count(ending.outcome)
        if ending.verdict is not None and self._report is not None:
            self._report(ending.verdict)

    def _ending(self, request: Request, status: int, body: bytes) -> Ending:
        if 200 <= status < 300:
            return Ending("used")
        if not status:
            return Ending("failed")
        from ..http.transport import path_below

        elsewhere = path_below(request.url, self._credential.base_url) not in self._paths
        failure = failure_in(status, body, elsewhere=elsewhere)
        _, verdict = describe(self._spec, self._credential, failure)
        if verdict is None:
            return Ending("failed")
        return Ending("rejected", verdict if self._is_about_this_key(request) else None)

    def _is_about_this_key(self, request: Request) -> bool:
        """Say whether this key went to its provider: a copy of an SDK's client may have another, or go elsewhere."""
        from ..http.transport import carries

        api_key = self._credential.api_key
        return bool(api_key) and carries(request, api_key, self._credential.base_url)


class Call:
    """One call, however many requests it takes."""

    def __init__(self, outcomes: Outcomes | None) -> None:
        self.outcomes = outcomes
        #: Of its latest request; None where none was made.
        self.latest: Ending | None = None
        self._ended = False

    def take(self, outcomes: Outcomes, ending: Ending) -> bool:
        """Take in how a request ended, and say whether it was one of this call's."""
        if self.outcomes is None:
            self.outcomes = outcomes
        if self.outcomes is not outcomes:
            return False
        self.latest = ending
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
        if call.outcomes is not None and call.latest is not None:
            call.outcomes.tell(call.latest)
