"""Carry a form's outcome to the next page: as codes in its query, never as text, shown in our own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from ..model.credential import Verdict
from .text import OUTCOMES, REASONS, VERDICTS

Kind = Literal["success", "warning", "error"]

#: The query's parameters, by the outcome's attributes.
_PARAMETERS = {
    "code": "byok",
    "provider": "byok_provider",
    "verdict": "byok_verdict",
    "reason": "byok_reason",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a form. ``code`` is a key of ``OUTCOMES`` or ``validated``; ``reason`` is an error's code."""

    code: str
    provider: str = ""
    verdict: str = ""
    reason: str = ""

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Outcome:
        """Return the outcome in a page's query; empty if there is none."""
        return cls(**{name: query.get(sent, "") for name, sent in _PARAMETERS.items()})

    def added_to(self, url: str) -> str:
        """Return the URL's path and query, with this outcome in place of an earlier one."""
        parts = urlsplit(url)
        facts = [(sent, getattr(self, name)) for name, sent in _PARAMETERS.items()]
        query = _foreign(parts.query) + [(sent, value) for sent, value in facts if value]
        return f"{parts.path}?{urlencode(query)}"


@dataclass(frozen=True, slots=True)
class Notice:
    """A message to show."""

    kind: Kind
    text: str


def notice(outcome: Outcome, names: Mapping[str, str]) -> Notice | None:
    """Return the message for an outcome, None for unknown codes.

    :param names: the providers' names by id.
    """
    known = VERDICTS.get(outcome.verdict, "")
    if outcome.code == "validated" and known:
        name = names.get(outcome.provider)
        return Notice(_kind(outcome.verdict), f"{name}: {known}" if name else known)
    if outcome.code not in OUTCOMES:
        return None
    said = OUTCOMES[outcome.code]
    if outcome.code.endswith("_failed"):
        reason = known or REASONS.get(outcome.reason)
        return Notice("error", f"{said}: {reason}" if reason else said)
    caveat = known if outcome.verdict != Verdict.VALID else ""
    return Notice("success", f"{said}. {caveat}" if caveat else said)


def without_outcome(url: str) -> str:
    """Return the URL's path and query without an earlier form's outcome."""
    parts = urlsplit(url)
    query = _foreign(parts.query)
    return f"{parts.path}?{urlencode(query)}" if query else parts.path


def local_path(url: str | None) -> str | None:
    """Return the URL if it is a path on this site, else None.

    Browsers read a backslash as a slash and drop control characters, so ``/\\host`` and ``/<tab>/host`` lead elsewhere.
    """
    if not url or not url.startswith("/") or url.startswith("//") or "\\" in url:
        return None
    return url if all("!" <= char <= "~" for char in url) else None


def _foreign(query: str) -> list[tuple[str, str]]:
    pairs = parse_qsl(query, keep_blank_values=True)
    return [(name, value) for name, value in pairs if name not in _PARAMETERS.values()]


def _kind(verdict: str) -> Kind:
    kinds: dict[bool | None, Kind] = {True: "success", False: "error", None: "warning"}
    return kinds[Verdict(verdict).valid]
