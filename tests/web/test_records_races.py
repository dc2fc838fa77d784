"""Many processes, each with the app and a session of its own, at one user's keys at once."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from werkzeug.test import TestResponse

from flask_byok.accounts.store.keys import AccountStore
from flask_byok.storage import engine
from flask_byok.web.caller import get_state
from tests.accounts.test_account_races import exit_code, fork
from tests.app import KEYS, HostApp, make_app
from tests.keeper import OWN, Keeper, accounts_of, close, keeper

from .conftest import MakeHost

PROVIDERS = ("openai", "groq")
ANN = "user:ann"
ALLOWED = {200, 201, 204, 404, 409, 412}


def _make_app(folder: Path, url: str) -> HostApp:
    return make_app(
        folder,
        BYOK_DATABASE_URL=url,
        BYOK_KEYS_PER_PROVIDER=2,
        BYOK_VALIDATE_ON_SET="off",
    )


class Worker:
    """Does random things to Ann's keys, and writes down which requests were acknowledged as changes."""

    def __init__(self, folder: Path, url: str, number: int) -> None:
        self.folder, self.url, self.number = folder, url, number
        self.path = folder / f"acknowledged-{number}"
        self.random = random.Random(number)
        self.keys = self.labels = 0

    def run(self, steps: int) -> None:
        """Do so many things; any answer but success, absence and conflict ends the process."""
        client = keeper(_make_app(self.folder, self.url), "ann")
        calls = [self._create, self._create, self._replace, self._keep, self._promote, self._delete]
        calls += [self._relabel, self._clear]
        with self.path.open("w") as acknowledged:
            for _ in range(steps):
                answer, changed = self.random.choice(calls)(client)
                assert answer.status_code in ALLOWED, answer.text
                if changed:
                    print(answer.headers["X-BYOK-Request-ID"], file=acknowledged, flush=True)

    def _key(self) -> dict[str, str]:
        self.keys += 1
        provider = self.random.choice(PROVIDERS)
        return {"provider": provider, "api_key": f"worker-{self.number}-{self.keys:06}"}

    def _create(self, client: Keeper) -> tuple[TestResponse, bool]:
        answer = client.ask("POST", OWN, self._key())
        return answer, answer.status_code == 201

    def _keep(self, client: Keeper) -> tuple[TestResponse, bool]:
        answer = client.ask("POST", f"{KEYS}/set", {**self._key(), "persist": True})
        return answer, answer.status_code == 200

    def _promote(self, client: Keeper) -> tuple[TestResponse, bool]:
        saved = client.ask("POST", f"{KEYS}/set", self._key())
        assert saved.status_code == 200, saved.text
        on_conflict = self.random.choice(["keep", "replace"])
        answer = client.ask("POST", f"{KEYS}/promote", {"on_conflict": on_conflict})
        return answer, answer.status_code == 200 and bool(answer.get_json()["promoted"])

    def _clear(self, client: Keeper) -> tuple[TestResponse, bool]:
        body = {"provider": self.random.choice(PROVIDERS)}
        answer = client.ask("POST", f"{KEYS}/clear", body)
        return answer, "user" in answer.get_json()["cleared"]

    def _replace(self, client: Keeper) -> tuple[TestResponse, bool]:
        return self._change(client, "PUT", {"api_key": self._key()["api_key"]})

    def _relabel(self, client: Keeper) -> tuple[TestResponse, bool]:
        self.labels += 1  # another each time: what changes nothing is not written
        return self._change(client, "PATCH", {"label": f"by {self.number}: {self.labels}"})

    def _delete(self, client: Keeper) -> tuple[TestResponse, bool]:
        return self._change(client, "DELETE", None)

    def _change(self, client: Keeper, method: str, body: Any) -> tuple[TestResponse, bool]:
        listed = client.get(OWN)
        assert listed.status_code == 200, listed.text
        if not (found := listed.get_json()["keys"]):
            return listed, False
        record = self.random.choice(found)
        seen = {"If_Match": f'"{record["version"]}"'} if self.random.random() < 0.5 else {}
        answer = client.ask(method, f"{OWN}/{record['id']}", body, **seen)
        return answer, answer.status_code in (200, 204)


