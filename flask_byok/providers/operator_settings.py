"""Keep what the operator set for the SDKs out of calls that are made with people's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError


def forget_custom_headers(client: Any, given: Mapping[str, Any] | None) -> None:
    """Leave an SDK's client only the headers that it was given.

    The SDKs of OpenAI and Anthropic mix in ``OPENAI_CUSTOM_HEADERS`` or
    ``ANTHROPIC_CUSTOM_HEADERS`` and have no switch for that.

    :raises ConfigurationError: the SDK keeps its headers in another place now.
    """
    if not isinstance(getattr(client, "_custom_headers", None), Mapping):
        raise ConfigurationError(
            f"This release of {type(client).__module__.split('.')[0]} does not let flask-byok remove "
            "the operator's custom headers. Use an earlier release."
        )
    client._custom_headers = dict(given or {})
