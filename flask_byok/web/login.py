"""Flask-Login, where the host uses it: who is signed in, whether just now, and when they sign out."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from flask import Flask, current_app


def signed_in_user() -> str | None:
    """Return the id of Flask-Login's user; None for a visitor, and where it is not in use."""
    if not hasattr(current_app, "login_manager"):
        return None
    from flask_login import current_user

    return str(current_user.get_id()) if current_user.is_authenticated else None


def is_login_fresh() -> bool:
    """Say whether Flask-Login's user has just signed in; where it is not in use, nobody knows."""
    if not hasattr(current_app, "login_manager"):
        return False
    from flask_login import login_fresh

    return bool(login_fresh())


def at_sign_out(app: Flask, act: Callable[[], None]) -> None:
    """Call this whenever Flask-Login signs somebody out of the app."""
    if find_spec("flask_login") is None:
        return
    from flask_login import user_logged_out

    def on_logged_out(sender: Flask, **extra: Any) -> None:
        act()

    user_logged_out.connect(on_logged_out, app, weak=False)
    # Else the signal, which is everybody's, would keep what belongs to an app that is gone.
    weakref.finalize(app, user_logged_out.disconnect, on_logged_out)
