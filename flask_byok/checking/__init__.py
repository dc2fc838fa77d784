"""Checks of keys against their providers."""

from .check import check_api_key, refuse_admin_key

__all__ = ["check_api_key", "refuse_admin_key"]
