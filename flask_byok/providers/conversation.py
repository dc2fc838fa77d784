"""One answer of a provider, read by us: no SDK is asked."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, NamedTuple

from .. import metrics
from ..catalog.verdicts import Answer, Judgement
from ..errors import ByokError, ProviderError
from ..model.credential import Verdict
from ..wires import ErrorInStream, Reader, StreamEvent, read_events
from .outcomes import Outcomes

if TYPE_CHECKING:
    from ..http.live import LiveCall

Steps = Generator[StreamEvent | None, None, None]

#: Longest refusal that is read, in bytes.
MAX_REFUSAL = 256 * 1024


class Attempt(NamedTuple):
    """A call with one key, how its answer is read, and the event that begins it."""

    outcomes: Outcomes
    call: LiveCall
    reader: Reader
    start: StreamEvent


#: Returns the attempt with the next key after one that failed before its first piece; None to give up.
Following = Callable[[ByokError], Attempt | None]


class Conversation(Iterator[StreamEvent | None]):
    """The events of one answer, and None about each second in which the provider says nothing.

    The request is sent when the first event is read. The call counts once: as used with its first event from the
    provider, else as it failed. The tokens of a used call count at its end, whichever it is, as far as they were told.
    If another key takes over, another ``start`` says so.

    :raises RejectedCredentialError: the provider rejected the key.
    :raises ProviderError: there is no answer, or no end of it, for another reason.
    """

    def __init__(self, attempt: Attempt, following: Following) -> None:
        self._present = [attempt]
        # A function of the module's: a method would hold this object, which only garbage collection would then close.
        self._events = _run(self._present, following)

    def __next__(self) -> StreamEvent | None:
        return next(self._events)

    def cut(self) -> None:
        """Close the connection at once. Any thread may do so, also while another waits for an event."""
        while self._present:
            self._present.pop().call.close()

    def close(self) -> None:
        """Stop reading."""
        self._events.close()
        self.cut()


def _run(present: list[Attempt], following: Following) -> Steps:
    begun = False
    while present:
        try:
            for event in _attempt(present[0]):
                begun = begun or (event is not None and event.type != "start")
                yield event
            return
        except ByokError as error:
            follows = None if begun or not present else following(error)
            if follows is None:
                raise
        present[:] = [follows]


def _attempt(attempt: Attempt) -> Steps:
    outcomes, call, reader, start = attempt
    name = outcomes.spec.id
    if metrics.sinks:
        metrics.record("streams_open", 1, name)
    try:
        yield start
        yield from _read(outcomes, call, reader)
    except ProviderError as error:
        error.provider, error.tier = name, str(outcomes.credential.source)
        raise
    finally:
        call.close()
        if metrics.sinks:
            metrics.record("streams_open", -1, name)


def _read(outcomes: Outcomes, call: LiveCall, reader: Reader) -> Steps:
    counted = False
    try:
        yield from call.head()
        if call.status < 300:
            for event in read_events(call.body(), reader):
                if event is not None and not counted:
                    counted = True
                    outcomes.count("used")
                yield event
            return
        answer = Answer(call.status, call.rest(MAX_REFUSAL), call.headers)
    except ErrorInStream as error:
        answer = Answer(0, error.body, call.headers)
    except ProviderError as error:
        if not counted:
            outcomes.count("failed")
        outcomes.report(Judgement(Verdict.UNREACHABLE, error.code, str(error)))
        raise
    except GeneratorExit:
        if not counted:
            outcomes.count("failed")
        raise
    finally:
        # Of a stream that was cut or left too: some wires tell tokens early.
        if counted and (tokens := reader.tokens):
            outcomes.spend(tokens)
    # Raised out here, so that the provider's own error does not hang on it.
    raise outcomes.failure(answer, counted=counted)
