"""Ask providers about keys, and keep what they say beside the very version that it is about."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..catalog import ProviderSpec
from ..checking import check_api_key, refuse_admin_key
from ..errors import ByokError, KeyNotFoundError, KeyRefusedError
from ..http import Endpoint, Outbound
from ..model.credential import Credential, RecordedVerdict, Validation, Verdict, utcnow
from ..model.owner import Caller, Tier
from ..settings import Settings, ValidateOnSet
from .journal import Journal, Subject
from .session_store import AuditEvent
from .sessions import Sessions
from .typed import Typed

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore

_logger = logging.getLogger(__name__)

#: Called with an event's name and safe facts about it, after the event.
Notify = Callable[[str, Mapping[str, Any]], None]


class Verdicts:
    """Checks keys on behalf of the service, and learns from their real use."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        accounts: AccountStore | None,
        outbound: Outbound,
        journal: Journal,
        notify: Notify,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._accounts = accounts
        self._outbound = outbound
        self._journal = journal
        self._notify = notify

    def before_set(
        self, caller: Caller, spec: ProviderSpec, typed: Typed, asked: ValidateOnSet | None
    ) -> Validation | None:
        """Check a key that is to be stored, as strictly as asked; None where it is stored unseen.

        :raises KeyRefusedError: it must not be stored.
        """
        mode = asked or self._settings.validate_on_set
        if self._settings.validate_on_set == "require":
            mode = "require"  # the operator's rule; a request may ask for more, not for less
        fields = typed.revealed()
        validation = refuse_admin_key(spec, fields)
        if mode != "off":
            validation = self._ask(caller, spec, fields, typed.endpoint)
        if validation is None:
            return None
        if validation.valid is False or (mode == "require" and validation.valid is None):
            raise KeyRefusedError(validation, provider=spec.id)
        return validation

    def of_typed(self, caller: Caller, spec: ProviderSpec, typed: Typed) -> Validation:
        """Check a key as typed; nothing is stored."""
        validation = self._ask(caller, spec, typed.revealed(), typed.endpoint)
        subject, outcome = Subject(spec.id), validation.verdict
        self._journal.note(caller, "validate", subject, typed.fields, outcome)
        self._tell(validation)
        return validation

    def of_stored(self, caller: Caller, spec: ProviderSpec, credential: Credential) -> Validation:
        """Check the key in use, or a stored one, and store the verdict."""
        fields = {name: secret.reveal() for name, secret in credential.fields.items()}
        endpoint = Endpoint(credential.base_url, credential.trust)
        validation = self._ask(caller, spec, fields, endpoint)
        verdict, checked_at = validation.verdict, validation.checked_at
        if credential.id:
            event = None  # a visitor, who may check a shared key, has no name in the log
            if caller.authenticated:
                event = self._journal.event(caller, "validate", credential.fields, verdict)
            self._note_in_account(credential, verdict, checked_at, event)
        else:
            subject = Subject(spec.id)
            self._journal.note(caller, "validate", subject, credential.fields, verdict)
            self._note(caller, credential, verdict, checked_at)
        self._tell(validation)
        return validation

    def reporter(self, caller: Caller, credential: Credential) -> Callable[[Verdict], None]:
        """Return what a provider object calls when its provider refuses the key in real traffic."""

        def report(verdict: Verdict) -> None:
            with suppress(ByokError):  # the person hears of the refusal; only the mark is missing
                self._note(caller, credential, verdict, utcnow())
            facts = {"provider": credential.provider, "source": str(credential.source)}
            try:
                self._notify("key_rejected", facts)
            except Exception as error:  # the provider's own error goes on
                kind = f"{type(error).__module__}.{type(error).__qualname__}"
                _logger.error("A receiver of the signal key_rejected raised %s.", kind)

        return report

    def _ask(
        self, caller: Caller, spec: ProviderSpec, fields: Mapping[str, str], endpoint: Endpoint
    ) -> Validation:
        return check_api_key(spec, fields, endpoint, self._outbound, owner=caller.counted_as)

    def _tell(self, validation: Validation) -> None:
        facts = {"provider": validation.provider, "verdict": validation.verdict.value}
        self._notify("key_validated", facts)

    def _note(
        self, caller: Caller, credential: Credential, verdict: Verdict, checked_at: datetime
    ) -> None:
        if credential.id:
            self._note_in_account(credential, verdict, checked_at)
            return
        session = caller.session
        if session is None or credential.source != Tier.SESSION or credential.version is None:
            return
        recorded = RecordedVerdict(verdict, checked_at, credential.version)
        self._sessions.record_verdict(session, credential.provider, recorded)

    def _note_in_account(
        self,
        credential: Credential,
        verdict: Verdict,
        checked_at: datetime,
        event: AuditEvent | None = None,
    ) -> None:
        if self._accounts is None or credential.version is None:
            return
        recorded = RecordedVerdict(verdict, checked_at, credential.version)
        with suppress(KeyNotFoundError):  # deleted while its provider was asked
            self._accounts.record_verdict(credential.id, credential.version, recorded, event)
            return
        if event is not None:
            subject = Subject(credential.provider, id=credential.id)
            self._accounts.audit.note(credential.owner, event, subject)