def _replay(store: AccountStore) -> tuple[Counter[str], dict[str, str | None]]:
    """Follow the log, and return the version and the fingerprint of each key that must be there."""
    versions: Counter[str] = Counter()
    keys: dict[str, str | None] = {}
    places: dict[tuple[str, str], str] = {}
    for entry in sorted(store.audit.entries(ANN, limit=10**6), key=lambda entry: entry.number):
        id, place = entry.credential_id, (entry.provider, entry.slot)
        if not id:
            continue  # of a session
        if entry.action == "clear":
            assert places.pop(place) == id
            del versions[id], keys[id]
            continue
        assert places.setdefault(place, id) == id
        versions[id] += 1
        keys[id] = entry.fingerprint or keys[id]
    return versions, keys


def _race(folder: Path, url: str, steps: int) -> None:
    app = _make_app(folder, url)  # first, so that the tables are there
    accounts_of(app).canary.secret()
    accounts_of(app).engine.dispose()
    workers = [Worker(folder, url, number) for number in range(8)]
    children = [fork(lambda worker=worker: worker.run(steps)) for worker in workers]
    assert [exit_code(child) for child in children] == [0] * 8
    store, keyring = accounts_of(app), get_state(app).service.keyring
    acknowledged = {line for worker in workers for line in worker.path.read_text().split()}
    entries = store.audit.entries(ANN, limit=10**6)
    logged = {entry.request_id for entry in entries if entry.credential_id}
    assert acknowledged == logged
    assert len(acknowledged) > steps
    found = {record.id: record for record in store.find([ANN])}
    versions, keys = _replay(store)
    assert {id: int(record.version) for id, record in found.items()} == dict(versions)
    for id, record in found.items():
        fields, _ = keyring.open_record(ANN, record)
        assert store.canary.fingerprint(fields) == keys[id]
    assert max(Counter(record.provider for record in found.values()).values(), default=0) <= 2
    assert store.audit.verify() == []
    close(app)


def test_eight_processes(postgres_url: str, tmp_path: Path) -> None:
    """On PostgreSQL nothing fails or deadlocks, nothing is there twice, and nothing acknowledged is lost."""
    _race(tmp_path, postgres_url, 25)


def test_eight_processes_on_sqlite(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds on SQLite."""
    # Its writers queue without order, and on a busy machine one may be last for long.
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 60)
    _race(tmp_path, sqlite_url, 8)


@pytest.mark.stress
def test_eight_processes_for_long(database_url: str, tmp_path: Path) -> None:
    """The same holds over thousands of requests."""
    _race(tmp_path, database_url, 500)


def test_creates_at_once_share_the_slots(make_host: MakeHost) -> None:
    """Of simultaneous creates as many succeed as there are free slots, each with its own slot."""
    host = make_host(BYOK_VALIDATE_ON_SET="off", BYOK_KEYS_PER_PROVIDER=3)
    clients = [keeper(host, "ann") for _ in range(4)]
    together = Barrier(4)

    def create(client: Keeper) -> int:
        together.wait()
        body = {"provider": "openai", "api_key": "k-12345678"}
        return client.ask("POST", OWN, body).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(create, clients)) == [201, 201, 201, 409]
    assert sorted(record["slot"] for record in clients[0].records()) == ["", "2", "3"]
    assert all(record["state"] == "active" for record in clients[0].records())


def test_labels_at_once(make_host: MakeHost) -> None:
    """Simultaneous changes without If-Match are all made."""
    host = make_host(BYOK_VALIDATE_ON_SET="off")
    clients, together = [keeper(host, "ann") for _ in range(6)], Barrier(6)
    record = clients[0].keep("k-12345678")

    def change(number: int) -> int:
        together.wait()
        body = {"label": f"by {number}"}
        return clients[number].ask("PATCH", f"{OWN}/{record['id']}", body).status_code

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(change, range(6))) == [200] * 6
    assert clients[0].records()[0]["version"] == 7
