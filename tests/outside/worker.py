"""The jobs of the documentation's example, and one that does not say whose keys it means."""

from __future__ import annotations

from jobs import app, byok, celery

from tests.outside.calls import tried


@celery.task(name="tried")
def tried_in_celery() -> dict[str, str]:
    """Make each call in a job that says nothing."""
    with app.app_context():
        return tried(byok)


def tried_in_rq() -> dict[str, str]:
    """Make each call in a job that says nothing."""
    with app.app_context():
        return tried(byok)
