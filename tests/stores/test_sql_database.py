"""One database as a store uses it."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from flask_byok.errors import StoreError
from flask_byok.storage.breaker import Breaker
from flask_byok.storage.database import Database


def test_an_open_breaker_asks_nobody() -> None:
    """While the breaker is open no call and no change reaches the database; afterwards they do again."""
    now = [0.0]
    database = Database("sqlite://", ())
    database.breaker = Breaker(clock=lambda: now[0])
    reached: list[str] = []

    def call() -> None:
        database.call(lambda: reached.append("call"))

    def change() -> None:
        database.change(
            lambda connection: reached.append(f"{connection.execute(text('SELECT 7')).scalar()}")
        )

    for _ in range(2):
        database.breaker.fault()
    for work in (call, change):
        with pytest.raises(StoreError):
            work()
    assert reached == []
    now[0] += 1.1
    call()
    change()
    assert reached == ["call", "7"]
