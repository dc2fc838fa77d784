"""Commands of the wing: accounts' keys, the audit log, rotation, export."""
