"""One answer of a provider, read by us: no SDK is asked."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from .. import metrics
from ..catalog.verdicts import Answer, Judgement
from ..errors import ProviderError
from ..model.credential import Verdict
from ..wires import ErrorInStream, Reader, StreamEvent, read_events
from .outcomes import Outcomes

if TYPE_CHECKING:
    from ..http.live import LiveCall

Steps = Generator[StreamEvent | None, None, None]

#: Longest refusal that is read, in bytes.
MAX_REFUSAL = 256 * 1024


class Conversation(Iterator[StreamEvent | None]):
    """The events of one answer, and None about each second in which the provider says nothing.

    The request is sent when the first event is read. The call counts once: as used with its first event from the
    provider, else as it failed.

    :raises RejectedCredentialError: the provider rejected the key.
    :raises ProviderError: there is no answer, or no end of it, for another reason.
    """

    def __init__(
        self, outcomes: Outcomes, call: LiveCall, reader: Reader, start: StreamEvent
    ) -> None:
        self._call = call
        # A function of the module's: a method would hold this object, which only garbage collection would then close.
        self._events = _run(outcomes, call, reader, start)

    def __next__(self) -> StreamEvent | None:
        return next(self._events)

    def cut(self) -> None:
        """Close the connection at once. Any thread may do so, also while another waits for an event."""
        self._call.close()

    def close(self) -> None:
        """Stop reading."""
        self._events.close()
        self._call.close()


def _run(outcomes: Outcomes, call: LiveCall, reader: Reader, start: StreamEvent) -> Steps:
    name = outcomes.spec.id
    yield start
    if metrics.sinks:
        metrics.record("streams_open", 1, name)
    try:
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
    # Raised out here, so that the provider's own error does not hang on it.
    raise outcomes.failure(answer, counted=counted)
