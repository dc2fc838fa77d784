"""The settings' plain forms: the same verbs as the script's calls, answered by a redirect.

The next page gets the outcome as codes in its query, never as text, and shows it in our own words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from flask import Response, request, url_for

from ..accounts.changes import Changes
from ..accounts.records import Record
from ..accounts.store import serving_order
from ..errors import InvalidFieldError, KeyNotFoundError
from ..keys.service import Service
from ..keys.typed import NewKey
from ..model.credential import Fields, Secret, Verdict
from ..model.owner import Tier
from .caller import for_caller, get_state
from .text import LOOKS_LIKE, OUTCOMES, REASONS, VERDICTS

_KINDS = {True: "success", False: "error", None: "warning"}

#: The query's parameters for an outcome: its code (a key of ``OUTCOMES`` or ``validated``), the provider's id, the
#: verdict of a check, the code of the error, and the id of the provider that a typed key looks like.
_PARAMETERS = ("byok", "byok_provider", "byok_verdict", "byok_reason", "byok_looks_like")
#: A key expires with the end of the day that was chosen, in UTC.
_END_OF_DAY = time(23, 59, 59, tzinfo=UTC)


def settings_action(action: str) -> Response:
    """Carry out what a form asks for, and redirect to the page that it was on."""
    return ACTIONS[action](request.form.get("provider", ""))


def _save(provider: str) -> Response:
    persist = "persist" in request.form
    in_account = persist or Tier.SESSION not in get_state().settings.precedence
    place = Tier.USER if in_account else Tier.SESSION
    # What the row showed beside a key in another place is not about this one.
    details = _details(changed_only=request.form.get("described") != place)
    new = NewKey(fields=_typed_fields(provider), persist=persist, **details)
    _, validation = for_caller(Service.set, provider, new)
    verdict = validation.verdict if validation else ""
    return _go_back("saved", provider, verdict, "", _looks_like(provider, new.fields))


def _change(provider: str) -> Response:
    keys = for_caller(Service.own_records)
    record = keys.get(_shown(keys.page(provider=provider)["keys"], provider))
    keys.change(record, _details(changed_only=True))
    return _go_back("changed", provider)


def _shown(keys: Sequence[Record], provider: str) -> str:
    """Return the id of the key that the row shows: the first active one, or else the first."""
    slots = sorted(keys, key=lambda key: serving_order(key["slot"]))
    serving = [key for key in slots if key["state"] not in ("inactive", "expired")]
    if not slots:
        raise KeyNotFoundError(provider=provider)
    return (serving or slots)[0]["id"]


def _validate(provider: str) -> Response:
    fields = _typed_fields(provider)
    found = for_caller(Service.validate, provider, fields or None)
    return _go_back("validated", provider, found.verdict, "", _looks_like(provider, fields))


def _looks_like(provider: str, fields: Fields) -> str:
    warnings = get_state().service.warnings(provider, fields)
    return warnings[0]["provider"] if warnings else ""


def _clear(provider: str) -> Response:
    cleared, _ = for_caller(Service.clear, provider, request.form.get("tier", "all"))
    return _go_back("cleared" if cleared else "nothing_cleared", provider)


def _promote(provider: str) -> Response:
    on_conflict = request.form.get("on_conflict", "keep")
    done = for_caller(Service.promote, [provider], on_conflict)
    return _go_back("promoted" if done["promoted"] else "kept", provider)


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


def _details(*, changed_only: bool) -> Changes:
    """Return the label, and when the key expires.

    :param changed_only: leave out what is as the page showed it: a day is less precise than the stored time, and the
        page shows no day for a time in the past.
    """
    label, day = request.form.get("label", ""), request.form.get("expires_at", "")
    details: Changes = {}
    if not changed_only or label != request.form.get("label_shown", ""):
        details["label"] = label
    if not changed_only or day != request.form.get("expires_at_shown", ""):
        try:
            last = datetime.combine(date.fromisoformat(day), _END_OF_DAY) if day else None
        except ValueError:
            raise InvalidFieldError("The field 'expires_at' is no date.") from None
        details["expires_at"] = last
    return details


def shown_on_page(handler: Callable[[Any], Response]) -> Callable[[Any], Response]:
    """Make an error handler redirect a form back to its page, which shows the problem in words.

    A form of another site gets the bare problem object: it is not from the settings.
    """

    def handle(error: Any) -> Response:
        response = handler(error)
        is_ours = request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
        # A form that is too large was not read, so the page that sent it is unknown.
        is_read = response.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        if request.endpoint != "byok.settings_action" or not (is_ours and is_read):
            return response
        problem = response.get_json()
        provider = request.form.get("provider", "")
        # People paste keys into the wrong field: repeat only ids that the catalog knows.
        provider = provider if provider in get_state().service.catalog else ""
        action = (request.view_args or {}).get("action")
        verdict = problem.get("validation", {}).get("verdict", "")
        return _go_back(f"{action}_failed", provider, verdict, problem["code"])

    return handle


def _go_back(*outcome: str) -> Response:
    """Redirect to the page that the form was on."""
    page = local_path(request.form.get("next")) or url_for("byok.settings_page")
    return Response(status=303, headers={"Location": with_outcome(page, *outcome)})


# how the outcome reaches the next page


def with_outcome(url: str, *outcome: str) -> str:
    """Return the URL's path and query with this outcome, if any, in place of an earlier one.

    :param outcome: values in the order of ``_PARAMETERS``; empty ones are left out.
    """
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    query = [(name, value) for name, value in query if name not in _PARAMETERS]
    query += [(name, value) for name, value in zip(_PARAMETERS, outcome, strict=False) if value]
    return f"{parts.path}?{urlencode(query)}" if query else parts.path


class Notice(NamedTuple):
    """A message to show."""

    kind: str
    text: str


def notice(query: Mapping[str, str], names: Mapping[str, str]) -> Notice | None:
    """Return the message for the outcome in a page's query, None for unknown codes.

    :param names: the providers' names by id.
    """
    code, provider, verdict, reason, other = (query.get(name, "") for name in _PARAMETERS)
    known, said = VERDICTS.get(verdict, ""), OUTCOMES.get(code)
    guess = f" {LOOKS_LIKE.format(name=names[other])}" if other in names else ""
    if code == "validated" and known:
        name = names.get(provider)
        text = f"{name}: {known}" if name else known
        return Notice(_KINDS[Verdict(verdict).valid], text + guess)
    if said is None:
        return None
    if code.endswith("_failed"):
        why = known or REASONS.get(reason)
        return Notice("error", f"{said}: {why}" if why else said)
    caveat = known if verdict != Verdict.VALID else ""
    text = f"{said}. {caveat}{guess}" if caveat else f"{said}.{guess}" if guess else said
    return Notice("warning" if guess else "success", text)


def local_path(url: str | None) -> str | None:
    """Return the URL if it is a path on this site, else None.

    Browsers read a backslash as a slash and drop control characters, so ``/\\host`` and ``/<tab>/host`` lead elsewhere.
    """
    if not url or not url.startswith("/") or url.startswith("//") or "\\" in url:
        return None
    return url if all("!" <= char <= "~" for char in url) else None
