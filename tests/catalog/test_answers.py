"""What each provider's documented answers mean.

``flask_byok/testing/answers`` has them by provider, one a line, for the fakes too; see ``flask_byok.testing.refusals``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flask_byok.catalog import PROVIDERS, Catalog, CheckSpec, ProviderSpec
from flask_byok.catalog.rules import UNKNOWN_KEY, of
from flask_byok.catalog.verdicts import Answer, Judgement, Place, judge
from flask_byok.errors import ERRORS_OF_CALLS, RejectedCredentialError
from flask_byok.model.credential import Verdict
from flask_byok.testing import refusals
from flask_byok.testing.refusals import API_KEY, documented

ANSWERS = Path(refusals.__file__).with_name("answers")
CANARY = "canary-5f1c"
KINDS = {*ERRORS_OF_CALLS, RejectedCredentialError.code}


TABLE = [
    pytest.param(path.stem, row, id=f"{path.stem}-{row['place']}-{row['status']}-{number}")
    for path in sorted(ANSWERS.glob("*.json"))
    for number, row in enumerate(documented(path.stem))
]


def marked(part: Any) -> Any:
    """Return a body with a word of its own in each text for people."""
    if isinstance(part, dict):
        return {name: marked(value) for name, value in part.items()}
    if isinstance(part, list):
        return [marked(value) for value in part]
    return f"{part} {CANARY}" if isinstance(part, str) and " " in part else part


def answer_of(row: dict[str, Any]) -> Answer:
    """Return the answer that a row describes."""
    text = f"{row['text']} {CANARY}" if row.get("text") else json.dumps(marked(row.get("body", "")))
    body = b"" if row.get("text") == "" else text.encode()
    return Answer(row["status"], body, row.get("headers", {}))


@pytest.mark.parametrize(("provider", "row"), TABLE)
def test_an_answer_means_what_its_document_says(provider: str, row: dict[str, Any]) -> None:
    """Each documented answer has the exact verdict and kind, and a sentence of our own without any word of it."""
    answer = answer_of(row)
    found = judge(Catalog().get(provider), answer, row["place"], {"api_key": API_KEY})
    kind = found.kind if row["place"] == "call" else None
    assert (found.verdict, kind) == (row["verdict"], row["kind"]), row["note"]
    assert found.reason.endswith(".")
    for secret in (CANARY, API_KEY, "{"):
        assert secret not in found.reason
    wait = row.get("headers", {}).get("retry-after")
    assert wait is None or answer.retry_after == int(wait)


WORDS = [
    ("mistral", 401, {"detail": "Unauthorized"}, "Codestral's address"),
    ("aws", 403, {"Error": {"Code": "ExpiredToken"}}, "has expired"),
    ("aws", 403, {"Error": {"Code": "SignatureDoesNotMatch"}}, "does not belong to this access"),
]


@pytest.mark.parametrize("place", ["check", "call"])
@pytest.mark.parametrize(("provider", "status", "body", "words"), WORDS)
def test_a_refusal_says_what_to_look_at(
    provider: str, status: int, body: Any, words: str, place: Place
) -> None:
    """A check and a call tell alike what may be wrong with a refused key, where the answer tells more than that."""
    answer = Answer(status, json.dumps(body).encode())
    found = judge(Catalog().get(provider), answer, place)
    assert found.verdict.valid is False
    assert words in found.reason


def test_the_conversations_words_reject_no_key() -> None:
    """In the middle of a message words reject no key; they tell how it is bad where a 401 alone rejects it."""
    words = of(Verdict.DISABLED, (400, 401), "off")
    row, found = Catalog().get("openrouter"), []
    body = json.dumps({"error": {"message": "This is off"}}).encode()
    for rules in (words, (*words, UNKNOWN_KEY)):
        spec = replace(row, check=CheckSpec(rules=rules))
        found += [judge(spec, Answer(status, body), "call").verdict for status in (400, 401)]
    assert found == ["unchecked", "unchecked", "unchecked", "disabled"]


@pytest.mark.parametrize("provider", sorted(path.stem for path in ANSWERS.glob("*.json")))
def test_a_provider_has_at_least_fifteen_documented_answers(provider: str) -> None:
    """They have good and bad keys, both places, a source each, and only verdicts and kinds that there are."""
    rows = documented(provider)
    assert len(rows) >= 15
    assert {row["place"] for row in rows} == {"check", "call"}
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows)
    for row in rows:
        assert row["verdict"] in set(Verdict)
        assert row["source"].startswith("https://")
        assert row["note"]
        assert (row["kind"] in KINDS) if row["place"] == "call" else row["kind"] is None


def test_every_provider_with_an_address_is_in_the_table() -> None:
    """Each shipped provider that has its own address has a document for its facts, and a file of answers."""
    for spec in PROVIDERS:
        if not spec.personal_base_url:
            assert spec.docs.startswith("https://"), spec.id
            assert (ANSWERS / f"{spec.id}.json").exists(), spec.id


@pytest.mark.parametrize("spec", [s for s in PROVIDERS if s.docs], ids=lambda spec: spec.id)
def test_each_rule_is_needed_by_a_documented_answer(spec: ProviderSpec) -> None:
    """Without any one of a row's rules, some documented answer is judged otherwise: no rule is there for nothing."""
    rows = [(row, answer_of(row)) for row in documented(spec.id)]
    rules = spec.check.rules
    for number, rule in enumerate(rules):
        less = replace(spec.check, rules=rules[:number] + rules[number + 1 :])
        without = replace(spec, check=less)
        assert any(
            judge(without, answer, row["place"], {"api_key": API_KEY}) != judged(spec, row, answer)
            for row, answer in rows
        ), rule


def judged(spec: ProviderSpec, row: dict[str, Any], answer: Answer) -> Judgement:
    """Return what the whole row says of an answer."""
    return judge(spec, answer, row["place"], {"api_key": API_KEY})
