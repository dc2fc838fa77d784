"""Provider objects: one credential each, on the provider's own SDK and our shared keyless pool."""

from .base import BaseProvider
from .factory import make_provider
from .langchain import make_chat_model
from .outcomes import Report

__all__ = ["BaseProvider", "Report", "make_chat_model", "make_provider"]
