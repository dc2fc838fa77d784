"""Rotation while others write."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, update

from flask_byok.accounts import open_accounts, rotation
from flask_byok.accounts.rotation import Progress, rotate
from flask_byok.keys.ports import AuditEvent
from flask_byok.sealing.keyring import Keyring
from flask_byok.storage.tables import credentials
from tests.accounts.account_kinds import ANN, BEN, event_of, make_record

NEW = Keyring("11" * 32, ["00" * 32])
EVENT = AuditEvent("cli", "rotate")


def test_held_keys_are_taken_up_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody is changing is done once they have, and given up if they never have."""
    monkeypatch.setattr(rotation, "_ROUNDS", 3)
    monkeypatch.setattr(rotation, "_PAUSE", 0.01)
    store = open_accounts(postgres_url, NEW)
    for owner in (ANN, BEN):
        store.create(make_record(owner), event_of())
    engine = create_engine(postgres_url)
    with engine.begin() as other:
        other.execute(update(credentials).where(credentials.c.owner == ANN).values(label="x"))
        held = list(rotate(store, NEW, EVENT))
        assert held[-1] == Progress(total=2, done=1, held=1)
        going_on = rotate(store, NEW, EVENT)
        assert next(going_on) == Progress(total=1, held=1)
        other.commit()
        assert list(going_on)[-1] == Progress(total=1, done=1)
    assert store.seals.count_due() == 0
    engine.dispose()
    store.engine.dispose()
