"""Checks of keys against their providers."""

from .check import check_api_key

__all__ = ["check_api_key"]
