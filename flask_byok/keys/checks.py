"""Ask providers about keys, and keep what they say beside the very version that it is about."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from ..catalog import ProviderSpec
from ..checking import check_api_key, refuse_admin_key
from ..errors import ByokError, KeyRefusedError
from ..http import Endpoint, Outbound
from ..model.credential import Credential, RecordedVerdict, Validation, Verdict, utcnow
from ..model.owner import Caller, Tier
from ..settings import Settings, ValidateOnSet
from .ports import Accounts
from .sessions import Sessions
from .typed import Typed

_logger = logging.getLogger(__name__)

#: Called with an event's name and safe facts about it, after the event.
Notify = Callable[[str, Mapping[str, Any]], None]


class Checks:
    """Checks keys on behalf of the service, and learns from their real use."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        accounts: Accounts,
        outbound: Outbound,
        notify: Notify,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._accounts = accounts
        self._outbound = outbound
        self._notify = notify

    def before_set(
        self,
        caller: Caller,
        spec: ProviderSpec,
        typed: Typed,
        asked: ValidateOnSet | None,
        *,
        ask: bool = True,
    ) -> Validation | None:
        """Check a key before it is stored, as strictly as asked; None if it is stored unchecked.

        :param ask: off: only recognise admin keys, without a call.
        :raises KeyRefusedError: it must not be stored.
        """
        mode = asked or self._settings.validate_on_set
        if not ask:
            mode = "off"
        elif self._settings.validate_on_set == "require":
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
        verdict = validation.verdict
        self._accounts.note(caller, "validate", spec.id, typed.fields, outcome=verdict)
        self._tell(validation)
        return validation

    def of_stored(self, caller: Caller, spec: ProviderSpec, credential: Credential) -> Validation:
        """Check the key in use, or a stored one, and store the verdict."""
        plain = {name: secret.reveal() for name, secret in credential.fields.items()}
        endpoint = Endpoint(credential.base_url, credential.trust)
        validation = self._ask(caller, spec, plain, endpoint)
        if not credential.id:
            fields, verdict = credential.fields, validation.verdict
            self._accounts.note(caller, "validate", spec.id, fields, outcome=verdict)
        self._record(caller, credential, validation.verdict, validation.checked_at, asked=True)
        self._tell(validation)
        return validation

    def reporter(self, caller: Caller, credential: Credential) -> Callable[[Verdict], None]:
        """Return what a provider object calls when its provider refuses the key in real traffic."""

        def report(verdict: Verdict) -> None:
            with suppress(ByokError):  # the person hears of the refusal; only the mark is missing
                self._record(caller, credential, verdict, utcnow())
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

    def _record(
        self,
        caller: Caller,
        credential: Credential,
        verdict: Verdict,
        checked_at: datetime,
        *,
        asked: bool = False,
    ) -> None:
        """Store a verdict beside the version of the key that it is about; the operator's own keys have none."""
        if credential.version is None:
            return
        recorded = RecordedVerdict(verdict, checked_at, credential.version)
        if credential.id:
            self._accounts.record_verdict(credential, recorded, caller if asked else None)
        elif caller.session is not None and credential.source == Tier.SESSION:
            self._sessions.record_verdict(caller.session, credential.provider, recorded)
