"""How each call with a key ends, told once: of our own streams, and of calls with the SDK's client.

The answer that our HTTP client sees decides. An SDK's exception is read only for a fault of the network, and for an
error inside a stream, which began with 200. What an SDK raises is never passed on: it holds the request and its key.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..catalog.auth import Auth
from ..catalog.spec import ProviderSpec
from ..catalog.verdicts import Answer, judge
from ..errors import ByokError, ProviderUnavailableError, RejectedCredentialError
from ..model.credential import Credential, Outcome, Verdict

if TYPE_CHECKING:
    from ..http.transport import Request

#: Called with the outcome of each call.
Count = Callable[[Outcome], None]
#: Called with the verdict when a provider rejects the key in real use.
Report = Callable[[Verdict], None]

#: What an SDK is given that insists on a key where there is none. It is not sent.
NO_KEY = "no-api-key"
# Where SDKs put a key.
_KEY_HEADERS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended, with the reason in our own words, and the verdict if it is one on this very key."""

    outcome: Outcome
    reason: str = ""
    verdict: Verdict | None = None


def ignore(_: object) -> None:
    """Take the place of a callback that was not given."""


@dataclass(frozen=True, eq=False, repr=False)
class Outcomes:
    """Counts the calls that are made with one credential, and reports when its provider rejects it.

    It observes every request of its client. A request by itself is a call; the requests of an SDK's call with its
    retries, or of our own stream, have one outcome together.

    :param count: called with the outcome of each call.
    :param report: called with the verdict when the provider rejects the key.
    :param paths: paths below the base URL that take any key of the provider's, beside the path of its check.
    """

    spec: ProviderSpec
    credential: Credential
    count: Count = ignore
    report: Report = ignore
    paths: Collection[str] = ()

    def observe(self, request: Request, status: int, body: bytes) -> None:
        """Take in a request's end: its status (0 if no answer came), and the body of a refusal."""
        with one_call(self) as call:
            call.outcomes = self
            call.latest = self._ending(request, status, body, of_stream=call.streams)

    def authenticate(self, request: Request) -> None:
        """Put the key into a request as its provider wants it, whatever header an SDK has chosen.

        A request with another key is left alone: a copy of the SDK's client may have one.
        """
        spec, url = self.spec, str(request.url)
        fields = {name: secret.reveal() for name, secret in self.credential.fields.items()}
        chosen = [name for name in _KEY_HEADERS if name in request.headers]
        if chosen and not _carries(request, self.credential.api_key or NO_KEY):
            return
        for name in chosen:
            del request.headers[name]
        body = b"" if isinstance(spec.auth, Auth) else request.read()
        request.headers.update(spec.headers)
        request.headers.update(spec.auth.headers(fields, request.method, url, body))

    def follow(self, pieces: Iterator[str]) -> Iterator[str]:
        """Yield the pieces of our own stream. The key was used with the first of them, or at a good end.

        :raises RejectedCredentialError: the provider rejected the key.
        :raises ProviderUnavailableError: no answer, or no end of it, for another reason.
        """
        call, ending, used = _Call(streams=True, outcomes=self), Ending("failed"), False
        try:
            piece, used = call.step(pieces), True
            self.count("used")
            while piece is not None:
                yield piece
                piece = call.step(pieces)
            return
        except ByokError:
            raise
        except Exception as raised:
            ending = self._ending_of(raised, call.latest)
        finally:
            if call.latest is not None and not used:
                self.count(ending.outcome)
            if (close := getattr(pieces, "close", None)) is not None:
                close()
        if ending.verdict is not None:
            self.report(ending.verdict)
        # Raised out here: inside, the SDK's error would hang on it, with the request and its key.
        if ending.outcome == "rejected":
            tier = str(self.credential.source)
            raise RejectedCredentialError(ending.reason, provider=self.spec.id, tier=tier)
        raise ProviderUnavailableError(ending.reason, provider=self.spec.id)

    def _ending(self, request: Request, status: int, body: bytes, *, of_stream: bool) -> Ending:
        if 200 <= status < 300:
            return Ending("used")
        if not status:
            return Ending("failed")
        from ..http.transport import path_below

        path = path_below(request.url, self.credential.base_url)
        paths = {*self.paths, self.spec.check.path.partition("?")[0]}
        elsewhere = not of_stream and path not in paths
        # A copy of an SDK's client may send another key, or go elsewhere: that says nothing about this key.
        is_ours = path is not None and _carries(request, self.credential.api_key)
        return self._judged(Answer(status, body), elsewhere=elsewhere, is_ours=is_ours)

    def _ending_of(self, raised: Exception, latest: Ending | None) -> Ending:
        """Return how a stream ended, by the latest answer, or by the exception if that answer was good or none."""
        if latest is not None and latest.reason:
            return latest
        from ..http.transport import network_fault

        if fault := network_fault(raised):
            return Ending("failed", fault)
        return self._judged(_answer_in(raised), elsewhere=False, is_ours=True)

    def _judged(self, answer: Answer, *, elsewhere: bool, is_ours: bool) -> Ending:
        secrets = map(self.credential.reveal, self.credential.fields)
        verdict, _, reason = judge(self.spec, answer, "call", secrets, elsewhere=elsewhere)
        if verdict.valid is not False:
            return Ending("failed", reason)
        return Ending("rejected", reason, verdict if is_ours else None)


