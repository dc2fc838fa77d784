"""A strict Content-Security-Policy, `trusted-types 'none'` included, is never broken."""

from __future__ import annotations

from selenium.webdriver import Chrome

from flask_byok.testing import FakeProviders

from .browser import SettingsPage
from .conftest import ServeHost
from .host import POLICY


def violations(settings: SettingsPage) -> list[str]:
    """Return what the page's listener and the browser's log have about the policy."""
    seen = list(settings.driver.execute_script("return window.violations ?? []"))
    entries = settings.driver.get_log("browser")  # type: ignore[no-untyped-call]
    words = ("Content Security Policy", "Trusted Type", "TrustedHTML")
    return seen + [e["message"] for e in entries if any(word in e["message"] for word in words)]


def test_whole_tour_breaks_no_policy(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """Open, save, refuse, check, reveal, ask and clear: no violation is reported."""
    assert "trusted-types 'none'" in POLICY
    settings.open()
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
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


def test_standalone_page_keeps_its_own_policy(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """The standalone page sets a policy as strict, and works under it."""
    settings.visit("/api/providers/settings")
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    assert violations(settings) == []


def test_page_without_host_nonce_has_its_own(
    serve: ServeHost, browser: Chrome, byok_fake_providers: FakeProviders
) -> None:
    """Without BYOK_CSP_NONCE the standalone page makes a nonce for itself."""
    settings = SettingsPage(browser, serve(BYOK_CSP_NONCE=None).url)
    settings.visit("/api/providers/settings")
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")


def test_violation_would_be_seen(settings: SettingsPage) -> None:
    """The check can fail: markup from a string is both refused and reported."""
    settings.open()
    refused = settings.driver.execute_script("""
        try { document.querySelector("main").innerHTML = "<b>hello</b>"; } catch { return true; }
    """)
    assert refused
    found = settings.wait(lambda: violations(settings), "violation")
    assert any("require-trusted-types-for" in each for each in found)
