"""How each call with a key ends, told once: of our own conversations, and of calls with the SDK's client.

The answer that our HTTP client sees decides. What an SDK raises is never read: it holds the request and its key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from .. import metrics
from ..catalog.auth import Auth
from ..catalog.spec import ProviderSpec
from ..catalog.verdicts import Answer, Judgement, judge
from ..errors import ByokError, ProviderError, RateLimitedError
from ..model.credential import Credential, Outcome, Tokens, Verdict
from ..wires.events import Reader, Scanner

if TYPE_CHECKING:
    from ..http.live import LiveCall
    from ..http.transport import Request

#: Called with the outcome of each call, and later with the tokens of one that was used.
Count = Callable[[Outcome | Tokens], None]
#: Called with what the answer to a failed call means, if it is about this very key.
Report = Callable[[Judgement], None]

#: What an SDK is given that insists on a key where there is none. It is not sent.
NO_KEY = "no-api-key"
# Where SDKs put a key.
_KEY_HEADERS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")


def ignore(_: object) -> None:
    """Take the place of a callback that was not given."""


@dataclass(frozen=True, eq=False, repr=False)
class Outcomes:
    """Counts the calls that are made with one credential, and reports those that fail.

    It observes every request of the SDK's client. A request by itself is a call; the requests of an SDK's call with its
    retries have one outcome together.

    :param count: called with the outcome of each call, and with the tokens of a conversation.
    :param report: called with what a failure means.
    :param paths: paths below the base URL that take any key of the provider's, beside the path of its check.
    """

    spec: ProviderSpec
    credential: Credential
    count: Count = ignore
    report: Report = ignore
    paths: Collection[str] = ()

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:
        """Return the provider's headers for a request, with the key."""
        fields = {name: secret.reveal() for name, secret in self.credential.fields.items()}
        return {**self.spec.headers, **self.spec.auth.headers(fields, method, url, body)}

    def authenticate(self, request: Request) -> None:
        """Put the key into a request as its provider wants it, whatever header an SDK has chosen.

        A request with another key is left alone: a copy of the SDK's client may have one.
        """
        chosen = [name for name in _KEY_HEADERS if name in request.headers]
        if chosen and not _carries(request, self.credential.api_key or NO_KEY):
            return
        for name in chosen:
            del request.headers[name]
        body = b"" if isinstance(self.spec.auth, Auth) else request.read()
        request.headers.update(self.headers(request.method, str(request.url), body))

    def observe(self, request: Request, status: int, body: bytes) -> None:
        """Take in a request's end: its status (0 if no answer came), and the body of a refusal."""
        with one_call(self) as call:
            call.outcomes, call.judged = self, None
            call.outcome = "used" if 200 <= status < 300 else "failed"
            if status >= 300:
                call.outcome, call.judged = self._judge_request(request, Answer(status, body))

    def judge(self, answer: Answer, *, elsewhere: bool = False) -> tuple[Outcome, Judgement]:
        """Return how a call that got this answer ended, and what that means.

        :param elsewhere: see :meth:`is_elsewhere`.
        """
        sent = {name: secret.reveal() for name, secret in self.credential.fields.items()}
        judged = judge(self.spec, answer, "call", sent, elsewhere=elsewhere)
        return "rejected" if judged.verdict.valid is False else "failed", judged

    def is_elsewhere(self, path: str | None) -> bool:
        """Return True if a path below the base URL may want another kind of key."""
        return path not in self.paths and path != self.spec.check.path.partition("?")[0]

    def _judge_request(self, request: Request, answer: Answer) -> tuple[Outcome, Judgement | None]:
        from ..http.transport import path_below

        path = path_below(request.url, self.credential.base_url)
        outcome, judged = self.judge(answer, elsewhere=self.is_elsewhere(path))
        # A copy of an SDK's client may send another key, or go elsewhere: that says nothing about this key.
        signed = not isinstance(self.spec.auth, Auth)  # by us
        is_ours = path is not None and (signed or _carries(request, self.credential.api_key))
        return outcome, judged if is_ours else None


@dataclass(eq=False)
class OurCall:
    """A call that is read by us, to use as a block: it counts once, and is reported if it fails.

    At the block's end the connection is closed, and the tokens of a used call count, as far as they were told.

    :param told: says which tokens the answer took, as far as it has told until now.
    :param elsewhere: see :meth:`Outcomes.is_elsewhere`.
    """

    outcomes: Outcomes
    call: LiveCall
    told: Reader | Scanner
    elsewhere: bool = False
    _outcome: Outcome | None = None

    def count(self, outcome: Outcome) -> None:
        """Count the call with this outcome, unless it has one."""
        if self._outcome is None:
            self._outcome = outcome
            self.outcomes.count(outcome)

    def refuse(self, status: int, body: bytes) -> ByokError:
        """Report an answer that is none of success, and return the error that it means.

        :param status: 0 for an error within a stream.
        """
        answer = Answer(status, body, self.call.headers)
        outcome, judged = self.outcomes.judge(answer, elsewhere=self.elsewhere)
        self.count(outcome)
        self.outcomes.report(judged)
        source = str(self.outcomes.credential.source)
        return judged.error(self.outcomes.spec.id, source, answer.retry_after)

    def __enter__(self) -> Self:
        metrics.record("streams_open", 1, self.outcomes.spec.id)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.call.close()
        if not isinstance(error, RateLimitedError):  # ours: then there was no call
            self.count("failed")
        outcomes = self.outcomes
        if isinstance(error, ProviderError):
            error.provider, error.tier = outcomes.spec.id, str(outcomes.credential.source)
            outcomes.report(Judgement(Verdict.UNREACHABLE, error.code, str(error)))
        if self._outcome == "used" and (tokens := self.told.tokens):
            outcomes.count(tokens)
            for direction, number in tokens._asdict().items():
                metrics.record("tokens", number, outcomes.spec.id, direction)
        metrics.record("streams_open", -1, outcomes.spec.id)


@dataclass(slots=True, eq=False)
class _Call:
    """One call, however many requests it takes, and how its latest request ended.

    :param outcomes: who counts it; None before the first request.
    """

    outcomes: Outcomes | None = None
    outcome: Outcome = "failed"
    judged: Judgement | None = None


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
        if call.outcomes is not None:
            call.outcomes.count(call.outcome)
            if call.judged is not None:
                call.outcomes.report(call.judged)


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
