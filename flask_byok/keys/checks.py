"""Ask providers about keys, and keep each verdict beside the very version that it is about."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from .. import metrics
from ..catalog.endpoints import told
from ..catalog.models import read_models
from ..catalog.paste import looks_like, refuse_admin_key
from ..catalog.spec import ProviderSpec
from ..catalog.verdicts import Answer, Judgement, judge, judged
from ..errors import (
    ByokError,
    KeyRefusedError,
    ProviderUnavailableError,
    RateLimitedError,
    StoreError,
)
from ..http.outbound import Outbound, full_url, request_about
from ..model.credential import Credential, RecordedVerdict, Validation, Verdict, utcnow
from ..model.owner import PERSONAL_TIERS, Caller, Tier
from ..settings import ValidateOnSet
from .faults import PASSING, reason_of
from .typed import NewKey, Typed, require_word

if TYPE_CHECKING:
    from .save import Destination
    from .service import Service

_logger = logging.getLogger(__name__)

#: Called with an event's name and safe facts about it, after the event.
Notify = Callable[[str, Mapping[str, Any]], None]

#: Seconds for all that one check does. Good keys have taken more than five.
CHECK_SECONDS = 10.0

#: Seconds between two second opinions on the same key.
PAUSE = 30.0
#: Seconds from the first refusal of a shared key to the first second opinion: a check at once would meet the same
#: passing fault of a gateway.
LATER = 10.0
# Of how many keys it is remembered when the next second opinion is due.
_MOST_REFUSED = 10_000
_REMEMBERED = 86_400.0

_NEEDS_KEY = (
    "This server wants an API key. Type the one that it was started with, or that it gave you."
)
_ADD_V1 = "The server answers one level below this address. Add /v1 to the end of the base URL."
# At the end of a base URL that names its version.
_VERSION = re.compile(r"/v\d+\w*$")


@dataclass(frozen=True, eq=False, repr=False)
class Check:
    """One check of a key, with a free request to its provider that lasts ``CHECK_SECONDS`` at most.

    :param owner: who asks. Checks of people's own servers are limited, for each owner and in all.
    :param known: providers whose keys it may be instead, beside those that ship with the package.
    """

    spec: ProviderSpec
    typed: Typed
    outbound: Outbound
    owner: str | None = None
    known: Iterable[ProviderSpec] = ()
    started: float = field(default_factory=time.monotonic)

    def validation(self) -> Validation:
        """Return what the provider says, with the models that a good key may use.

        :raises EndpointNotAllowedError: keys may not be sent to this endpoint.
        :raises RateLimitedError: too many checks are running. Every other failure is a verdict.
        """
        if found := refuse_admin_key(self.spec, self.typed.fields):
            return found
        (verdict, _, reason), answer = self._judge()
        latency_ms = round((time.monotonic() - self.started) * 1000)
        models = self._models(answer) if answer and verdict.valid else ()
        return Validation(self.spec.id, verdict, reason, utcnow(), latency_ms, models)

    def _judge(self) -> tuple[Judgement, Answer | None]:
        """Return what the provider's answer means, and the answer if it was a success."""
        spec, fields = self.spec, self.typed.revealed()
        try:
            if spec.check.ask is not None:
                verdict, reason = spec.check.ask(fields, self._fetch_plain)
                return judged(spec, verdict, "", "check", reason), None
            answer = self._ask()
        except ProviderUnavailableError as error:
            return Judgement(Verdict.UNREACHABLE, error.code, str(error)), None
        found = self._explained(judge(spec, answer, "check", fields))
        other = looks_like(fields.get("api_key", ""), spec, self.known)
        if found.verdict is Verdict.INVALID and other is not None:
            reason = f"{spec.name} does not know this key: it looks like one for {other.name}."
            return Judgement(Verdict.WRONG_PROVIDER, found.kind, reason), None
        return found, answer if answer.status == 200 else None

    def _explained(self, judged: Judgement) -> Judgement:
        """Say what is wrong with a person's own server, as far as another request tells."""
        endpoint = self.typed.endpoint
        if judged.verdict is Verdict.INVALID and "api_key" not in self.typed.fields:
            return judged._replace(reason=_NEEDS_KEY)
        may_be_below = endpoint.trust == "personal" and not _VERSION.search(endpoint.base_url)
        if judged.verdict is Verdict.UNCHECKED and may_be_below:
            with suppress(ProviderUnavailableError, RateLimitedError):
                answer = self._fetch(f"/v1{self.spec.check.path}")
                if judge(self.spec, answer, "check").verdict is not Verdict.UNCHECKED:
                    return judged._replace(reason=_ADD_V1)
        return judged

    def _ask(self) -> Answer:
        """Ask, and once more if the provider failed; a refusal is final."""
        check = self.spec.check
        with suppress(ProviderUnavailableError):
            answer = self._fetch(check.path, check.method, check.body)
            if answer.status < 500:
                return answer
        return self._fetch(check.path, check.method, check.body)

    def _models(self, answer: Answer) -> tuple[str, ...]:
        """Return the models that the key may use, if the provider lists them."""
        path = self.spec.check.models_path
        with suppress(ProviderUnavailableError, RateLimitedError):
            if path is not None:
                same = path == self.spec.check.path
                return read_models(answer if same else self._fetch(path))
        return ()

    def _fetch(self, path: str, method: str = "GET", body: str = "") -> Answer:
        fields, content = self.typed.revealed(), body.encode()
        url, headers = request_about(self.spec, self.typed.endpoint, fields, path, method, content)
        return self._send(url, headers, method=method, content=content)

    def _fetch_plain(self, url: str) -> Answer:
        """Make a GET that carries nothing of the key."""
        return self._send(full_url(self.spec, self.typed.endpoint, url), {})

    def _send(self, url: str, headers: Mapping[str, str], **request: Any) -> Answer:
        left = self.started + CHECK_SECONDS - time.monotonic()
        endpoint, owner = self.typed.endpoint, self.owner
        return self.outbound.fetch(endpoint, url, headers, seconds=left, owner=owner, **request)


