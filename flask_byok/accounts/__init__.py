"""The wing of accounts: keys of users, teams and the system in a database, and what is done with them there."""
