"""Render the settings, as a dialog and as a page; without a script they work by plain forms."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import cache
from hashlib import sha256
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

from flask import Response, current_app, request, url_for
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from ..errors import ByokError, RateLimitedError, StoreError
from ..model.credential import utcnow
from ..model.owner import PERSONAL_TIERS, Tier
from ..settings import Settings
from . import keys_api, text
from .caller import ByokState, get_state
from .forms import Notice, Outcome, described_tier, local_path, notice, without_outcome

#: The standalone page may load one script and one style sheet, and call its own server.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class UI:
    """The template global ``byok``: ``head``, ``button``, ``dialog`` and ``page`` of one app."""

    def __init__(self, state: ByokState) -> None:
        self._settings = state.settings

    def head(self) -> Markup:
        """Return the style sheet's and the script's tags for a page's head."""
        return self._render("head.html")

    def button(self) -> Markup:
        """Return the button that opens the dialog, and a link to the page for browsers without scripts."""
        return self._render("button.html")

    def dialog(self) -> Markup:
        """Return the dialog with the caller's settings; one round trip to the store."""
        here = url_for("byok.settings_page", next=_present_url())
        return self._render("dialog.html", next_url=here, in_dialog=True, **self._content())

    def page(self) -> Markup:
        """Return the settings as a section of a host's own page."""
        content = self._content()
        return self._render(
            "settings.html",
            next_url=_present_url(),
            collapsible=True,
            notice=_notice(content["rows"]),
            **content,
        )

    def document(self) -> Response:
        """Return the standalone page."""
        nonce = self._nonce() or secrets.token_urlsafe(16)
        content = self._content()
        back = local_path(request.args.get("next"))
        html = self._render(
            "document.html",
            nonce=nonce,
            # Built from the path: nothing else in the present query is repeated.
            next_url=url_for("byok.settings_page", next=back),
            back_url=back,
            notice=_notice(content["rows"]),
            **content,
        )
        error: ByokError | None = content["error"]
        response = Response(html, status=200 if error is None else error.status)
        if isinstance(error, StoreError | RateLimitedError):
            response.headers["Retry-After"] = str(error.retry_after)
        response.headers["Content-Security-Policy"] = _PAGE_POLICY.format(nonce=nonce)
        return response

    def _content(self) -> dict[str, Any]:
        """Return the facts that the templates show, or the reason why there are none."""
        try:
            found = keys_api.list_keys()
        except ByokError as error:
            reason = text.REASONS.get(error.code, error.title)
            return {"error": error, "failure": reason, "rows": []}
        now = utcnow()
        return {
            "error": None,
            "failure": None,
            "rows": [
                build_row(status, found, self._settings, now) for status in found["providers"]
            ],
            "can_choose": Tier.SESSION in self._settings.precedence,
            "dates": expiry_dates(now, self._settings.max_key_lifetime),
            "precedence": _precedence(found["precedence"]),
            "storage": found["storage"],
            "csrf_token": found["csrf_token"],
        }

    def _nonce(self) -> str | None:
        return self._settings.csp_nonce() if self._settings.csp_nonce else None

    def _render(self, name: str, **context: Any) -> Markup:
        page_url = url_for("byok.settings_page")
        everywhere = {
            "text": SimpleNamespace(**text.TEXT),
            "messages": text.MESSAGES,
            "nonce": self._nonce(),
            "style_url": _asset_url("byok.css"),
            "script_url": _asset_url("byok.js"),
            "page_url": page_url,
            "base_url": page_url.removesuffix("/settings"),
            "action_url": lambda action: url_for("byok.settings_action", action=action),
            "csrf_field": current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token"),
            "collapsible": False,
            "in_dialog": False,
            "notice": None,
        }
        return Markup(_templates().get_template(name).render(everywhere | context))  # noqa: S704  (escaped by the template)


def settings_page() -> Response:
    """Answer the settings as a page of their own."""
    return UI(get_state()).document()


def _present_url() -> str:
    return without_outcome(request.script_root + request.full_path)


def _notice(rows: list[dict[str, Any]]) -> Notice | None:
    return notice(Outcome.read(request.args), {row["provider"]: row["name"] for row in rows})


def _precedence(tiers: Sequence[str]) -> list[str]:
    asked = get_state().service.lookup.tiers
    return [text.TIERS[tier] for tier in tiers if tier in asked]


