"""What a host has of the settings: their module, their policy, and the picture in the documentation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from flask_byok.testing import FakeProviders

from .browser import REJECTED, SettingsPage, violations
from .conftest import ServeHost, ShowHost
from .host import POLICY


@pytest.fixture
def open_settings(settings: SettingsPage) -> SettingsPage:
    """Show the host's page, which records the events of the module."""
    settings.visit()
    settings.driver.execute_script("""
        window.changes = [];
        document.addEventListener("byok:change", (event) => window.changes.push(event.detail));
    """)
    return settings


def test_module_exports_the_verbs(open_settings: SettingsPage) -> None:
    """The module exports the five verbs and `hasApiKey`, and nothing else."""
    verbs = [f"{verb}ProviderKey" for verb in ("clear", "set", "validate")]
    assert set(open_settings.call("Object.keys(byok)")) == {
        *(*verbs, "getProviderKeys", "promoteProviderKeys", "hasApiKey")
    }


def test_verbs_work_and_tell_of_changes(open_settings: SettingsPage, fake: FakeProviders) -> None:
    """A host's script can save, check and clear; each change is an event without the key, and the row follows."""
    page, api_key = open_settings, fake.api_key("openai")
    assert page.call("byok.hasApiKey('openai')") is False
    assert page.call("byok.validateProviderKey('openai', given[0])", api_key)["verdict"] == "valid"
    assert page.call("byok.setProviderKey('openai', given[0])", api_key)["success"] is True
    assert page.call("byok.hasApiKey('openai')") is True
    page.call("byok.setProviderKey('gemini', given[0])", fake.api_key("google"))
    assert page.call("byok.hasApiKey('gemini')") is page.call("byok.hasApiKey('google')") is True
    page.call("byok.clearProviderKey('gemini')")
    fake.revoke("openai", api_key)
    assert page.call("byok.validateProviderKey('openai')")["valid"] is False
    assert page.call("byok.hasApiKey('openai')") is False
    fake.add_key("openai", api_key)
    page.wait(lambda: page.source("openai") == "session", "the row follows")
    assert page.call("byok.validateProviderKey('openai')")["valid"] is True
    assert page.call("byok.clearProviderKey('openai')")["cleared"] == ["session"]
    page.wait(lambda: page.source("openai") == "", "the row follows")
    changes = page.driver.execute_script("return window.changes")
    assert [(c["action"], c["provider"]) for c in changes] == [
        ("save", "openai"),
        ("save", "gemini"),
        ("clear", "gemini"),
        ("validate", "openai"),
        ("validate", "openai"),
        ("clear", "openai"),
    ]
    assert api_key not in str(changes)


def test_key_is_kept_in_the_account(open_settings: SettingsPage, fake: FakeProviders) -> None:
    """A host's script chooses tier, label and expiry of a key, and can promote a visitor's."""
    page, first, second = open_settings, *(fake.api_key("openai", owner=o) for o in "ab")
    page.call("byok.setProviderKey('openai', given[0])", first)
    # A request under way at the sign-in would store the visitor's session again: Flask-Session stores it whole.
    page.wait(lambda: page.source("openai") == "session", "the row follows")
    page.visit("/sign-in/ada")
    options = {"persist": True, "label": "Work", "expires_at": "2999-12-31T23:59:59Z"}
    saved = page.call("byok.setProviderKey('openai', given[0], given[1])", second, options)
    status = saved["provider"]
    assert (status["source"], status["label"]) == ("user", "Work")
    assert status["expires_at"] == "2999-12-31T23:59:59.000Z"
    assert page.call("byok.getProviderKeys()")["can_persist"] is True
    assert page.call("byok.promoteProviderKeys(['openai'])") == {"promoted": [], "kept": ["openai"]}
    replaced = page.call("byok.promoteProviderKeys(['openai'], 'replace')")
    assert replaced == {"promoted": ["openai"], "kept": []}
    # Be the dialog open or not.
    page.wait(
        lambda: first[-4:] in page.row("openai").get_property("textContent"), "the row follows"
    )


def test_refusal_is_an_error_with_a_code(open_settings: SettingsPage) -> None:
    """A verb that fails rejects with the problem's code and its sentence, and changes nothing."""
    failed = open_settings.call("byok.setProviderKey('openai', 'sk-not-a-key-of-anybody')")
    assert failed == {"code": "key_refused", "message": REJECTED}
    failed = open_settings.call("byok.promoteProviderKeys()")
    assert failed["code"] == "owner_required"
    assert open_settings.driver.execute_script("return window.changes") == []


