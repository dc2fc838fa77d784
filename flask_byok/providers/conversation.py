"""One answer of a provider, read by us: no SDK is asked."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from ..errors import ByokError
from ..wires.events import ErrorInStream, Reader, StreamEvent, read_events
from .outcomes import OurCall

Steps = Generator[StreamEvent | None, None, None]

#: Longest refusal that is read, in bytes.
MAX_REFUSAL = 256 * 1024


class Attempt(NamedTuple):
    """A call with one key, how its answer is read, and the event that begins it."""

    ours: OurCall
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
            self._present.pop().ours.call.close()

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
    ours, reader, start = attempt
    call = ours.call
    yield start
    with ours:
        yield from call.head()
        if call.status < 300:
            try:
                for event in read_events(call.body(), reader):
                    if event is not None:
                        ours.count("used")
                    yield event
                return
            except ErrorInStream as error:
                body = error.body
            refused = ours.refuse(0, body)
        else:
            refused = ours.refuse(call.status, call.rest(MAX_REFUSAL))
    # Raised out here, so that the provider's own error does not hang on it.
    raise refused
