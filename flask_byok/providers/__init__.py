"""Provider objects: one credential each, on the provider's own SDK and our shared keyless pool."""

from . import anthropic, google, openai  # noqa: F401  (each registers its adapter)
from .base import BaseProvider, make_provider
from .langchain import make_chat_model
from .outcomes import Count, Report

__all__ = ["BaseProvider", "Count", "Report", "make_chat_model", "make_provider"]
