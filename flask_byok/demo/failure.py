"""The demo's own error."""

from __future__ import annotations


class UnusableSettingError(Exception):
    """Raised when an environment variable names something that does not work; the message says what to do."""
