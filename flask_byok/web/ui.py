"""Render the settings, as a dialog and as a page; without a script they work by plain forms."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
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
from ..model.owner import Tier
from . import keys_api, text
from .caller import ByokState, get_state
from .outcome import Notice, Outcome, local_path, notice, without_outcome
from .rows import build_row, expiry_dates

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
