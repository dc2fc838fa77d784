"""How many checks run at once."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import pytest

from flask_byok.catalog import Catalog
from flask_byok.checking import check, check_api_key
from flask_byok.checking.slots import Slots
from flask_byok.errors import RateLimitedError
from flask_byok.http import Endpoint, Outbound
from flask_byok.model.credential import Validation
from flask_byok.testing import FakeProviders
from tests.patience import soon


def test_an_owner_has_a_few_and_all_have_some() -> None:
    """The third of one owner and the fifth of all are refused; what has ended counts no more."""
    slots = Slots(4, 2, seconds=10)
    with ExitStack() as running:
        for owner in ("a", "a", "b", None):
            running.enter_context(slots.take(owner))
        for owner in ("a", "c", None):
            with pytest.raises(RateLimitedError) as caught, slots.take(owner):
                pass
            assert caught.value.retry_after == 10
    for owner in ("a", "b"):
        with slots.take(owner), slots.take(owner):
            pass
        with (
            pytest.raises(RateLimitedError),
            slots.take(owner),
            slots.take(owner),
            slots.take(owner),
        ):
            pass
    assert not slots._running


def test_a_check_that_fails_gives_its_slot_back() -> None:
    """An error inside frees the slot."""
    slots = Slots(1, 1, seconds=10)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"), slots.take("a"):
            raise ValueError("x")


def test_a_slow_server_of_ones_own_does_not_keep_all_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of many checks of a person's dripping server two run; other people and providers are not kept."""
    monkeypatch.setattr(check, "CHECK_SECONDS", 1.0)
    outcomes: list[Any] = []

    def run(trust: Any, owner: str) -> None:
        endpoint = Endpoint(fake.hostile_url("slow_body"), trust)
        fields = {"api_key": "key-0123456789", "base_url": endpoint.base_url}
        try:
            outcomes.append(check_api_key(spec, fields, endpoint, outbound, owner=owner))
        except RateLimitedError as error:
            outcomes.append(error)

    spec, outbound = Catalog().get("custom"), Outbound(allow_private=True)
    with FakeProviders() as fake:
        threads = [threading.Thread(target=run, args=("personal", "me")) for _ in range(6)]
        threads += [threading.Thread(target=run, args=("personal", "you"))]
        threads += [threading.Thread(target=run, args=("operator", "me")) for _ in range(3)]
        with soon():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len([made for made in outcomes if isinstance(made, RateLimitedError)]) == 4
    assert len([made for made in outcomes if isinstance(made, Validation)]) == 6
