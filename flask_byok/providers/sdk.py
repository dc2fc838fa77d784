"""What the SDKs of OpenAI and Anthropic need before people's keys may go through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from inspect import iscoroutinefunction
from typing import Any, ClassVar, NoReturn

from ..errors import ConfigurationError
from ..model.credential import Secret
from .outcomes import one_call, refused_by_us


class IsolatedClient:
    """Mixed into the client of OpenAI's or Anthropic's SDK: it takes its arguments and nothing from the environment.

    So do the copies that it makes of itself. Both SDKs mix in ``OPENAI_CUSTOM_HEADERS`` or
    ``ANTHROPIC_CUSTOM_HEADERS`` and have no switch for that.

    :raises ConfigurationError: this release of the SDK keeps its headers in another place.
    """

    #: Arguments that the SDK would look up in the environment if they were missing or None.
    silent: ClassVar[tuple[str, ...]]
    api_key: Any
    _custom_headers: Any

    def __init__(self, **options: Any) -> None:
        given = {name: value for name, value in options.items() if value is not None}
        super().__init__(**{**dict.fromkeys(self.silent, ""), **given})
        for name in self.silent:
            setattr(self, name, given.get(name) or None)
        if not isinstance(getattr(self, "_custom_headers", None), Mapping):
            raise ConfigurationError(
                f"This release of the SDK ({type(self).__module__}) does not let flask-byok remove the operator's "
                "custom headers. Use an earlier release."
            )
        self._custom_headers = dict(given.get("default_headers", {}))
        # The redactor knows a key as long as its Secret lives, and this client can outlive everything else.
        self._secret = Secret(str(self.api_key))


class SyncCalls(IsolatedClient):
    """The synchronous client: each call counts once, with all its retries."""

    def request(self, *args: Any, **options: Any) -> Any:
        """Make a call.

        :raises RateLimitedError: too many calls of people's own servers are running.
        """
        with one_call():
            try:
                return super().request(*args, **options)  # type: ignore[misc]  # the SDK's
            except Exception as error:
                if (refused := refused_by_us(error)) is None:
                    raise
        # Raised out here, so that the SDK's error, which holds the request and its key, does not hang on it.
        raise refused


class AsyncCalls(IsolatedClient):
    """The same for the asynchronous client."""

    async def request(self, *args: Any, **options: Any) -> Any:
        """Make a call; see :class:`SyncCalls`."""
        with one_call():
            try:
                return await super().request(*args, **options)  # type: ignore[misc]  # the SDK's
            except Exception as error:
                if (refused := refused_by_us(error)) is None:
                    raise
        raise refused


@cache
def isolated(
    sdk_client: type[Any], silent: tuple[str, ...], *mixins: type[Any]
) -> Callable[..., Any]:
    """Return the class of an SDK's client that takes nothing from the environment.

    :param silent: see :class:`IsolatedClient`.
    """
    calls = AsyncCalls if iscoroutinefunction(sdk_client.request) else SyncCalls
    return type("Client", (calls, *mixins, sdk_client), {"silent": silent})


def refuse_web_socket(*args: Any, **options: Any) -> NoReturn:
    """Take the place of an SDK's function that returns the address of its WebSockets.

    They open connections of their own, past the guarded transport.

    :raises ConfigurationError: always.
    """
    raise ConfigurationError(
        "Realtime and live sessions are not offered with people's keys: their WebSockets would connect to any "
        "address and through the operator's proxy. Use calls and streams."
    )
