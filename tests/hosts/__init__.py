"""Hosts on other frameworks and behind other servers, as the documentation shows them."""
