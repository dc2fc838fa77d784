"""The admin's page: keys that everybody uses, and teams' keys. Its script calls flask-byok's ``/api/admin/keys``."""

from __future__ import annotations

from flask import Blueprint, render_template
from flask_login import current_user, login_required

from .accounts import TEAMS
from .extensions import byok

bp = Blueprint("shared_keys", __name__)

#: Labels of the owners that a shared key can have.
OWNERS = {"system": "Everybody", **{f"team:{id}": name for id, name in TEAMS.items()}}


@bp.get("/shared-keys")
@login_required  # type: ignore[untyped-decorator]  # Flask-Login ships no types
def index() -> tuple[str, int]:
    """Show the page to admins; flask-byok itself refuses everybody else's calls."""
    if not current_user.admin:
        return render_template("admins_only.html"), 403
    return render_template("shared_keys.html", owners=OWNERS, providers=byok.list_keys()), 200
