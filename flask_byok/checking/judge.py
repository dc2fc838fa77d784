"""What an answer to a check says about the key: the provider's rules, then what holds for all."""

from __future__ import annotations

from collections.abc import Iterable

from ..catalog import ProviderSpec, comparable
from ..http import Answer
from ..model.credential import Verdict

Judgement = tuple[Verdict, str]

_NOT_A_PROVIDER = "The answer was not that of a provider. Check the base URL."
_REDIRECT = "The server sent a redirect, which is never followed with a key. Check the base URL."
_BUSY = "The provider refuses checks for now. Try again in a moment."
_FAULT = "The provider has a fault of its own. Try again in a moment."
_UNKNOWN = "The provider's answer does not tell whether the key is good."


def judge(spec: ProviderSpec, answer: Answer, secrets: Iterable[str]) -> Judgement:
    """Return the verdict on the key and the reason in our own words.

    :param secrets: what was sent; an answer that repeats it is judged without it.
    """
    if not answer.complete:
        return Verdict.UNCHECKED, _NOT_A_PROVIDER
    rules = [rule for rule in spec.check.rules if answer.status in rule.status]
    text = comparable(answer.body, secrets) if rules else ""
    for rule in rules:
        if rule.fits(answer.status, text):
            return rule.verdict, rule.reason
    return _judge_in_general(answer)


def _judge_in_general(answer: Answer) -> Judgement:
    status = answer.status
    if status == 200:
        good = isinstance(answer.data, dict | list)
        return (Verdict.VALID, "The key works.") if good else (Verdict.UNCHECKED, _NOT_A_PROVIDER)
    if 300 <= status < 400:
        return Verdict.UNREACHABLE, _REDIRECT
    if status >= 500:
        return Verdict.UNREACHABLE, _FAULT
    return Verdict.UNCHECKED, _BUSY if status == 429 else _UNKNOWN
