"""Where records are kept: Redis, SQL, and what keeps a fault from spreading."""
