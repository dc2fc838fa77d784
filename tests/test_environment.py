"""The operator's keys, copied out of environment variables and secret files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from flask_byok.accounts import open_accounts
from flask_byok.accounts.environment import Found, Sources, find_keys, store_key
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.catalog import Catalog
from flask_byok.keys.operator import EnvironmentKeys, SecretFileKeys
from flask_byok.keys.session_store import AuditEvent
from flask_byok.model.credential import Secret, utcnow
from flask_byok.model.owner import Tier
from flask_byok.sealing.keyring import Context, Keyring
from flask_byok.sealing.records import new_record
from flask_byok.settings import Settings

KEYRING = Keyring("aa" * 32)
SPECS, SETTINGS = list(Catalog()), Settings()
OPENAI, OTHER, GEMINI = "sk-proj-operators-0001", "sk-proj-operators-0002", "AIza-operators-0003"


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def accounts(request: pytest.FixtureRequest) -> Iterator[AccountStore]:
    """Make an empty database."""
    store = open_accounts(request.getfixturevalue(request.param), KEYRING)
    yield store
    assert store.audit.verify() == []
    store.engine.dispose()


def sources(directory: Path, environ: Mapping[str, str]) -> Sources:
    """Make the operator's places, the files first."""
    return [SecretFileKeys(directory, environ), EnvironmentKeys(environ)]


def find(
    accounts: AccountStore,
    where: Sources,
    owner: str = "system",
    settings: Settings = SETTINGS,
) -> list[Found]:
    """Look for the operator's keys."""
    return list(find_keys(accounts, KEYRING, settings, SPECS, where, owner))


def summary(found: list[Found]) -> list[tuple[str, str, str]]:
    """Return each key's provider, name and kind."""
    return [(each.spec.id, Path(each.name).name, each.kind) for each in found]


def test_new_keys_are_stored(accounts: AccountStore, tmp_path: Path) -> None:
    """A key that was found is stored for the system, sealed, and logged as the command line's import."""
    (found,) = find(accounts, sources(tmp_path, {"OPENAI_API_KEY": OPENAI}))
    assert (found.kind, found.tier, found.hint) == ("new", Tier.ENV, "sk-proj-…0001")
    assert store_key(accounts, KEYRING, Settings(), found, "system")
    (record,) = accounts.find(["system"])
    fields, base_url = KEYRING.open_record("account", "system", record)
    assert (fields["api_key"].reveal(), base_url, record.hint) == (OPENAI, None, found.hint)
    (entry,) = accounts.audit.entries("system")
    assert (entry.event.actor, entry.event.action) == ("cli", "import")
    assert entry.event.fingerprint == accounts.audit.fingerprint(found.fields)


def test_looking_stores_nothing(accounts: AccountStore, tmp_path: Path) -> None:
    """Whoever only looks leaves no trace."""
    find(accounts, sources(tmp_path, {"OPENAI_API_KEY": OPENAI}))
    assert accounts.find(["system"]) == []
    assert accounts.audit.entries() == []


def test_same_and_different(accounts: AccountStore, tmp_path: Path) -> None:
    """What is stored already is told apart from what is stored otherwise; the latter stays unless replaced."""
    (found,) = find(accounts, sources(tmp_path, {"OPENAI_API_KEY": OPENAI}))
    store_key(accounts, KEYRING, Settings(), found, "system")
    assert find(accounts, sources(tmp_path, {"OPENAI_API_KEY": f" {OPENAI}\n"}))[0].kind == "same"
    (other,) = find(accounts, sources(tmp_path, {"OPENAI_API_KEY": OTHER}))
    assert other.kind == "different"
    assert not store_key(accounts, KEYRING, Settings(), other, "system")
    assert accounts.find(["system"])[0].hint.endswith("0001")
    assert store_key(accounts, KEYRING, Settings(), other, "system", replace=True)
    assert accounts.find(["system"])[0].hint.endswith("0002")


def test_every_variable_is_found(accounts: AccountStore, tmp_path: Path) -> None:
    """A second variable of the same provider is found too, and said to come after the first."""
    (tmp_path / "openai_api_key").write_text(f"{OPENAI}\n")
    environ = {"OPENAI_API_KEY": OTHER, "GEMINI_API_KEY": GEMINI, "GOOGLE_API_KEY": GEMINI}
    assert summary(find(accounts, sources(tmp_path, environ))) == [
        ("openai", "openai_api_key", "new"),
        ("openai", "OPENAI_API_KEY", "shadowed"),
        ("google", "GEMINI_API_KEY", "new"),
        ("google", "GOOGLE_API_KEY", "shadowed"),
    ]


