"""Make the provider object that a spec names."""

from __future__ import annotations

from typing import Any

from ..catalog import ProviderSpec
from ..http import Outbound
from ..keys.usage import Count
from ..model.credential import Credential
from .anthropic import AnthropicProvider
from .base import BaseProvider
from .google import GoogleProvider
from .openai import OpenAIProvider
from .outcomes import Report

_ADAPTERS: dict[str, type[BaseProvider]] = {
    "openai": OpenAIProvider,
    "anthropic": AnthropicProvider,
    "google": GoogleProvider,
}


def make_provider(
    spec: ProviderSpec,
    credential: Credential,
    outbound: Outbound,
    report: Report | None = None,
    count: Count | None = None,
    **options: Any,
) -> BaseProvider:
    """Return a new provider object for this one credential. No SDK is loaded before it is used.

    :param report: called when the provider refuses the key.
    :param count: called with the outcome of each call.
    :param options: passed to the SDK's client.
    """
    if spec.provider_class is not None:
        provider: BaseProvider = spec.provider_class(
            spec, credential, outbound, report=report, count=count, **options
        )
        return provider
    adapter = _ADAPTERS[spec.adapter]
    return adapter(spec, credential, outbound, report=report, count=count, **options)
