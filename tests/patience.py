"""Time for a busy machine, in tests that are not about being late."""

from __future__ import annotations

import pytest

from flask_byok.stores import sql_engine


def give_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls of the database take 20 seconds where an app gives them less than one."""
    monkeypatch.setattr(sql_engine, "LIMIT", 20)
    limits = "-c lock_timeout=20s -c statement_timeout=20s"
    monkeypatch.setattr(sql_engine, "_SERVER_LIMITS", limits)
