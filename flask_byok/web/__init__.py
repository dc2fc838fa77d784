"""What of flask-byok is spoken over HTTP: the blueprint, its guards, the session binding, streams, the dialog."""
