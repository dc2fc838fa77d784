"""What an answer of a provider means: for the key, and for the call that brought it. One table for every path.

The provider's own rules come first, then those of its wire; rules of a status alone stand behind those of both.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ..errors import ERRORS_OF_CALLS, ByokError, RejectedCredentialError
from ..model.credential import REFUSALS, Verdict
from .rules import WIRES
from .spec import ProviderSpec, Rule

Place = Literal["check", "call"]


@dataclass(frozen=True, repr=False)
class Answer:
    """An answer as it came: its HTTP status, its body, and its headers by names in lower case.

    An error inside a stream, which began with 200, has the status 0.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def data(self) -> Any:
        """The body's JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def retry_after(self) -> int | None:
        """Seconds after which the provider wants to be asked again, rounded up; None if it does not say.

        Sources: RFC 9110, 10.2.3; OpenAI's ``retry-after-ms``; google.rpc.RetryInfo in the body of an error.
        """
        milliseconds = self.headers.get("retry-after-ms", "") + "ms"
        named = (milliseconds, self.headers.get("retry-after", ""), *_retry_delays(self.data))
        seconds = next((each for each in map(_seconds, named) if each is not None), None)
        return None if seconds is None or seconds > _LONGEST_WAIT else max(math.ceil(seconds), 0)


# Who names more seconds than a month has does not mean seconds.
_LONGEST_WAIT = 31 * 86_400


def _seconds(text: str) -> float | None:
    """Return the seconds in a text: ``1.5``, ``1.5s``, ``1500ms``, or until the date that it is."""
    with suppress(ValueError, OverflowError):
        unit = 1000 if text.endswith("ms") else 1
        number = float(text.removesuffix("ms").removesuffix("s")) / unit
        return number if math.isfinite(number) else None
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(text).timestamp() - time.time()
    return None


def _retry_delays(data: Any) -> Iterator[str]:
    error = _inner(data)
    details = error.get("details") if isinstance(error, dict) else None
    for part in details if isinstance(details, list) else ():
        if isinstance(part, dict) and isinstance(delay := part.get("retryDelay"), str):
            yield delay


class Judgement(NamedTuple):
    """What an answer means: the verdict on the key, the code of the call's error, and the reason in our own words."""

    verdict: Verdict
    kind: str
    reason: str

    def error(self, provider: str, tier: str, retry_after: int | None = None) -> ByokError:
        """Return the error of a call that ended so."""
        if self.kind == RejectedCredentialError.code:
            return RejectedCredentialError(self.reason, provider=provider, tier=tier)
        kind, reason = ERRORS_OF_CALLS[self.kind], self.reason
        if retry_after and retry_after > 5:
            reason = reason.replace("in a moment", f"in {_words_for(retry_after)}")
        return kind(reason, provider=provider, tier=tier, retry_after=retry_after)


def _words_for(seconds: int) -> str:
    size, unit = next((each for each in _UNITS if seconds >= 2 * each[0]), _UNITS[-1])
    return f"{math.ceil(seconds / size)} {unit}"


_UNITS = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))

# The code of the error of a call, by the verdict on its key.
_KINDS = {
    **dict.fromkeys(REFUSALS, RejectedCredentialError.code),
    Verdict.VALID_NO_CREDIT: "no_credit",
    Verdict.VALID_RATE_LIMITED: "provider_rate_limited",
    Verdict.VALID_RESTRICTED: "not_permitted",
    Verdict.UNREACHABLE: "provider_unavailable",
}
# The same, by the status alone.
_KINDS_OF_STATUS = {
    401: "not_permitted",
    402: "no_credit",
    403: "not_permitted",
    404: "model_unknown",
    408: "provider_unavailable",
    413: "context_too_long",
    429: "provider_rate_limited",
    451: "region_blocked",
    503: "provider_overloaded",
    529: "provider_overloaded",
}

