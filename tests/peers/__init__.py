"""Peers that nobody here wrote: providers' mocks, gateways and clients, as they come from the registries."""
