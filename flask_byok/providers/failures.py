"""What a failed call means, in our own words: SDKs' errors hold the request and its key."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..catalog import ProviderSpec, Rule
from ..errors import CredentialError, ProviderUnavailableError, RejectedCredentialError
from ..http import network_fault
from ..model.credential import Credential, Verdict

_logger = logging.getLogger(__name__)

# Statuses that mean the same in every answer. Of any other, only a rule that names a code or words is
# taken: in a chat, a 400 or 403 has many causes beside the key.
_PLAIN_STATUSES = frozenset({401, 402, 429})

# What an error in a stream means, which has begun with 200: Anthropic's types, OpenAI's codes.
_STATUS_OF_NAME = {
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "api_error": 500,
    "overloaded_error": 529,
    "invalid_api_key": 401,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "service_unavailable": 503,
}

_IN_GENERAL = {
    400: "{name} did not accept this request. Check the model and the messages.",
    402: "The account at {name} has no credit left. Add credit there, or use another key.",
    403: "{name} does not allow this call. Check the key's permissions and your account.",
    404: "{name} does not know this model. Choose another one.",
    413: "The conversation is too long for {name}. Begin a new one.",
    429: "{name} is getting too many calls with this key. Try again in a moment.",
}
_BY_VERDICT = {
    Verdict.VALID_NO_CREDIT: _IN_GENERAL[402],
    Verdict.VALID_RATE_LIMITED: _IN_GENERAL[429],
    Verdict.VALID_RESTRICTED: "The key for {name} may not make this call. Widen its permissions.",
}
_FAULT = "{name} has a fault of its own or too much to do. Try again in a moment."
_UNKNOWN = "{name} did not finish its answer. Try again."
_REDIRECT = "{name} sent a redirect, which is never followed with a key. Check the base URL."


# Where answers keep what is meant for machines: OpenAI's and Anthropic's errors, google.rpc.
_MACHINE_FIELDS = ("code", "type", "status", "reason")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True, repr=False)
class Failure:
    """A failed call: the network's fault in words, or what the answer said.

    ``codes`` are meant for machines; ``message`` is for people, and may quote the conversation. Both in lower case.
    ``elsewhere`` means a call that may want another kind of key: its status alone says nothing about this one.
    """

    network: str | None = None
    status: int = 0
    codes: tuple[str, ...] = ()
    message: str = ""
    elsewhere: bool = False


def failure_of(error: Exception) -> Failure:
    """Read what an SDK raised in a call: the network's fault, an answer, or something unforeseen."""
    for cause in _chain(error):
        if fault := network_fault(cause):
            return Failure(network=fault)
    body = _body(error)
    status = _status(error, body)
    if not status and body is None:
        # The kind alone: its text can hold anything that the provider sent.
        _logger.warning("A call failed with %s.%s", type(error).__module__, type(error).__name__)
    return Failure(status=status, codes=tuple(_codes(body)), message=_message(body).lower())


def failure_in(status: int, content: bytes, *, elsewhere: bool = False) -> Failure:
    """Read a refusal as it came.

    :param elsewhere: see ``Failure``.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = content.decode(errors="replace")
    if isinstance(body, list) and body:
        body = body[0]  # Google's, of streams
    error = _error_in(body)
    codes, message = tuple(_codes(error)), _message(error).lower()
    return Failure(status=status, codes=codes, message=message, elsewhere=elsewhere)


def describe(
    spec: ProviderSpec, credential: Credential, failure: Failure
) -> tuple[CredentialError | ProviderUnavailableError, Verdict | None]:
    """Return our error, and the verdict on the key where it is refused."""
    if failure.network is not None:
        return ProviderUnavailableError(failure.network, provider=spec.id), None
    verdict = _verdict(spec, credential, failure)
    if verdict is not None and verdict.valid is False:
        text = f"{spec.name} refused this API key. Check it, or save another one."
        return RejectedCredentialError(text, provider=spec.id, tier=str(credential.source)), verdict
    sentence = _BY_VERDICT.get(verdict) if verdict is not None else None
    text = (sentence or _in_general(failure.status)).format(name=spec.name)
    return ProviderUnavailableError(text, provider=spec.id), None


def _verdict(spec: ProviderSpec, credential: Credential, failure: Failure) -> Verdict | None:
    message = failure.message
    for value in filter(None, map(credential.reveal, credential.fields)):
        message = message.replace(value.lower(), "")
    for rule in spec.check.rules:
        if failure.status in (0, *rule.status) and _fits(rule, failure, message):
            return rule.verdict
    return None


def _fits(rule: Rule, failure: Failure, message: str) -> bool:
    if not rule.contains:
        return failure.status in _PLAIN_STATUSES and not failure.elsewhere
    if any(rule.contains in code for code in failure.codes):
        return True
    # Further on in a message, the words may be the conversation's, and no reason to call a key bad.
    found = message.find(rule.contains)
    return found == 0 or (found > 0 and rule.verdict.valid is not False)


def _in_general(status: int) -> str:
    if 300 <= status < 400:
        return _REDIRECT
    if status >= 500:
        return _FAULT
    return _IN_GENERAL.get(status, _UNKNOWN)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it: SDKs wrap the network's errors."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _body(error: Any) -> Any:
    """Return the answer's JSON as the SDK kept it, one ``error`` level down where there is one."""
    body = getattr(error, "body", None) or getattr(error, "details", None)
    return _error_in(body)


def _error_in(body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return body["error"]
    return body


def _message(body: Any) -> str:
    """Return the sentence for people: the body itself, or what it calls message or, as xAI does, error."""
    texts = (body.get("message"), body.get("error")) if isinstance(body, dict) else (body,)
    return next((text for text in texts if isinstance(text, str)), "")


def _codes(body: Any) -> Iterator[str]:
    """Yield the values that are meant for machines, in the body and in the details that Google adds."""
    facts = body if isinstance(body, dict) else {}
    details = facts.get("details")
    for part in (facts, *(details if isinstance(details, list) else ())):
        values = map(part.get, _MACHINE_FIELDS) if isinstance(part, dict) else ()
        yield from (v.lower() for v in values if isinstance(v, str) and _IDENTIFIER.fullmatch(v))


def _status(error: Any, body: Any) -> int:
    """Return the HTTP status; in a stream, which began with 200, the one that the body means."""
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int) and status >= 300:
        return status
    facts = body if isinstance(body, dict) else {}
    code = facts.get("code")
    if isinstance(code, int) and 300 <= code < 600:
        return code
    names = (str(code), str(facts.get("type")))
    return next((_STATUS_OF_NAME[name] for name in names if name in _STATUS_OF_NAME), 0)
