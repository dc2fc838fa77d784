"""The wing of accounts: keys of users, teams and the system, kept in a database beyond the session."""
