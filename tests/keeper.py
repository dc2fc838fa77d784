"""The browser of a signed-in user who manages stored keys."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response
from werkzeug.test import TestResponse

from flask_byok.accounts.store.keys import AccountStore
from flask_byok.web.caller import get_state

from .app import Browser

OWN, SHARED = "/api/keys", "/api/admin/keys"


class Keeper(Browser):
    """Sends the requests of a host's settings page to ``/api/keys``."""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> TestResponse:
        """Send a request with the CSRF token; ``If_Match`` is the header ``If-Match``."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            sent["X-CSRFToken"] = self.token
        return self.open(path, method=method, json=body, headers=sent)

    def keep(self, api_key: str, provider: str = "openai", path: str = OWN, **body: Any) -> Any:
        """Store a key without a check, and return its record."""
        body = {"provider": provider, "api_key": api_key, "validate": "off", **body}
        answer = self.ask("POST", path, body)
        assert answer.status_code == 201, answer.text
        return answer.get_json()

    def records(self, path: str = OWN) -> list[Any]:
        """Return all records, page by page."""
        found: list[Any] = []
        cursor = ""
        while cursor is not None:
            answer = self.get(path, query_string={"cursor": cursor} if cursor else {})
            assert answer.status_code == 200, answer.text
            found += answer.get_json()["keys"]
            cursor = answer.get_json()["next"]
        return found


def close(app: Flask) -> None:
    """Write the last counts of uses, then close the connections to the database."""
    service = get_state(app).service
    try:
        service.traffic.flush()
    finally:
        for store in (service.accounts, service.sessions.documents):
            if hasattr(store, "engine"):
                store.engine.dispose()


def keeper(app: Flask, user: str | None) -> Keeper:
    """Return a browser that has loaded the list of keys; without a user it is a visitor's."""
    client = Keeper(app, Response, use_cookies=True)
    if user is not None:
        client.post(f"/sign-in/{user}")
    client.load()
    return client


def accounts_of(app: Flask) -> AccountStore:
    """Return the store of an app's accounts."""
    accounts = get_state(app).service.accounts.store
    assert accounts is not None
    return accounts


def logged(app: Flask, owner: str) -> list[tuple[str, str, str]]:
    """Return actor, action and outcome of each entry in an owner's audit log, oldest first."""
    entries = sorted(accounts_of(app).audit.entries(owner), key=lambda entry: entry.number)
    return [(entry.actor, entry.action, entry.outcome) for entry in entries]
