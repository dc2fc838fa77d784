"""Close the SDKs' WebSockets: they open connections of their own, past the guarded transport."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import ConfigurationError


def refuse_web_socket(*args: Any, **options: Any) -> NoReturn:
    """Stand where an SDK looks for the address of its WebSockets.

    :raises ConfigurationError: always.
    """
    raise ConfigurationError(
        "Realtime and live sessions are not offered with people's keys: their WebSockets would connect to any "
        "address and through the operator's proxy. Use calls and streams."
    )


def close_web_sockets(api_client: Any) -> None:
    """Let Google's live sessions, each of which asks for the address first, end there.

    :raises ConfigurationError: the SDK asks in another place now.
    """
    if not callable(getattr(api_client, "_websocket_base_url", None)):
        raise ConfigurationError(
            "This release of google-genai does not let flask-byok close its WebSockets. Use an earlier release."
        )
    api_client._websocket_base_url = refuse_web_socket
