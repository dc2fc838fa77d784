"""What everything speaks of: secrets, credentials, owners."""
