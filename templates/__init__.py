"""Hold the dialog's Jinja templates, shipped as ``flask_byok.templates``."""