@dataclass(eq=False)
class Checks:
    """Checks keys for the service, and marks those that providers reject in real calls."""

    core: Service
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        #: When a refusal of a key leads to a second opinion, by provider, owner and version.
        self._due: dict[tuple[str, str, str | None], float] = {}

    def before_set(
        self, caller: Caller, spec: ProviderSpec, typed: Typed, new: NewKey, to: Destination
    ) -> Validation | None:
        """Check a key before it is stored, as strictly as asked; None if it is stored unchecked.

        An imported key is not sent to its provider: only an admin key is recognised.

        :param to: logs that the check forbade storing the key.
        :raises InvalidFieldError: ``new.validate`` is another word.
        :raises KeyRefusedError: it must not be stored.
        """
        mode = new.validate or self.core.settings.validate_on_set
        require_word(mode, "validate", get_args(ValidateOnSet))
        if self.core.settings.validate_on_set == "require":
            mode = "require"  # the operator's rule; a request may ask for more, not for less
        if new.imported or mode == "off":
            validation = refuse_admin_key(spec, typed.fields)
        else:
            validation = self._ask(caller, spec, typed)
        forbidden = (False, None) if mode == "require" else (False,)
        if validation and validation.valid in forbidden:
            to.refused(typed, validation.verdict)
            raise KeyRefusedError(validation, provider=spec.id)
        return validation

    def _ask(self, caller: Caller, spec: ProviderSpec, key: Typed | Credential) -> Validation:
        typed = Typed.of(key) if isinstance(key, Credential) else key
        core, owner, spec = self.core, caller.counted_as, told(spec, typed.fields)
        found = Check(spec, typed, core.outbound, owner, core.catalog).validation()
        metrics.record("checks", 1, spec.id, found.verdict)
        return found

    def validate(self, caller: Caller, spec: ProviderSpec, key: Typed | Credential) -> Validation:
        """Check a key as typed, or the one in use or a stored one, whose verdict is stored."""
        validation = self._ask(caller, spec, key)
        verdict = validation.verdict
        if isinstance(key, Typed) or not key.id:
            self.core.accounts.note(caller, "validate", spec.id, key.fields, outcome=verdict)
        if isinstance(key, Credential):
            self._record(caller, key, validation, asked=True)
        self.core.notify("key_validated", {"provider": spec.id, "verdict": verdict.value})
        return validation

    def of_traffic(self, caller: Caller, credential: Credential, judged: Judgement) -> None:
        """Take in what a failed call tells about its key.

        A refusal marks a shared key, or one at an address that is not the catalog's, only if a check agrees: a passing
        fault of a gateway would lock out everybody who uses it. A check of a shared key waits for a refusal ``LATER``
        seconds after the first, and the key serves meanwhile; with ``rejected`` in ``BYOK_FALLBACK_ON`` the next call
        is for another key, so it waits for none.
        """
        verdict = PASSING.get(judged.kind)
        if judged.verdict.valid is False:
            verdict = self._agreed(caller, credential, judged.verdict)
        elif reason_of(verdict) not in self.core.settings.fallback_on:
            return
        if verdict is None:
            return
        found = Validation(credential.provider, verdict, "", utcnow())
        with suppress(ByokError):  # the person sees the call's own error; only the mark is missing
            self._record(caller, credential, found, asked=False)
        if verdict.valid is False:
            self.tell_rejected(credential)

    def _agreed(self, caller: Caller, credential: Credential, verdict: Verdict) -> Verdict | None:
        """Return a refusal's verdict; that of a second opinion where one is needed, None if it does not agree."""
        shared = credential.source not in PERSONAL_TIERS
        if not shared and credential.trust == "catalog":
            return verdict
        waits = shared and "rejected" not in self.core.settings.fallback_on
        if not self._is_due(credential, LATER if waits else 0.0):
            return None
        with suppress(ByokError):
            spec = self.core.catalog.get(credential.provider)
            found = self._ask(caller, spec, credential)
            return found.verdict if found.valid is False else None
        return None

    def _is_due(self, credential: Credential, later: float) -> bool:
        """Return True if this refusal of a key leads to a second opinion.

        :param later: seconds from the first refusal, which is forgotten after a day.
        """
        now, who = self.clock(), (credential.provider, credential.owner, credential.version)
        due = self._due.pop(who, None)
        if due is None or now > due + _REMEMBERED:
            due = now + later
        self._due[who] = now + PAUSE if now >= due else due
        while len(self._due) > _MOST_REFUSED:
            self._due.pop(next(iter(self._due)), None)
        return now >= due

    def tell_rejected(self, credential: Credential) -> None:
        """Tell the host that a provider rejected a key."""
        facts = {"provider": credential.provider, "source": str(credential.source)}
        metrics.record("refusals", 1, *facts.values())
        try:
            self.core.notify("key_rejected", facts)
        except Exception as error:  # the provider's own error goes on
            _logger.error("A receiver of the signal key_rejected raised %s.", type(error).__name__)

    def _record(
        self, caller: Caller, credential: Credential, found: Validation, *, asked: bool
    ) -> None:
        """Store a verdict beside the version of the key that it is about; of the operator's own keys passing faults."""
        if credential.version is None:
            if self.core.settings.fallback_on:
                self.core.faults.note(credential, found.verdict)
            return
        recorded = RecordedVerdict(found.verdict, found.checked_at, credential.version)
        if credential.id:
            self.core.accounts.record_verdict(credential, recorded, caller if asked else None)
        elif caller.session is not None and credential.source == Tier.SESSION:
            with suppress(StoreError):  # the answer is the verdict itself
                self.core.sessions.record_verdict(caller.session, credential.provider, recorded)
