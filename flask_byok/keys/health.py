"""Tell if keys can be found here, without a key and without a session."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypedDict

from ..errors import ConfigurationError, OutdatedTablesError, StoreError
from ..model.owner import Tier

if TYPE_CHECKING:
    from .service import Service

#: Seconds for which each process gives an answer again, so that strangers who ask cause no load on the stores.
KEPT = 1.0

Status = Literal["ok", "degraded", "down"]
StoreState = Literal["ok", "unavailable", "outdated", "wrong_key"]


class HealthFacts(TypedDict):
    """The state of the stores, and if keys can be found."""

    status: Status
    stores: dict[Literal["sessions", "accounts"], StoreState]


class Health:
    """Asks the stores at most once in ``KEPT`` seconds; who asks meanwhile gets the last answer.

    ``down``: looking up a key fails here. ``degraded``: a store does not answer, and ``BYOK_ON_STORE_FAILURE`` is
    ``skip``, so that the keys in the others still serve.
    """

    def __init__(self, core: Service) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._facts: HealthFacts = {"status": "down", "stores": {}}
        self._until = 0.0

    def look(self) -> HealthFacts:
        """Return the present state. While one caller waits for a frozen store the others do not."""
        if not self._lock.acquire(blocking=self._until == 0.0):  # the first answer is waited for
            return self._facts
        try:
            if time.monotonic() >= self._until:
                self._facts = self._ask()
                self._until = time.monotonic() + KEPT
            return self._facts
        finally:
            self._lock.release()

    def _ask(self) -> HealthFacts:
        core = self._core
        stores: dict[Literal["sessions", "accounts"], StoreState] = {}
        if Tier.SESSION in core.settings.precedence:
            stores["sessions"] = _state(core.sessions.probe)
        if core.accounts.tiers:
            stores["accounts"] = _state(core.accounts.probe)
        faults = set(stores.values()) - {"ok"}
        skipped = faults <= {"unavailable"} and core.settings.on_store_failure == "skip"
        status: Status = "ok" if not faults else "degraded" if skipped else "down"
        return {"status": status, "stores": stores}


def _state(probe: Callable[[], None]) -> StoreState:
    try:
        probe()
    except StoreError:
        return "unavailable"
    except OutdatedTablesError:
        return "outdated"
    except ConfigurationError:
        return "wrong_key"
    return "ok"
