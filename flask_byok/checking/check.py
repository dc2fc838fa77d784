"""Ask a provider whether a key is good, and say no more than it said."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from ..catalog import ProviderSpec
from ..errors import ProviderUnavailableError
from ..http import Answer, Endpoint, Outbound
from ..model.credential import Secret, Validation, Verdict, utcnow
from .judge import judge
from .models import read_models
from .shapes import looks_like
from .slots import ALL_CHECKS, CHECKS_OF_ONE, Slots

#: Seconds for all that one check does. Good keys have taken more than five.
CHECK_SECONDS = 10.0
_SLOTS = Slots(ALL_CHECKS, CHECKS_OF_ONE, seconds=CHECK_SECONDS)
# A second try in less time than this cannot end well.
_SHORTEST_TRY = 1.0

_ADMIN_KEY = (
    "This is an admin key, which can do far more than a call needs. "
    "Make an ordinary API key and use that."
)


def check_api_key(
    spec: ProviderSpec,
    fields: Mapping[str, str],
    endpoint: Endpoint,
    outbound: Outbound,
    *,
    list_models: bool = True,
    owner: str | None = None,
) -> Validation:
    """Check a key with a free request to its provider.

    :param fields: the values of the credential's fields by name, already cleaned.
    :param list_models: list the models that a good key may use, in the same time.
    :param owner: who asks. A few checks of people's own servers run at once, for each owner and in all.
    :raises EndpointNotAllowedError: keys may not be sent to this endpoint.
    :raises RateLimitedError: too many checks are running. Every other failure is a verdict.
    """
    # Alive for the length of the check, so that log records are redacted.
    guard = [Secret(fields.get(field.name, "")) for field in spec.fields if field.secret]
    started = time.monotonic()
    check = _Check(spec, fields, endpoint, outbound, ends=started + CHECK_SECONDS)
    with _SLOTS.take(owner) if endpoint.trust == "personal" else nullcontext():
        verdict, reason, answer = check.run()
        latency_ms = round((time.monotonic() - started) * 1000)
        models: tuple[str, ...] = ()
        if list_models and answer is not None and verdict.valid:
            models = check.list_models(answer)
    del guard
    return Validation(spec.id, verdict, reason, utcnow(), latency_ms, models)


def refuse_admin_key(spec: ProviderSpec, fields: Mapping[str, str]) -> Validation | None:
    """Return the verdict on an admin key, None for any other. Its beginning tells, so nothing is called."""
    if not _is_admin_key(spec, fields.get("api_key", "")):
        return None
    return Validation(spec.id, Verdict.ADMIN_KEY_REFUSED, _ADMIN_KEY, utcnow())


def _is_admin_key(spec: ProviderSpec, api_key: str) -> bool:
    return api_key.startswith(spec.refused_prefixes)


@dataclass(frozen=True, slots=True, repr=False)
class _Check:
    spec: ProviderSpec
    fields: Mapping[str, str]
    endpoint: Endpoint
    outbound: Outbound
    ends: float

    def run(self) -> tuple[Verdict, str, Answer | None]:
        """Return verdict, reason, and the answer if it was a success."""
        api_key = self.fields.get("api_key", "")
        if _is_admin_key(self.spec, api_key):
            return Verdict.ADMIN_KEY_REFUSED, _ADMIN_KEY, None
        try:
            answer = self._ask()
        except ProviderUnavailableError as error:
            return Verdict.UNREACHABLE, str(error), None
        verdict, reason = judge(self.spec, answer, self.fields.values())
        other = looks_like(api_key, self.spec) if verdict is Verdict.INVALID else None
        if other is not None:
            reason = f"{self.spec.name} does not know this key: it looks like one for {other.name}."
            return Verdict.WRONG_PROVIDER, reason, None
        return verdict, reason, answer if answer.status == 200 else None

    def _ask(self) -> Answer:
        """Ask, and once more where the provider failed; a refusal is final."""
        try:
            answer = self._check()
            if answer.status < 500 or self._seconds < _SHORTEST_TRY:
                return answer
        except ProviderUnavailableError:
            if self._seconds < _SHORTEST_TRY:
                raise
        return self._check()

    def list_models(self, answer: Answer) -> tuple[str, ...]:
        """Return the models that the key may use, as far as the provider lists them."""
        path = self.spec.check.models_path
        if path is None:
            return ()
        if path != self.spec.check.path:
            try:
                answer = self._fetch("GET", path)
            except ProviderUnavailableError:
                return ()
        return read_models(answer)

    def _check(self) -> Answer:
        return self._fetch(self.spec.check.method, self.spec.check.path)

    def _fetch(self, method: Literal["GET", "POST"], path: str) -> Answer:
        check = self.spec.check
        headers = {**check.headers, **check.auth.headers(self.fields)}
        seconds = max(self._seconds, 0.0)
        return self.outbound.fetch(self.endpoint, method, path, headers, seconds=seconds)

    @property
    def _seconds(self) -> float:
        return self.ends - time.monotonic()
