"""What the wing keeps in the database: keys, their use and the audit log."""