def test_event_opens_the_dialog_at_a_provider(open_settings: SettingsPage) -> None:
    """`byok:open` opens the dialog; with a provider, the focus is where its key is typed."""
    open_settings.driver.execute_script(
        "document.dispatchEvent(new CustomEvent('byok:open', { detail: { provider: 'google' } }))"
    )
    assert open_settings.dialog_is_open()
    field = open_settings.driver.execute_script(
        "return document.querySelector('byok-settings').shadowRoot.activeElement.id"
    )
    assert field == "byok-google-api_key"


def test_event_leads_to_the_page_where_there_is_no_dialog(open_settings: SettingsPage) -> None:
    """`byok:open` on a page without the dialog goes to the standalone page."""
    open_settings.visit("/inline")
    open_settings.driver.execute_script("document.dispatchEvent(new CustomEvent('byok:open'))")
    open_settings.wait(
        lambda: open_settings.driver.current_url.endswith("/api/providers/settings"), "page"
    )


def test_missing_browser_features_are_filled_in(open_settings: SettingsPage) -> None:
    """A template that the browser left alone becomes the shadow root, and works."""
    open_settings.driver.execute_script("""
        const old = document.querySelector("byok-settings");
        const settings = document.createElement("byok-settings");
        for (const { name, value } of old.attributes) settings.setAttribute(name, value);
        settings.removeAttribute("data-byok-ready");
        const template = document.createElement("template");
        template.content.append(...[...old.shadowRoot.childNodes].map((node) => node.cloneNode(true)));
        settings.append(template);
        old.replaceWith(settings);
        document.querySelector("dialog").showModal();
    """)
    open_settings.wait(open_settings.is_fresh, "the dialog shows what is there now")
    open_settings.save("openai", "short")
    open_settings.wait(lambda: open_settings.message.startswith("Failed to save key"), "an answer")


# a strict Content-Security-Policy, trusted-types 'none' included, is never broken


def test_whole_tour_breaks_no_policy(settings: SettingsPage, fake: FakeProviders) -> None:
    """Open, save, refuse, check, reveal, ask and clear: no violation is reported."""
    assert "trusted-types 'none'" in POLICY
    settings.open()
    settings.store("openai", fake.api_key("openai"))
    settings.save("openai", "sk-not-a-key-of-anybody")
    settings.wait(lambda: settings.message.startswith("Failed"), "refused")
    settings.press("openai", "reveal")
    settings.press("openai", "clear")
    settings.press("openai", "confirm")
    settings.expect("Key removed")
    settings.driver.execute_script(
        "dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"
    )
    settings.wait(lambda: settings.typed("openai") == "", "rendered again")
    assert violations(settings) == []


def test_standalone_page_keeps_its_own_policy(show: ShowHost, fake: FakeProviders) -> None:
    """The standalone page sets a policy as strict and works under it, also with a nonce that it makes itself."""
    for config in ({}, {"BYOK_CSP_NONCE": None}):
        settings = show(**config)
        settings.visit("/api/providers/settings")
        settings.store("openai", fake.api_key("openai"))
        assert violations(settings) == []


def test_violation_would_be_seen(settings: SettingsPage) -> None:
    """The check can fail: markup from a string is both refused and reported."""
    settings.open()
    refused = settings.driver.execute_script("""
        try { document.querySelector("main").innerHTML = "<b>hello</b>"; } catch { return true; }
    """)
    assert refused
    found = settings.wait(lambda: violations(settings), "violation")
    assert any("require-trusted-types-for" in each for each in found)


# the picture in the documentation


PICTURE = Path(__file__).parents[2] / "docs/_static/byok-settings.png"


def test_picture_of_the_dialog(
    serve: ServeHost, browser: Chrome, fake: FakeProviders, tmp_path: Path
) -> None:
    """The documentation has a picture of the dialog; `BYOK_SCREENSHOTS=1` takes it again."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/groq_api_key").write_text(fake.api_key("groq"))
    shown = ["openai", "anthropic", "groq"]
    host = serve(BYOK_PROVIDERS=shown, BYOK_LOCKED_PROVIDERS=["groq"])
    settings = SettingsPage(browser, host.url)
    settings.resize(800, 960)
    settings.open("/sign-in/ada")
    settings.row("anthropic", "input[name=persist]").click()
    settings.save("anthropic", fake.api_key("anthropic", "restricted"))
    settings.wait(lambda: settings.message.startswith("Key saved"), "saved")
    settings.store("openai", fake.api_key("openai"))
    browser.execute_script("return document.activeElement.blur()")
    picture = browser.get_screenshot_as_png()
    if os.environ.get("BYOK_SCREENSHOTS"):
        PICTURE.write_bytes(picture)
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
