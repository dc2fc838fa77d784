"""flask-byok over HTTP: the blueprint, its guards, the session binding, streams, and the settings pages."""
