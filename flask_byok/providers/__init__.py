"""Provider objects: one credential each, on the provider's own SDK and our shared keyless pool."""

from .anthropic import AnthropicProvider
from .base import ADAPTERS, BaseProvider, load_sdks, make_provider
from .google import GoogleProvider
from .http import HttpProvider
from .langchain import make_chat_model
from .openai import OpenAIProvider
from .outcomes import Count, Report

ADAPTERS.update(
    anthropic=AnthropicProvider, google=GoogleProvider, http=HttpProvider, openai=OpenAIProvider
)

__all__ = ["BaseProvider", "Count", "Report", "load_sdks", "make_chat_model", "make_provider"]
