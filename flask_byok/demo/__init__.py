"""A small chat app, written as any host of flask-byok would be: ``python -m flask_byok.demo``."""
