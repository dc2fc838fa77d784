"""What the settings' plain forms do: the same verbs as the script's calls, with a redirect for an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, request, url_for

from ..errors import InvalidFieldError, KeyNotFoundError
from ..keys.typed import Changes
from ..model.credential import Secret, serving_order
from ..model.owner import Tier
from . import keys_api
from .caller import current_caller, get_state
from .outcome import Outcome, local_path
from .rows import end_of_day, notes_of


def register_forms(blueprint: Blueprint) -> None:
    """Add the routes that the settings' forms post to."""
    names = ", ".join(_ACTIONS)
    rule = f"/providers/settings/<any({names}):action>"
    blueprint.add_url_rule(rule, "settings_action", _settings_action, methods=["POST"])
    blueprint.after_request(_show_problem_on_page)


def _settings_action(action: str) -> Response:
    return _go_back(_ACTIONS[action](request.form.get("provider", "")))


def _save(provider: str) -> Outcome:
    typed = _typed_fields(provider)
    persist = "persist" in request.form
    saved = keys_api.set_key(provider, typed, persist=persist, **_notes_of_new(provider, persist))
    validation = saved["validation"] or {}
    return Outcome(code="saved", provider=provider, verdict=validation.get("verdict", ""))


def _change(provider: str) -> Outcome:
    state = get_state()
    keys = state.service.own_records(current_caller(state))
    record = keys.get(_shown(keys.page(provider=provider)["keys"], provider))
    keys.change(record, _changed_notes())
    return Outcome(code="changed", provider=provider)


def _shown(keys: Sequence[Mapping[str, Any]], provider: str) -> str:
    """Return the id of the key that the row is about: the first that counts, or else the first."""
    slots = sorted(keys, key=lambda key: serving_order(str(key["slot"])))
    counting = [key for key in slots if key["state"] not in ("inactive", "expired")]
    if not slots:
        raise KeyNotFoundError(provider=provider)
    return str((counting or slots)[0]["id"])


def _validate(provider: str) -> Outcome:
    typed = _typed_fields(provider)
    is_typed = any(secret.reveal() for secret in typed.values())
    validation = keys_api.validate_key(provider, typed if is_typed else None)
    return Outcome(code="validated", provider=provider, verdict=validation["verdict"])


def _clear(provider: str) -> Outcome:
    cleared = keys_api.clear_key(provider, request.form.get("tier", "all"))["cleared"]
    return Outcome(code="cleared" if cleared else "nothing_cleared", provider=provider)


def _promote(provider: str) -> Outcome:
    on_conflict = request.form.get("on_conflict", "keep")
    promoted = keys_api.promote_keys([provider], on_conflict)["promoted"]
    return Outcome(code="promoted" if promoted else "kept", provider=provider)


_ACTIONS = {
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


def _notes() -> Changes:
    """Return the label, and until when the key is to be kept."""
    day = request.form.get("expires_at")
    try:
        expires_at = end_of_day(day) if day else None
    except ValueError:
        raise InvalidFieldError("The field 'expires_at' is no date.") from None
    return {"label": request.form.get("label"), "expires_at": expires_at}


def _changed_notes() -> Changes:
    """Return the same of a key that stays, without a day that is as the page showed it.

    A day says less than the time that is kept, and of a time that is past none is shown.
    """
    notes = _notes()
    if request.form.get("expires_at", "") == request.form.get("expires_at_shown", ""):
        del notes["expires_at"]
    return notes


def _notes_of_new(provider: str, persist: bool) -> Changes:
    """Return the same for a new key, without what the row showed of a key in another place."""
    state, notes = get_state(), _notes()
    status = state.service.get_one(current_caller(state), provider)
    in_account = persist or Tier.SESSION not in state.settings.precedence
    if notes_of(status) == (Tier.USER if in_account else Tier.SESSION):
        return notes
    if notes["label"] == status["label"]:
        notes["label"] = None
    if request.form.get("expires_at") == (status["expires_at"] or "")[:10]:
        notes["expires_at"] = None
    return notes


def _show_problem_on_page(response: Response) -> Response:
    """Turn the problem object that answers a form into a way back to the page, which says it in words.

    A form that another site made keeps the bare problem: nobody sent it from a page of ours.
    """
    if (
        request.endpoint != "byok.settings_action"
        or response.mimetype != "application/problem+json"
    ):
        return response
    if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return response
    if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return response  # the form was not read, so nothing is known of where it came from
    problem = response.get_json()
    provider = request.form.get("provider", "")
    outcome = Outcome(
        code=f"{(request.view_args or {}).get('action')}_failed",
        # People paste keys into the wrong field: only what the catalog knows is repeated.
        provider=provider if provider in get_state().service.catalog else "",
        verdict=problem.get("validation", {}).get("verdict", ""),
        reason=problem["code"],
    )
    return _go_back(outcome)


def _go_back(outcome: Outcome) -> Response:
    """Redirect to the page that the form was on."""
    page = local_path(request.form.get("next")) or url_for("byok.settings_page")
    return Response(status=303, headers={"Location": outcome.added_to(page)})