@dataclass(slots=True, eq=False)
class _Call:
    """One call, however many requests it takes.

    :param streams: it is our own stream, whose path takes any key of the provider's.
    :param latest: how its latest request ended, and in ``outcomes`` who counts it; None before the first.
    """

    streams: bool = False
    outcomes: Outcomes | None = None
    latest: Ending | None = None

    def step(self, pieces: Iterator[str]) -> str | None:
        """Return the next piece of a stream; None at its end."""
        # Current for this step only: the reader may make other calls in between.
        reset = _call.set(self)
        try:
            return next(pieces, None)
        finally:
            _call.reset(reset)


_call: ContextVar[_Call | None] = ContextVar("flask_byok_call", default=None)


@contextmanager
def one_call(by: Outcomes | None = None) -> Iterator[_Call]:
    """Count all requests of this block as one call, which ends as the last of them does.

    :param by: who counts it. Within another key's call it is a call of its own.
    """
    call = _call.get()
    if call is not None and (by is None or call.outcomes in (None, by)):
        yield call
        return
    reset = _call.set(call := _Call())
    try:
        yield call
    finally:
        _call.reset(reset)
        if call.outcomes is not None and call.latest is not None:
            call.outcomes.count(call.latest.outcome)
            if call.latest.verdict is not None:
                call.outcomes.report(call.latest.verdict)


def refused_by_us(error: Exception) -> ByokError | None:
    """Return the error that our own HTTP client gave an SDK as an answer; None if another server answered."""
    from ..http.transport import REFUSED

    answer = getattr(error, "response", None)
    refused: ByokError | None = getattr(answer, "extensions", {}).get(REFUSED)
    return refused


def _carries(request: Request, api_key: str) -> bool:
    """Return True if a request has this key, if there is one, as the whole of a header but for a scheme."""
    values = request.headers.values()
    return bool(api_key) and any(api_key in (v, v.partition(" ")[2]) for v in values)


def _answer_in(error: Exception) -> Answer:
    """Return the error that an SDK met inside a stream; empty for an exception of another kind."""
    body = getattr(error, "body", None) or getattr(error, "details", None)
    if body is None:
        # The kind alone: its text can hold anything that the provider sent.
        _logger.warning("A call failed with %s.%s", type(error).__module__, type(error).__name__)
        return Answer(0, b"")
    return Answer(0, json.dumps(body, default=str).encode())
