"""One answer of a provider, passed on as it is: an SDK at the other end reads it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING

from ..errors import ByokError, ProviderError, ProviderUnavailableError, StreamIncompleteError
from ..redaction import redact
from ..wires.events import Reader, Scanner
from .conversation import MAX_REFUSAL
from .outcomes import OurCall, Outcomes

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
        self._call = call
        self._ours = OurCall(outcomes, call, reader, elsewhere=outcomes.is_elsewhere(path))
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
        except ProviderError:
            with self._ours:
                raise

    def refusal(self) -> tuple[bytes, ByokError]:
        """Read the answer's body, which is none of success.

        :return: the body without secrets, and the error that the answer means.
        """
        body = self._call.rest(MAX_REFUSAL)
        error = self._ours.refuse(self.status, body)
        return redact(body.decode(errors="replace")).encode(), error

    def __next__(self) -> bytes | None:
        return next(self._pieces)

    def close(self) -> None:
        """End the call. The connection to the provider is closed at once."""
        self._call.close()  # first: this ends a read in another thread
        self._pieces.close()
        self._ours.count("failed")

    def _read(self, reader: Reader) -> Generator[bytes | None, None, None]:
        self._ours.told = scanner = Scanner(reader, is_stream=self.is_stream)
        with self._ours:
            try:
                for piece in self._call.body():
                    if piece:
                        self._ours.count("used")
                        if found := scanner.feed(piece):
                            self._ours.refuse(0, found)
                    yield piece
            except ProviderUnavailableError as error:
                raise StreamIncompleteError(str(error)) if self.is_stream else error from None
            self._ours.count("used")  # there may be no body
