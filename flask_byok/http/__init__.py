"""Calls out: which addresses keys may be sent to, and the clients that send them there."""

from .endpoints import Endpoint, check_personal_base_url, endpoint_for
from .outbound import Answer, Outbound, default_outbound, network_fault

__all__ = [
    "Answer",
    "Endpoint",
    "Outbound",
    "check_personal_base_url",
    "default_outbound",
    "endpoint_for",
    "network_fault",
]
