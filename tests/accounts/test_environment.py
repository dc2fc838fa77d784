"""The operator's keys, copied out of environment variables and secret files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flask_byok.accounts import open_accounts
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.transfer import Copied, Destination, MovedKey, copy_keys
from flask_byok.catalog import Catalog
from flask_byok.keys.operator import EnvironmentKeys, SecretFileKeys
from flask_byok.keys.ports import AuditEvent
from flask_byok.model.credential import Secret, utcnow
from flask_byok.model.owner import Tier
from flask_byok.sealing.keyring import Keyring
from flask_byok.settings import Settings
from tests.worlds import core_on

KEYRING = Keyring("aa" * 32)
OPENAI, OTHER, GEMINI = "sk-proj-operators-0001", "sk-proj-operators-0002", "AIza-operators-0003"


class Copier:
    """Copies keys out of variables and files into a database."""

    def __init__(self, accounts: AccountStore, files: Path) -> None:
        self.accounts = accounts
        self.files = files

    def copy(
        self,
        owner: str = "system",
        environ: Mapping[str, str] | None = None,
        settings: Settings = Settings(),  # noqa: B008  (it never changes)
        keyring: Keyring = KEYRING,
        **options: Any,
    ) -> list[Copied]:
        """Copy the keys of the files, then of these variables: by default one for OpenAI."""
        environ = {"OPENAI_API_KEY": OPENAI} if environ is None else environ
        here = replace(settings, secrets_dir=self.files)
        sources = [SecretFileKeys(here, environ), EnvironmentKeys(here, environ)]
        destination = Destination(*core_on(self.accounts, keyring, Catalog(), settings))
        return list(copy_keys(destination, sources, owner, **options))

    def save(self, api_key: str, slot: str = "", **facts: Any) -> None:
        """Store a key of the system."""
        fields, now = {"api_key": api_key}, utcnow()
        key = MovedKey(
            owner="system", provider="openai", slot=slot, fields=fields, created_at=now, **facts
        )
        Destination(*core_on(self.accounts, KEYRING, Catalog(), Settings())).store(
            key, replace=False
        )

    def stored(self, owner: str = "system") -> dict[str, str]:
        """Return an owner's keys in plain, by provider and slot."""
        return {
            f"{r.provider}/{r.slot}": KEYRING.open_record("account", owner, r)[0][
                "api_key"
            ].reveal()
            for r in self.accounts.find([owner])
        }


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def copier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Copier]:
    """Make an empty database."""
    store = open_accounts(request.getfixturevalue(request.param), KEYRING)
    yield Copier(store, tmp_path)
    assert store.audit.verify() == []
    store.engine.dispose()


def summary(copied: list[Copied]) -> list[tuple[str, str, bool]]:
    """Return each key's place, outcome, and whether the place can be cleared."""
    return [(Path(each.name).name, each.outcome, each.removable) for each in copied]


def test_new_keys_are_stored(copier: Copier) -> None:
    """A key is stored for the system and logged as an import, but not by a dry run; a second run keeps it."""
    planned = copier.copy(dry_run=True)
    assert (copier.stored(), copier.accounts.audit.entries()) == ({}, [])
    (copied,) = copier.copy()
    assert planned == [copied]
    assert summary([copied]) == [("OPENAI_API_KEY", "added", True)]
    assert (copied.tier, copied.hint) == (Tier.ENV, "sk-proj-…0001")
    assert copier.stored() == {"openai/": OPENAI}
    (entry,) = copier.accounts.audit.entries("system")
    assert (entry.event.actor, entry.event.action) == ("cli", "import")
    fields = {"api_key": Secret(OPENAI)}
    assert entry.event.fingerprint == copier.accounts.audit.fingerprint(fields)
    again = copier.copy(environ={"OPENAI_API_KEY": f" {OPENAI}\n"})
    assert summary(again) == [("OPENAI_API_KEY", "kept", True)]


@pytest.mark.parametrize(
    ("api_key", "facts"),
    [
        (OTHER, {}),
        (OPENAI, {"active": False}),
        (OPENAI, {"expires_at": utcnow() - timedelta(days=1)}),
    ],
)
def test_a_key_is_stored_already(copier: Copier, api_key: str, facts: dict[str, Any]) -> None:
    """A stored key that differs or does not serve stays, unless it is to be replaced."""
    copier.save(api_key, **facts)
    assert summary(copier.copy()) == [("OPENAI_API_KEY", "kept", False)]
    assert copier.stored() == {"openai/": api_key}
    (planned,) = copier.copy(replace=True, dry_run=True)
    (copied,) = copier.copy(replace=True)
    assert planned == copied
    assert summary([copied]) == [("OPENAI_API_KEY", "added", True)]
    assert copier.stored() == {"openai/": OPENAI}
    assert summary(copier.copy()) == [("OPENAI_API_KEY", "kept", True)]


def test_every_variable_is_found(copier: Copier) -> None:
    """Of several variables the first is copied; another one can be removed if it holds the same key."""
    (copier.files / "openai_api_key").write_text(f"{OPENAI}\n")
    environ = {"OPENAI_API_KEY": OTHER, "GEMINI_API_KEY": GEMINI, "GOOGLE_API_KEY": GEMINI}
    assert summary(copier.copy(environ=environ)) == [
        ("openai_api_key", "added", True),
        ("OPENAI_API_KEY", "kept", False),
        ("GEMINI_API_KEY", "added", True),
        ("GOOGLE_API_KEY", "kept", True),
    ]
    assert copier.stored() == {"openai/": OPENAI, "google/": GEMINI}


def test_unusable_values(copier: Copier) -> None:
    """A value that cannot be a key, and an admin key, are named and stop no other; nothing of them is repeated."""
    (copier.files / "openai_api_key").write_text("sk-admin-far-too-powerful-0001")
    environ = {
        "OPENAI_API_KEY": OPENAI,
        "GROQ_API_KEY": "no key at all",
        "XAI_API_KEY_FILE": str(copier.files / "nowhere"),
        "GEMINI_API_KEY": "",
        "GOOGLE_API_KEY": GEMINI,
    }
    copied = copier.copy(environ=environ)
    assert summary(copied) == [
        ("openai_api_key", "skipped", False),
        ("OPENAI_API_KEY", "added", True),
        ("GOOGLE_API_KEY", "added", True),
        ("GROQ_API_KEY", "skipped", False),
        ("XAI_API_KEY", "skipped", False),
    ]
    assert "admin key" in copied[0].reason
    assert not any("powerful" in repr(each) or "no key" in repr(each) for each in copied)


@pytest.mark.parametrize("there", [True, False])
def test_no_room(copier: Copier, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key without room is not stored, not even if the one that it was to replace is gone meanwhile."""
    store = Destination.store

    def store_late(self: Destination, key: MovedKey, *, replace: bool) -> None:
        copier.accounts.clear("system", ["openai"], AuditEvent("cli", "clear"))
        monkeypatch.undo()
        copier.save(GEMINI, slot="b")
        store(self, key, replace=replace)

    if there:
        copier.save(OTHER)
        monkeypatch.setattr(Destination, "store", store_late)
    else:
        copier.save(GEMINI, slot="b")
    copied = copier.copy(replace=True)
    assert summary(copied) == [("OPENAI_API_KEY", "skipped", False)]
    assert copier.stored() == {"openai/b": GEMINI}
