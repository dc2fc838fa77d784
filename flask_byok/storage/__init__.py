"""Stores on Redis and SQL, and the parts that keep a fault from spreading."""