_REJECTED = (
    "{name} rejected this key. Check that you copied all of it, or create a new one at {name}."
)
_FAULT = "{name} has a fault of its own or too much to do. Try again in a moment."
_CHECKS = {
    Verdict.VALID: "The key works.",
    Verdict.VALID_RESTRICTED: "The key is good, but its permissions are narrow.",
    Verdict.VALID_NO_CREDIT: "The key is good, but the account has no credit left.",
    Verdict.VALID_RATE_LIMITED: "The key is good, but the account is over its rate limit right now.",
    Verdict.INVALID: _REJECTED,
    Verdict.DISABLED: "{name} has blocked or disabled this key. Create a new one at {name}.",
    Verdict.WRONG_PROVIDER: _REJECTED,
    Verdict.ADMIN_KEY_REFUSED: "This is an admin key, which can do too much. Make an ordinary API key and use that.",
    Verdict.UNREACHABLE: _FAULT,
    Verdict.UNCHECKED: "{name}'s answer does not tell whether the key is good.",
}
# What else a check may have met that says nothing about the key.
_CHECKS_OF_KIND = {
    "provider_rate_limited": "{name} takes no more checks for now. Try again in a moment.",
    "region_blocked": "{name} does not serve the country that this site calls it from, so the key was not checked.",
}
_CALLS = {
    "key_rejected": "{name} rejected this API key. Check it, or save another one.",
    "no_credit": "The account at {name} has no credit left. Add credit there, or use another key.",
    "provider_rate_limited": "{name} is getting too many calls with this key. Try again in a moment.",
    "provider_overloaded": "{name} has too much to do. Try again in a moment.",
    "provider_unavailable": _FAULT,
    "context_too_long": "The conversation is too long for {name}. Begin a new one.",
    "model_unknown": "{name} does not know this model. Choose another one.",
    "not_permitted": "The key for {name} may not make this call. Widen its permissions, or use another key.",
    "region_blocked": "{name} does not serve the country that this site calls it from.",
    "content_filtered": "The filter of {name} refused this conversation. Say it in other words.",
    "request_refused": "{name} did not accept this request. Check the model and the messages.",
}
_CUT = "{name} did not finish its answer. Try again."
_NOT_TAKEN = "{name} did not accept this key for this call. Check it, or use another one."
_REDIRECT = "{name} sent a redirect, which is never followed with a key. Check the base URL."
_PAGE = (
    "A web page came in place of {name}'s answer. Check the base URL if one is set: many end in /v1. Else something "
    "between this site and {name} blocks the call."
)
# Refusals with which a server shows a page if there is no API at the address.
_OF_NO_API = (400, 403, 404, 405)
_NOT_A_PROVIDER = "The answer was not that of a provider. Check the base URL."


def judge(
    spec: ProviderSpec,
    answer: Answer,
    place: Place,
    sent: Mapping[str, str] = MappingProxyType({}),
    *,
    elsewhere: bool = False,
) -> Judgement:
    """Judge the answer to a check; or the error that a call brought, in place of an answer or inside a stream.

    :param sent: the credential's fields. The answer is judged without the secret ones, so that no key decides its own
        verdict.
    :param elsewhere: the call may want another kind of key: the status alone says nothing about this one.
    """
    secrets = [sent[each.name] for each in spec.fields if each.secret and each.name in sent]
    error, is_check = _Error.read(answer, place, secrets), place == "check"
    known = (*spec.check.rules, *WIRES[spec.adapter])
    usable = (r for r in known if r.place in ("both", place) and not (elsewhere and _is_bare(r)))
    # A status alone decides last: in a 429 that a row calls a limit, the wire's word for missing credit may stand.
    rules = sorted(usable, key=_is_bare)
    bare = (r for r in rules if _is_bare(r) and 401 in r.status)
    sure = is_check or (error.status == 401 and any(r.verdict.valid is False for r in bare))
    for rule in rules:
        if error.fits(rule, sure) and _has(answer.data, rule):
            kind = rule.kind or _KINDS.get(rule.verdict, "request_refused")
            return judged(spec, rule.verdict, kind, place, rule.reason)
    if is_check and answer.status == 200:
        return _success(spec, answer)
    if answer.status in _OF_NO_API and _is_page(answer.body):
        return judged(spec, Verdict.UNCHECKED, "request_refused", place, _PAGE)
    return _by_status(spec, error.status, place, elsewhere)


