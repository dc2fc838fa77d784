"""Calls that come from no view: jobs, threads, sockets, commands."""
