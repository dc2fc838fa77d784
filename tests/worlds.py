"""A service on real parts, without Flask: a SQLite file, fake providers, the operator's own environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from flask_byok.accounts.store import AuditEvent
from flask_byok.accounts.store.keys import AccountStore
from flask_byok.accounts.wing import Wing, open_accounts
from flask_byok.catalog import Catalog, ProviderSpec
from flask_byok.http import Endpoint, Outbound
from flask_byok.keys.operator import OperatorKeys
from flask_byok.keys.save import new_record
from flask_byok.keys.service import Service
from flask_byok.keys.sessions import Sessions
from flask_byok.keys.typed import NewKey, Typed
from flask_byok.model.credential import CredentialRecord, Secret, Validation
from flask_byok.model.owner import Caller, SessionRef
from flask_byok.sealing.keyring import Context, Keyring, generate_encryption_key
from flask_byok.settings import Settings
from flask_byok.storage.rates import RateLimiter
from flask_byok.storage.sql import SqlDocuments
from flask_byok.testing import FakeProviders

#: An operator's keys, which nobody may see.
ENV_KEY, SECRET_KEY = "sk-proj-operators-ENVCANARY-0001", "sk-proj-operators-FILECANARY-0002"


@dataclass
class World:
    """One app's parts, and what a test does to them."""

    directory: Path
    fake: FakeProviders
    config: Mapping[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    keyring: Keyring = field(default_factory=lambda: Keyring(generate_encryption_key()))
    catalog: Catalog = field(default_factory=Catalog)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    #: A store for sessions to use instead of the database.
    other_store: Any = None
    #: Where sessions and accounts are kept; a file in the directory where it is left out.
    database_url: str = ""

    def __post_init__(self) -> None:
        url = self.database_url or f"sqlite:///{self.directory / 'byok.sqlite'}"
        self.documents = SqlDocuments(url)
        config = {"BYOK_BASE_URLS": self.fake.base_urls, "BYOK_SECRETS_DIR": str(self.directory)}
        self.settings = Settings.from_config(config | dict(self.config), {})
        self.accounts = open_accounts(self.documents.engine, self.keyring, tolerant=True)
        lifetimes = {"ttl": timedelta(hours=1), "max_age": timedelta(days=1)}
        self.store = Sessions(self.documents, **lifetimes, over=self.accounts.over)
        self.service = self._make_service()

    def with_keyring(self, keyring: Keyring) -> World:
        """Return the same world after the operator has changed the encryption keys."""
        return dataclasses.replace(self, keyring=keyring)

    def with_config(self, **config: Any) -> World:
        """Return the same world after the operator has changed settings."""
        return dataclasses.replace(self, config={**self.config, **config})

    def secret_file(self, name: str, content: str) -> None:
        """Mount a secret file."""
        (self.directory / name).write_text(content)

    def caller(self, user: str | None = None, sid: str = "sid-1", **facts: Any) -> Caller:
        """Return somebody with an established session."""
        session = SessionRef(sid, self.store.establish(sid))
        return Caller(user=user, session=session, address="192.0.2.1", **facts)

    def set(
        self, caller: Caller, api_key: str, provider: str = "openai", **options: Any
    ) -> tuple[dict[str, Any], Validation | None]:
        """Set a key as typed."""
        new = NewKey(fields={"api_key": Secret(api_key)}, **options)
        return self.service.set(caller, provider, new)

    def status(self, caller: Caller, provider: str = "openai") -> dict[str, Any]:
        """Return what the list says of one provider."""
        rows = self.service.get(caller)["providers"]
        return next(row for row in rows if row["provider"] == provider)

    def record(self, caller: Caller, provider: str = "openai") -> CredentialRecord:
        """Return what lies in the store."""
        assert caller.session is not None
        # Without the accounts' word on what is over.
        stored = Sessions(self.documents, ttl=timedelta(hours=1), max_age=timedelta(days=1))
        return stored.read(caller.session, caller.identity, [provider]).records[provider]

    def tamper(self, caller: Caller, provider: str = "openai", **changes: Any) -> None:
        """Change what lies in the store, as somebody could who can write there."""
        assert caller.session is not None
        changed = dataclasses.replace(self.record(caller, provider), **changes)
        self.store.write(caller.session, caller.identity, changed)

    def keep(
        self, owner: str, api_key: str, provider: str = "openai", slot: str = "", **facts: Any
    ) -> CredentialRecord:
        """Store a key in the database for an owner, as an admin does for teams and the system."""
        spec = self.catalog.get(provider)
        context = Context("account", owner, spec.id, slot)
        fields = {"api_key": Secret(api_key)}
        typed = Typed(fields, fields, None, Endpoint(spec.base_url, "catalog"))
        record = new_record(self.keyring, context, spec, typed, NewKey(fields=fields, **facts))
        return self.accounts.put(record, AuditEvent("cli", "set"))

    def logged(self, owner: str) -> list[tuple[str, str, str]]:
        """Return actor, action and outcome of what the audit log has in an owner's chain, oldest first."""
        entries = sorted(self.accounts.audit.entries(owner), key=lambda entry: entry.number)
        return [(e.actor, e.action, e.outcome) for e in entries]

    def names(self) -> list[str]:
        """Return the names of the events so far."""
        return [name for name, _ in self.events]

    def _make_service(self) -> Service:
        sessions, wing = self.store, Wing(self.accounts, self.keyring, self.settings)
        if self.other_store is not None:
            sessions = dataclasses.replace(self.other_store, over=wing.over)
        return Service(
            settings=self.settings,
            catalog=self.catalog,
            keyring=self.keyring,
            sessions=sessions,
            accounts=wing,
            outbound=Outbound(allow_private=self.settings.allow_private_endpoints),
            operator=OperatorKeys(self.settings, self.environ),
            validate_limit=RateLimiter(self.settings.validate_rate, setting="VALIDATE"),
            set_limit=RateLimiter(self.settings.set_rate, setting="SET"),
            notify=lambda name, facts: self.events.append((name, dict(facts))),
        )


def registered(*specs: ProviderSpec) -> Catalog:
    """Return the catalog with a host's own providers."""
    catalog = Catalog()
    for spec in specs:
        catalog.register(spec)
    return catalog


def core_on(
    accounts: AccountStore, keyring: Keyring, catalog: Catalog, settings: Settings
) -> tuple[Service, Wing]:
    """Return a service on this database of accounts, with sessions in memory, and its wing."""
    lifetime, wing = timedelta(hours=1), Wing(accounts, keyring, settings)
    documents = SqlDocuments("sqlite://")
    sessions = Sessions(documents, ttl=lifetime, max_age=lifetime, over=wing.over)
    limit = RateLimiter("20/minute", setting="X")
    service = Service(
        settings=settings,
        catalog=catalog,
        keyring=keyring,
        sessions=sessions,
        accounts=wing,
        outbound=Outbound(),
        operator=OperatorKeys(settings, {}),
        validate_limit=limit,
        set_limit=limit,
        notify=lambda *_: None,
    )
    return service, wing