def judged(
    spec: ProviderSpec, verdict: Verdict, kind: str, place: Place, reason: str = ""
) -> Judgement:
    """Return a judgement, by default with the reason that the verdict or the kind has at this place."""
    if not reason and place == "call" and verdict is not Verdict.DISABLED:
        reason = _CALLS[kind]
    elif not reason:
        asked = verdict is Verdict.UNCHECKED
        reason = (asked and _CHECKS_OF_KIND.get(kind)) or _CHECKS[verdict]
    return Judgement(verdict, kind, reason.format(name=spec.name))


def _success(spec: ProviderSpec, answer: Answer) -> Judgement:
    """Judge an answer with status 200: it is a success only in the documented shape."""
    good, data = spec.check.good, answer.data
    if spec.check.answer == "text":
        found = good in answer.body.decode(errors="replace") and not _is_page(answer.body)
    else:
        told = any(_value(data, path) is not None for path in good.split("|"))
        found = told and isinstance(data, dict | list) and not _value(data, "error")
    if found:
        return judged(spec, Verdict.VALID, "", "check")
    reason = _PAGE if _is_page(answer.body) else _NOT_A_PROVIDER
    return judged(spec, Verdict.UNCHECKED, "", "check", reason)


def _is_page(body: bytes) -> bool:
    start = body[:200].lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


def _by_status(spec: ProviderSpec, status: int, place: Place, elsewhere: bool) -> Judgement:
    if 300 <= status < 400:
        return judged(spec, Verdict.UNREACHABLE, "provider_unavailable", place, _REDIRECT)
    usual = "request_refused" if 400 <= status < 500 else "provider_unavailable"
    kind = usual if status == 404 and elsewhere else _KINDS_OF_STATUS.get(status, usual)
    verdict = Verdict.UNREACHABLE if status >= 500 else Verdict.UNCHECKED
    reasons = {0: _CUT, 401: _NOT_TAKEN} if place == "call" else {}
    return judged(spec, verdict, kind, place, reasons.get(status, ""))


def _is_bare(rule: Rule) -> bool:
    """Return True if a status alone is what it goes by."""
    return not (rule.contains or rule.path)


def _has(data: Any, rule: Rule) -> bool:
    """Return True if the value that a rule names is as the rule says."""
    if not rule.path:
        return True
    value = _value(data, rule.path)
    # True is no 1, and 0 no False.
    if isinstance(value, bool) != isinstance(rule.equals, bool):
        return False
    if rule.equals == 0 and isinstance(value, int | float):
        return value <= 0  # what is left can be less than nothing
    return bool(value == rule.equals)


def _value(data: Any, path: str) -> Any:
    """Return what is at a path, of which ``[]`` is a list, and an empty one all of the data; None if nothing is."""
    for name in filter(None, path.split(".")):
        if name == "[]":
            return data if isinstance(data, list) else None
        data = data.get(name) if isinstance(data, dict) else None
    return data


