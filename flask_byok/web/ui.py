"""Render the settings, as a dialog and as a page; without a script they work by plain forms."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

import msgspec
from flask import Response, current_app, request, url_for
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..catalog import Catalog
from ..catalog.paste import beginnings
from ..errors import ByokError
from ..model.credential import utcnow
from ..model.owner import PERSONAL_TIERS, Tier
from ..settings import Settings
from . import keys_api, text
from .caller import get_state
from .forms import local_path, notice, with_outcome

#: The standalone page may load one script and one style sheet, and call its own server.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class UI:
    """The template global ``byok``: ``head``, ``button``, ``dialog`` and ``page``."""

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
        here = _present_url()
        return self._render("settings.html", next_url=here, collapsible=True, **self._content())

    def document(self) -> Response:
        """Return the standalone page."""
        nonce = self._nonce() or secrets.token_urlsafe(16)
        content = self._content()
        back = local_path(request.args.get("next"))
        # Built from the path: nothing else in the present query is repeated.
        here = url_for("byok.settings_page", next=back)
        html = self._render("document.html", nonce=nonce, next_url=here, back_url=back, **content)
        error: ByokError | None = content["error"]
        response = Response(html)
        if error is not None:
            response.status_code, response.retry_after = error.status, error.retry_after
        response.headers["Content-Security-Policy"] = _PAGE_POLICY.format(nonce=nonce)
        return response

    def _content(self) -> dict[str, Any]:
        """Return the facts that the templates show, or the reason why there are none."""
        try:
            # The dialog is closed at first: that keys were lost is for a call to say.
            found = keys_api.list_keys(telling=False)
        except ByokError as error:
            failure, said = text.REASONS.get(error.code, error.title), notice(request.args, {})
            return {"error": error, "failure": failure, "rows": [], "notice": said}
        state, now = get_state(), utcnow()
        settings, asked = state.settings, state.service.lookup.tiers
        longest = settings.max_key_lifetime
        known = list(state.service.catalog)
        names = {spec.id: spec.name for spec in (*Catalog.shipped, *known)}
        return {
            **found,
            "error": None,
            "beginnings": msgspec.json.encode(beginnings(known)).decode(),
            "rows": [build_row(status, found, settings, now) for status in found["providers"]],
            "can_choose": Tier.SESSION in settings.precedence,
            "first_day": now.date().isoformat(),
            "last_day": longest and (now + longest).date().isoformat(),
            "precedence": [text.TIERS[tier] for tier in found["precedence"] if tier in asked],
            "notice": notice(request.args, names),
        }

    def _nonce(self) -> str | None:
        make_nonce = get_state().settings.csp_nonce
        return make_nonce() if make_nonce else None

    def _render(self, name: str, **context: Any) -> Markup:
        everywhere = {
            "messages": text.MESSAGES,
            "nonce": self._nonce(),
            "style_url": _asset_url("byok.css"),
            "script_url": _asset_url("byok.js"),
            "page_url": url_for("byok.settings_page"),
            "action_url": lambda action: url_for("byok.settings_action", action=action),
            "csrf_field": current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token"),
            "collapsible": False,
            "in_dialog": False,
        }
        return Markup(_templates().get_template(name).render(everywhere | context))  # noqa: S704  (escaped by the template)


def _present_url() -> str:
    return with_outcome(request.script_root + request.full_path)


@cache
def _templates() -> Environment:
    """Return our own environment: the host can neither shadow our templates nor switch off escaping."""
    return Environment(
        loader=PackageLoader("flask_byok.templates", "."),
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
    offered, clear_tier = _offered(status), _clear_tier(status)
    # The tier of the key whose label and expiry the row shows.
    described = status["source"] or next(iter(status["tiers"]), None)
    if offered == "waiting":
        # The question shows its hint; the row's facts are about keys in use.
        status = {**status, "hint": None, "label": None, "validity": None, "expires_at": None}
    validity, expires_at = status["validity"], status["expires_at"]
    return {
        **status,
        "badge": text.BADGES[settings.labels][status["source"] or ""],
        "place": text.PLACES.get(status["source"]),
        "clear_tier": clear_tier,
        "clears_several": clear_tier == "user" and settings.keys_per_provider > 1,
        "can_persist": found["can_persist"] and _account_counts(status, found["precedence"]),
        "described_tier": described,
        "offer": text.OFFERS[offered] if offered and status["can_override"] else None,
        # The state of another owner's key would read as that of the person's own.
        "chip": _chip(status) if status["source"] or described in PERSONAL_TIERS else None,
        "verdict": validity and text.VERDICTS[validity["verdict"]],
        "is_to_expire": bool(expires_at) and datetime.fromisoformat(expires_at) > now,
    }


def _chip(status: Mapping[str, Any]) -> str | None:
    if status["state"] == "active" and status["expires_soon"]:
        return "Expires soon"
    return status["state"] and str(status["state"]).capitalize()


def _offered(status: Mapping[str, Any]) -> str | None:
    """Return the key in ``OFFERS`` for the key that could be kept and the one beside it."""
    tiers = status["tiers"]
    if not status["promotable"]:
        return None
    if "session" not in tiers:
        return "waiting_beside_user" if "user" in tiers else "waiting"
    if status["promotable_hint"] != status["hint"]:
        return "waiting_beside_session"
    if status["source"] != "session" or status["state"] != "active":
        return None  # a key that does not work is not worth keeping
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
    if status["promotable"]:
        return "session"
    # A hint without a key of one's own is that of a waiting key, which does not work.
    return next(iter(own), "session" if status["hint"] else None)
