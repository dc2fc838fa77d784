"""One answer of a provider, passed on as it is: an SDK at the other end reads it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING

from .. import metrics
from ..catalog.verdicts import Answer, Judgement
from ..errors import ByokError, ProviderError
from ..model.credential import Outcome, Verdict
from ..redaction import redact
from ..wires import Reader, Scanner
from .conversation import MAX_REFUSAL
from .outcomes import Outcomes

if TYPE_CHECKING:
    from ..http.live import LiveCall


class Passage(Iterator[bytes | None]):
    """The bytes of one answer as they come, and None about each second in which there are none.

    The call counts once: as used with its first bytes, else as it failed; and at its end its tokens, as far as the
    answer says them. An error within a stream is reported.

    :param path: where the call goes, below the provider's base URL.
    :param reader: of the provider's wire; it reads the usage.
    :raises ProviderError: there is no answer, or no end of it.
    """

    def __init__(self, outcomes: Outcomes, call: LiveCall, path: str, reader: Reader) -> None:
        self._outcomes = outcomes
        self._call = call
        self._path = path
        self._is_counted = False
        self._pieces = self._read(reader)

    @property
    def status(self) -> int:
        """The answer's HTTP status; 0 until its head has come."""
        return self._call.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's headers; names in any case."""
        return self._call.headers

    @property
    def is_stream(self) -> bool:
        """True if the answer is a stream of events."""
        return self.headers.get("content-type", "").lower().startswith("text/event-stream")

    def head(self) -> Iterator[None]:
        """Send the request, and yield None about each second until the answer's head has come."""
        try:
            yield from self._call.head()
        except ProviderError as error:
            self._note(error)
            self.close()
            raise

    def refusal(self) -> tuple[bytes, ByokError]:
        """Read the answer's body, which is none of success.

        :return: the body without secrets, and the error that the answer means.
        """
        self._is_counted = True
        answer = Answer(self.status, self._call.rest(MAX_REFUSAL), self.headers)
        error = self._outcomes.failure(answer, counted=False, path=self._path)
        return redact(answer.body.decode(errors="replace")).encode(), error

    def __next__(self) -> bytes | None:
        return next(self._pieces)

    def close(self) -> None:
        """End the call. The connection to the provider is closed at once."""
        self._pieces.close()
        self._call.close()
        self._count("failed")

    def _read(self, reader: Reader) -> Generator[bytes | None, None, None]:
        scanner = Scanner(reader, is_stream=self.is_stream)
        name = self._outcomes.spec.id
        if metrics.sinks:
            metrics.record("streams_open", 1, name)
        try:
            for piece in self._call.body():
                if piece:
                    self._count("used")
                    if found := scanner.feed(piece):
                        answer = Answer(0, found, self.headers)
                        self._outcomes.failure(answer, counted=True, path=self._path)
                yield piece
            self._count("used")  # there may be no body
        except ProviderError as error:
            self._note(error)
            raise
        finally:
            self._call.close()
            if tokens := scanner.tokens:
                self._outcomes.spend(tokens)
            if metrics.sinks:
                metrics.record("streams_open", -1, name)

    def _count(self, outcome: Outcome) -> None:
        if not self._is_counted:
            self._is_counted = True
            self._outcomes.count(outcome)

    def _note(self, error: ProviderError) -> None:
        self._count("failed")
        credential = self._outcomes.credential
        error.provider, error.tier = credential.provider, str(credential.source)
        self._outcomes.report(Judgement(Verdict.UNREACHABLE, error.code, str(error)))
