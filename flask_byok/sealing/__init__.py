"""Cryptography: what seals and opens keys."""