# What an error inside a stream means: Anthropic's types, OpenAI's codes.
_NAMES_OF_STATUS = {
    401: {"authentication_error", "invalid_api_key"},
    402: {"billing_error"},
    403: {"permission_error"},
    404: {"not_found_error"},
    429: {"rate_limit_error", "rate_limit_exceeded", "insufficient_quota"},
    500: {"api_error", "server_error"},
    503: {"overloaded_error", "server_is_overloaded", "service_unavailable", "unavailable"},
}
# Where a body has its error: most wires; AWS; ElevenLabs; Cloudflare, which lists them.
_ENVELOPES = ("error", "Error", "detail", "errors")
# The fields of an error that are meant for machines: OpenAI's and Anthropic's errors, google.rpc; AWS; Databricks;
# Deepgram.
_MACHINE_FIELDS = ("code", "type", "status", "reason", "Code", "error_code", "err_code")
# The sentence for people, the first that is there. xAI calls it error, AWS Message, Deepgram err_msg, Rev AI title.
_SENTENCES = ("message", "error", "detail", "Message", "err_msg", "title")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class _Error(NamedTuple):
    """An answer as rules compare it: codes for machines, and a text in lower case.

    The text is the whole body of a check, and of a call the message for people, which may quote the conversation.
    """

    status: int
    codes: list[str]
    text: str

    @classmethod
    def read(cls, answer: Answer, place: Place, secrets: Iterable[str]) -> _Error:
        inner = _inner(answer.body.decode(errors="replace") if answer.data is None else answer.data)
        facts = inner if isinstance(inner, dict) else {}
        # AWS names some errors in a header only, "AccessDeniedException:http://…".
        named = answer.headers.get("x-amzn-errortype", "").partition(":")[0].lower()
        codes = [*_codes(facts), *filter(None, (named,))]
        status = answer.status or _meant_status(facts.get("code"), codes)
        text = _whole(answer) if place == "check" else _message(inner)
        for secret in filter(None, secrets):
            text = text.replace(secret.lower(), "")
            codes = [code.replace(secret.lower(), "") for code in codes]
        return cls(status, codes, text)

    def fits(self, rule: Rule, sure: bool) -> bool:
        """Return True if status and words fit.

        :param sure: False if words in the middle of the text, or a status alone, are no reason to reject a key.
        """
        doubted = not sure and rule.verdict.valid is False
        if _is_bare(rule):
            return self.status in rule.status and not doubted
        if self.status not in (0, *rule.status):
            return False
        found = self.text.find(rule.contains)
        told = any(rule.contains in code for code in self.codes)
        return told or found == 0 or (found > 0 and not doubted)


def _whole(answer: Answer) -> str:
    """Return a body in lower case, JSON without white space."""
    with suppress(RecursionError):
        if answer.data is not None:
            return json.dumps(answer.data, ensure_ascii=False, separators=(",", ":")).lower()
    return answer.body.decode(errors="replace").lower()


def _message(error: Any) -> str:
    """Return the message for people in an error, or in a body that is a text."""
    texts = map(error.get, _SENTENCES) if isinstance(error, dict) else (error,)
    return next((text for text in texts if isinstance(text, str)), "").lower()


def _inner(body: Any) -> Any:
    """Return the error inside a body. Google's streams put all of it into a list."""
    body = _first(body)
    inner = (_first(body.get(name)) for name in _ENVELOPES) if isinstance(body, dict) else ()
    return next((each for each in inner if isinstance(each, dict)), body)


def _first(data: Any) -> Any:
    return data[0] if isinstance(data, list) and data else data


def _codes(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the values that are meant for machines, from an error and from the details that Google adds."""
    details = facts.get("details")
    for part in (facts, *(details if isinstance(details, list) else ())):
        values = map(part.get, _MACHINE_FIELDS) if isinstance(part, dict) else ()
        texts = (str(value).lower() for value in values if isinstance(value, str | int))
        yield from filter(_IDENTIFIER.fullmatch, texts)


def _meant_status(code: object, names: Sequence[str]) -> int:
    """Return the HTTP status that an error inside a stream means, or 0."""
    if isinstance(code, int) and 300 <= code < 600:
        return code
    meant = (status for status, known in _NAMES_OF_STATUS.items() if not known.isdisjoint(names))
    return next(meant, 0)
