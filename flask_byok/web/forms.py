"""The settings' plain forms: the same verbs as the script's calls, answered by a redirect.

The next page gets the outcome as codes in its query, never as text, and shows it in our own words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from flask import Response, request, url_for

from ..accounts.records import Record
from ..errors import InvalidFieldError, KeyNotFoundError
from ..keys.typed import Changes, NewKey
from ..model.credential import Secret, Verdict, serving_order
from ..model.owner import Caller, Tier
from .caller import current_caller, get_state
from .text import OUTCOMES, REASONS, VERDICTS

Kind = Literal["success", "warning", "error"]
_KINDS: dict[bool | None, Kind] = {True: "success", False: "error", None: "warning"}

#: The query's parameters, by the outcome's attributes.
_PARAMETERS = {
    "code": "byok",
    "provider": "byok_provider",
    "verdict": "byok_verdict",
    "reason": "byok_reason",
}
#: A key expires with the end of the day that was chosen, in UTC.
_END_OF_DAY = time(23, 59, 59, tzinfo=UTC)


def settings_action(action: str) -> Response:
    """Carry out what a form asks for, and redirect to the page that it was on."""
    return _go_back(ACTIONS[action](request.form.get("provider", "")))


def _save(provider: str) -> Outcome:
    state, persist = get_state(), "persist" in request.form
    caller = current_caller(state)
    label, expires_at = _new_details(caller, provider, persist)
    new = NewKey(
        fields=_typed_fields(provider), label=label, expires_at=expires_at, persist=persist
    )
    _, validation = state.service.set(caller, provider, new)
    verdict = validation.verdict if validation else ""
    return Outcome(code="saved", provider=provider, verdict=verdict)


def _change(provider: str) -> Outcome:
    state = get_state()
    keys = state.service.own_records(current_caller(state))
    record = keys.get(_shown(keys.page(provider=provider)["keys"], provider))
    keys.change(record, _changed_details())
    return Outcome(code="changed", provider=provider)


def _shown(keys: Sequence[Record], provider: str) -> str:
    """Return the id of the key that the row shows: the first active one, or else the first."""
    slots = sorted(keys, key=lambda key: serving_order(key["slot"]))
    serving = [key for key in slots if key["state"] not in ("inactive", "expired")]
    if not slots:
        raise KeyNotFoundError(provider=provider)
    return (serving or slots)[0]["id"]


def _validate(provider: str) -> Outcome:
    state, typed = get_state(), _typed_fields(provider)
    is_typed = any(secret.reveal() for secret in typed.values())
    found = state.service.validate(current_caller(state), provider, typed if is_typed else None)
    return Outcome(code="validated", provider=provider, verdict=found.verdict)


def _clear(provider: str) -> Outcome:
    state, tier = get_state(), request.form.get("tier", "all")
    cleared, _ = state.service.clear(current_caller(state), provider, tier)
    return Outcome(code="cleared" if cleared else "nothing_cleared", provider=provider)


def _promote(provider: str) -> Outcome:
    state, on_conflict = get_state(), request.form.get("on_conflict", "keep")
    done = state.service.promote(current_caller(state), [provider], on_conflict)
    return Outcome(code="promoted" if done["promoted"] else "kept", provider=provider)


#: What each form's address does.
ACTIONS = {
    "save": _save,
    "change": _change,
    "validate": _validate,
    "clear": _clear,
    "promote": _promote,
}


def _typed_fields(provider: str) -> dict[str, Secret]:
    """Return what was typed, by field; empty inputs are left out."""
    names = [field.name for field in get_state().service.catalog.get(provider).fields]
    return {name: Secret(typed) for name in names if (typed := request.form.get(name))}


def _details() -> tuple[str | None, datetime | None]:
    """Return the label, and when the key expires."""
    day = request.form.get("expires_at")
    try:
        return request.form.get("label"), end_of_day(day) if day else None
    except ValueError:
        raise InvalidFieldError("The field 'expires_at' is no date.") from None


def _changed_details() -> Changes:
    """Return the details of a key that stays, without a day that is as the page showed it.

    A day is less precise than the stored time, and the page shows no day for a time in the past.
    """
    label, expires_at = _details()
    if request.form.get("expires_at", "") == request.form.get("expires_at_shown", ""):
        return {"label": label}
    return {"label": label, "expires_at": expires_at}


def _new_details(
    caller: Caller, provider: str, persist: bool
) -> tuple[str | None, datetime | None]:
    """Return the details of a new key, without those that the row showed of a key in another place."""
    state = get_state()
    label, expires_at = _details()
    status = state.service.get_one(caller, provider)
    in_account = persist or Tier.SESSION not in state.settings.precedence
    if described_tier(status) == (Tier.USER if in_account else Tier.SESSION):
        return label, expires_at
    same_day = request.form.get("expires_at") == (status["expires_at"] or "")[:10]
    return None if label == status["label"] else label, None if same_day else expires_at


def shown_on_page(handler: Callable[[Any], Response]) -> Callable[[Any], Response]:
    """Make an error handler redirect a form back to its page, which shows the problem in words.

    A form of another site gets the bare problem object: it is not from the settings.
    """

    def handle(error: Any) -> Response:
        response = handler(error)
        if request.endpoint != "byok.settings_action":
            return response
        if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            return response
        if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return response  # the form was not read, so the page that sent it is unknown
        problem = response.get_json()
        provider = request.form.get("provider", "")
        outcome = Outcome(
            code=f"{(request.view_args or {}).get('action')}_failed",
            # People paste keys into the wrong field: repeat only ids that the catalog knows.
            provider=provider if provider in get_state().service.catalog else "",
            verdict=problem.get("validation", {}).get("verdict", ""),
            reason=problem["code"],
        )
        return _go_back(outcome)

    return handle


def _go_back(outcome: Outcome) -> Response:
    """Redirect to the page that the form was on."""
    page = local_path(request.form.get("next")) or url_for("byok.settings_page")
    return Response(status=303, headers={"Location": outcome.added_to(page)})


def described_tier(status: Mapping[str, Any]) -> str | None:
    """Return the tier of the key whose label and expiry the row shows."""
    return status["source"] or next(iter(status["tiers"]), None)


def end_of_day(day: str) -> datetime:
    """Return the expiry of a key that works through a day, ``YYYY-MM-DD``.

    :raises ValueError: the text is no day.
    """
    return datetime.combine(date.fromisoformat(day), _END_OF_DAY)


# how the outcome reaches the next page


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
        kind = _KINDS[Verdict(outcome.verdict).valid]
        return Notice(kind, f"{name}: {known}" if name else known)
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