@cache
def _templates() -> Environment:
    """Return our own environment: the host can neither shadow our templates nor switch off escaping."""
    return Environment(
        loader=FunctionLoader(
            lambda name: files("flask_byok.templates").joinpath(name).read_text("utf-8")
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset_url(filename: str) -> str:
    return url_for("byok.static", filename=filename, v=_digest(filename))


@cache
def _digest(filename: str) -> str:
    """Return a digest of the file, so that a new release does not use a cached old one."""
    return sha256(files("flask_byok").joinpath("static", filename).read_bytes()).hexdigest()[:12]


# a provider's row


def build_row(
    status: Mapping[str, Any], found: Mapping[str, Any], settings: Settings, now: datetime
) -> dict[str, Any]:
    """Return a status with the texts of its row.

    :param found: the list that the status is from.
    """
    badges, source = text.BADGES[settings.labels], status["source"] or ""
    clear_tier = _clear_tier(status)
    several = clear_tier == "user" and settings.keys_per_provider > 1
    if _offered(status) == "waiting":
        # The question shows its hint; the row's facts are about keys in use.
        status = {**status, "hint": None, "label": None, "validity": None, "expires_at": None}
    return {
        **status,
        "badge": badges[source],
        "standalone_badge": badges["standalone"],
        "place": text.PLACES.get(source),
        "reason": None if status["can_override"] else text.TEXT["locked"],
        "clear_tier": clear_tier,
        "confirm_question": text.TEXT["confirm_several" if several else "confirm_question"],
        "can_persist": found["can_persist"] and _account_counts(status, found["precedence"]),
        "described_tier": described_tier(status),
        "changeable": described_tier(status) == Tier.USER,
        "offer": _offer(status),
        "fields": [field | {"type": _input_type(field)} for field in status["fields"]],
        **_state(status),
        **_checked(status["validity"]),
        **_expiry(status["expires_at"], now),
    }


def expiry_dates(now: datetime, longest: timedelta | None) -> dict[str, Any]:
    """Return the first and the last day that can be chosen, as ``YYYY-MM-DD``, and the rule as text."""
    first = now.date().isoformat()
    if longest is None:
        return {"first": first, "last": None, "rule": text.TEXT["expires_never"]}
    last = _last_day(now, longest).isoformat()
    return {"first": first, "last": last, "rule": text.TEXT["expires_cap"].format(date=last)}


def _last_day(now: datetime, longest: timedelta) -> date:
    try:
        return (now + longest).date()
    except OverflowError:
        return date.max


def _state(status: Mapping[str, Any]) -> dict[str, Any]:
    soon = status["state"] == "active" and status["expires_soon"]
    # The state of another owner's key would read as that of the person's own.
    is_theirs = not status["source"] and described_tier(status) not in PERSONAL_TIERS
    state = "" if is_theirs else status["state"] or ""
    return {"soon": soon, "chip": text.CHIPS.get("soon" if soon else state)}


def _checked(validity: Mapping[str, Any] | None) -> dict[str, Any]:
    if validity is None:
        return {"verdict": None, "checked": None}
    return {
        "verdict": text.VERDICTS[validity["verdict"]],
        "checked": f"{validity['checked_at'][:16].replace('T', ' ')} UTC",
    }


def _expiry(expires_at: str | None, now: datetime) -> dict[str, Any]:
    if expires_at is None:
        return {"expiry": None, "expires_on": "", "is_to_expire": False}
    ahead = datetime.fromisoformat(expires_at) > now
    return {
        "expiry": text.TEXT["expires_on" if ahead else "expired_on"],
        "expires_on": expires_at[:10],
        "is_to_expire": ahead,
    }


def _offer(status: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the question about a key that could be kept, with its answers."""
    kind = _offered(status)
    if kind is None or not status["can_override"]:
        return None
    question, answers = text.OFFERS[kind]
    return {"question": question, "answers": answers}


def _offered(status: Mapping[str, Any]) -> str | None:
    """Return the key in ``OFFERS`` for the key that could be kept and the one beside it."""
    tiers = status["tiers"]
    if not status["promotable"]:
        return None
    if "session" not in tiers:
        beside = "waiting_beside_user" if "user" in tiers else "waiting"
        return "waiting_in_account" if status["promotable_in_account"] else beside
    if status["promotable_hint"] != status["hint"]:
        return "waiting_beside_session"
    if status["source"] != "session" or status["state"] != "active":
        return None  # a key that does not work is not worth keeping
    if status["promotable_in_account"]:
        return None
    return "own_beside_user" if "user" in tiers else "own"


def _account_counts(status: Mapping[str, Any], precedence: Sequence[str]) -> bool:
    """Return True if no shared key comes before the account's."""
    before = precedence[: precedence.index("user")]
    return not any(tier in before for tier in status["tiers"] if tier != "session")


def _clear_tier(status: Mapping[str, Any]) -> str | None:
    """Return the tier that Remove acts on: the one in use, else one with a key of the caller's own."""
    own = [tier for tier in ("session", "user") if tier in status["tiers"]]
    if status["source"] in own:
        return str(status["source"])
    return "session" if status["promotable"] else next(iter(own), None)


def _input_type(field: Mapping[str, Any]) -> str:
    if field["secret"]:
        return "password"
    return "url" if field["name"] == "base_url" else "text"