def test_unusable_values(accounts: AccountStore, tmp_path: Path) -> None:
    """What cannot be a key, and an admin key, are named and stop no other; nothing of them is repeated."""
    environ = {
        "OPENAI_API_KEY": "sk-admin-far-too-powerful-0001",
        "GROQ_API_KEY": "no key at all",
        "XAI_API_KEY_FILE": str(tmp_path / "nowhere"),
        "GEMINI_API_KEY": "",
        "GOOGLE_API_KEY": GEMINI,
    }
    found = find(accounts, sources(tmp_path, environ))
    assert summary(found) == [
        ("openai", "OPENAI_API_KEY", "unusable"),
        ("google", "GOOGLE_API_KEY", "new"),
        ("groq", "GROQ_API_KEY", "unusable"),
        ("xai", "XAI_API_KEY", "unusable"),
    ]
    assert "admin key" in found[0].problem
    assert not any("powerful" in repr(each) or "no key" in repr(each) for each in found)


def test_admin_key_before_an_ordinary_one(accounts: AccountStore, tmp_path: Path) -> None:
    """A value that may not be stored does not stand before one that may."""
    (tmp_path / "openai_api_key").write_text("sk-admin-far-too-powerful-0001")
    found = find(accounts, sources(tmp_path, {"OPENAI_API_KEY": OPENAI}))
    assert [each.kind for each in found] == ["unusable", "new"]


def test_another_owner(accounts: AccountStore, tmp_path: Path) -> None:
    """The keys can be made a team's, which is another place than the system's."""
    where = sources(tmp_path, {"OPENAI_API_KEY": OPENAI})
    store_key(accounts, KEYRING, Settings(), find(accounts, where, "team:red")[0], "team:red")
    assert find(accounts, where, "team:red")[0].kind == "same"
    assert find(accounts, where)[0].kind == "new"


def test_longest_lifetime(accounts: AccountStore, tmp_path: Path) -> None:
    """BYOK_MAX_KEY_LIFETIME holds for keys that come this way as for any other."""
    settings = Settings(max_key_lifetime=timedelta(days=30))
    (found,) = find(accounts, sources(tmp_path, {"OPENAI_API_KEY": OPENAI}), settings=settings)
    store_key(accounts, KEYRING, settings, found, "system")
    expires_at = accounts.find(["system"])[0].expires_at
    assert expires_at is not None
    assert timedelta(days=29) < expires_at - utcnow() <= timedelta(days=30)


def test_a_key_whose_place_is_gone(accounts: AccountStore, tmp_path: Path) -> None:
    """A key that is to replace one that was deleted meanwhile is not stored where others took the room."""
    (found,) = find(accounts, sources(tmp_path, {"OPENAI_API_KEY": OPENAI}))
    store_key(accounts, KEYRING, SETTINGS, found, "system")
    (other,) = find(accounts, sources(tmp_path, {"OPENAI_API_KEY": OTHER}))
    accounts.clear("system", ["openai"], AuditEvent("cli", "clear"))
    context = Context("account", "system", "openai", "b")
    fields = {"api_key": Secret(GEMINI)}
    accounts.create(
        new_record(KEYRING, context, other.spec, fields, None), AuditEvent("cli", "set")
    )
    assert not store_key(accounts, KEYRING, SETTINGS, other, "system", replace=True)
    assert [record.slot for record in accounts.find(["system"])] == ["b"]


def test_unreadable_stored_key(accounts: AccountStore, tmp_path: Path) -> None:
    """A stored key that does not open counts as a different one."""
    where = sources(tmp_path, {"OPENAI_API_KEY": OPENAI})
    store_key(accounts, KEYRING, Settings(), find(accounts, where)[0], "system")
    (found,) = find_keys(accounts, Keyring("bb" * 32), Settings(), SPECS, where, "system")
    assert found.kind == "different"


def test_stored_key_that_does_not_serve(accounts: AccountStore, tmp_path: Path) -> None:
    """A stored key that has expired is not the same; it can be replaced by one that has not."""
    where = sources(tmp_path, {"OPENAI_API_KEY": OPENAI})
    (found,) = find(accounts, where)
    ended = utcnow() - timedelta(days=1)
    store_key(accounts, KEYRING, SETTINGS, dataclasses.replace(found, expires_at=ended), "system")
    (found,) = find(accounts, where)
    assert (found.kind, found.problem) == ("idle", "expired")
    assert not store_key(accounts, KEYRING, SETTINGS, found, "system")
    assert store_key(accounts, KEYRING, SETTINGS, found, "system", replace=True)
    assert find(accounts, where)[0].kind == "same"
