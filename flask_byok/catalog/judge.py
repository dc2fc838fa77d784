"""What an answer says about a key: the provider's rules first, then what holds for every provider.

One table serves the check of a key and the calls that are made with it. They differ in how far an answer is believed:
a check carries nothing but the key, whereas an error in a call may quote the conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..model.credential import REFUSALS, Verdict
from .spec import ProviderSpec, Rule


class Judgement(NamedTuple):
    """The verdict on a key, and the reason in our own words."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, repr=False)
class Answer:
    """An answer as it came: its HTTP status, and its body unless that was too long to be ``complete``.

    An error inside a stream, which began with 200, has the status 0.
    """

    status: int
    body: bytes
    complete: bool = True

    @cached_property
    def data(self) -> Any:
        """The body's JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


# In a call only these statuses mean the same in every answer. For any other, a rule must name a code or words:
# a 400 or 403 has many causes beside the key.
_PLAIN_STATUSES = frozenset({401, 402, 429})

# What an error inside a stream means: Anthropic's types, OpenAI's codes.
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

_NOT_A_PROVIDER = "The answer was not that of a provider. Check the base URL."
_REDIRECT = "{name} sent a redirect, which is never followed with a key. Check the base URL."
_FAULT = "{name} has a fault of its own or too much to do. Try again in a moment."

_CHECK_REASONS = {429: "{name} takes no more checks for now. Try again in a moment."}
_CHECK_UNKNOWN = "{name}'s answer does not tell whether the key is good."

_CALL_REASONS = {
    400: "{name} did not accept this request. Check the model and the messages.",
    402: "The account at {name} has no credit left. Add credit there, or use another key.",
    403: "{name} does not allow this call. Check the key's permissions and your account.",
    404: "{name} does not know this model. Choose another one.",
    413: "The conversation is too long for {name}. Begin a new one.",
    429: "{name} is getting too many calls with this key. Try again in a moment.",
}
_CALL_UNKNOWN = "{name} did not finish its answer. Try again."
_CALL_VERDICTS = {
    **dict.fromkeys(REFUSALS, "{name} rejected this API key. Check it, or save another one."),
    Verdict.VALID_NO_CREDIT: _CALL_REASONS[402],
    Verdict.VALID_RATE_LIMITED: _CALL_REASONS[429],
    Verdict.VALID_RESTRICTED: "The key for {name} may not make this call. Widen its permissions.",
}


def judge_check(spec: ProviderSpec, answer: Answer, secrets: Iterable[str] = ()) -> Judgement:
    """Judge the answer to a check.

    :param secrets: what was sent; the answer is judged without them, so that no key decides its own verdict.
    """
    if not answer.complete:
        return Judgement(Verdict.UNCHECKED, _NOT_A_PROVIDER)
    if rules := [rule for rule in spec.check.rules if answer.status in rule.status]:
        text = _comparable(answer.body, secrets)
        for rule in rules:
            if rule.contains in text:
                return Judgement(rule.verdict, rule.reason)
    if answer.status != 200:
        return _in_general(spec, answer.status, _CHECK_REASONS, _CHECK_UNKNOWN)
    if isinstance(answer.data, dict | list):
        return Judgement(Verdict.VALID, "The key works.")
    return Judgement(Verdict.UNCHECKED, _NOT_A_PROVIDER)


def judge_call(
    spec: ProviderSpec, answer: Answer, secrets: Iterable[str] = (), *, elsewhere: bool = False
) -> Judgement:
    """Judge an error that a call brought: the refusal that came in place of an answer, or an error inside a stream.

    :param secrets: see :func:`judge_check`.
    :param elsewhere: the call may want another kind of key: the status alone says nothing about this one.
    """
    error = _Error.read(answer, secrets)
    general = _in_general(spec, error.status, _CALL_REASONS, _CALL_UNKNOWN)
    for rule in spec.check.rules:
        if error.status in (0, *rule.status) and error.fits(rule, elsewhere):
            known = _CALL_VERDICTS.get(rule.verdict)
            reason = known.format(name=spec.name) if known else general.reason
            return Judgement(rule.verdict, reason)
    return general


def _in_general(
    spec: ProviderSpec, status: int, reasons: dict[int, str], unknown: str
) -> Judgement:
    reason, verdict = reasons.get(status, unknown), Verdict.UNCHECKED
    if 300 <= status < 400:
        reason, verdict = _REDIRECT, Verdict.UNREACHABLE
    if status >= 500:
        reason, verdict = _FAULT, Verdict.UNREACHABLE
    return Judgement(verdict, reason.format(name=spec.name))


def _comparable(body: bytes, secrets: Iterable[str]) -> str:
    """Return a body as rules compare it: in lower case, JSON without white space, without the secrets."""
    text = _without(secrets, body.decode(errors="replace"))
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    return text.lower()


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in filter(None, secrets):
        text = text.replace(secret, "")
    return text


# The fields of an error that are meant for machines: OpenAI's and Anthropic's errors, google.rpc.
_MACHINE_FIELDS = ("code", "type", "status", "reason")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class _Error(NamedTuple):
    """An error as a call brings it: codes for machines, and a message for people, which may quote the conversation."""

    status: int
    codes: list[str]
    message: str

    @classmethod
    def read(cls, answer: Answer, secrets: Iterable[str]) -> _Error:
        body = answer.data if answer.data is not None else answer.body.decode(errors="replace")
        if isinstance(body, list) and body:
            body = body[0]  # Google's, of streams
        if isinstance(body, dict) and isinstance(body.get("error"), dict):
            body = body["error"]
        facts = body if isinstance(body, dict) else {}
        # The sentence for people: the body itself, or what it calls message or, as xAI does, error.
        texts = (facts.get("message"), facts.get("error")) if facts else (body,)
        message = next((text for text in texts if isinstance(text, str)), "").lower()
        message = _without(map(str.lower, secrets), message)
        return cls(answer.status or _meant_status(facts), list(_codes(facts)), message)

    def fits(self, rule: Rule, elsewhere: bool) -> bool:
        if not rule.contains:
            return self.status in _PLAIN_STATUSES and not elsewhere
        if any(rule.contains in code for code in self.codes):
            return True
        # Further on in a message the words may be the conversation's: no reason to reject a key.
        found = self.message.find(rule.contains)
        return found == 0 or (found > 0 and rule.verdict.valid is not False)


def _codes(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the values that are meant for machines, from an error and from the details that Google adds."""
    details = facts.get("details")
    for part in (facts, *(details if isinstance(details, list) else ())):
        values = map(part.get, _MACHINE_FIELDS) if isinstance(part, dict) else ()
        yield from (v.lower() for v in values if isinstance(v, str) and _IDENTIFIER.fullmatch(v))


def _meant_status(facts: dict[str, Any]) -> int:
    """Return the HTTP status that an error inside a stream means, or 0."""
    code = facts.get("code")
    if isinstance(code, int) and 300 <= code < 600:
        return code
    names = (str(code), str(facts.get("type")))
    return next((_STATUS_OF_NAME[name] for name in names if name in _STATUS_OF_NAME), 0)
