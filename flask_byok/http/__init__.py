"""Calls out: which addresses keys may be sent to, and the clients that send them there."""

from .addresses import check_personal_base_url
from .outbound import Endpoint, Outbound, endpoint_for, full_url

__all__ = ["Endpoint", "Outbound", "check_personal_base_url", "endpoint_for", "full_url"]
