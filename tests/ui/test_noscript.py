"""The settings with JavaScript switched off: plain forms, and codes in the query of the next page."""

from __future__ import annotations

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from flask_byok.testing import FakeProviders
from flask_byok.web.text import VERDICTS

from .browser import SettingsPage
from .conftest import ServeHost


@pytest.fixture
def settings(serve: ServeHost, plain_browser: Chrome) -> SettingsPage:
    """Show the standalone page of a host in a browser without JavaScript."""
    page = SettingsPage(plain_browser, serve().url)
    page.visit("/api/providers/settings?next=/")
    return page


def test_dialog_opens_and_closes(settings: SettingsPage) -> None:
    """The button opens the dialog and the cross closes it, by the browser's own commands."""
    settings.open()
    assert settings.row("openai").is_displayed()
    settings.driver.find_element(By.CSS_SELECTOR, ".byok-close button").click()
    assert not settings.dialog_is_open()


def test_page_is_linked(settings: SettingsPage) -> None:
    """Beside the button there is a link to the same settings as a page."""
    settings.visit()
    settings.driver.find_element(By.CSS_SELECTOR, "noscript .byok-page-link").click()
    assert settings.driver.title == "API keys"
    assert settings.badge("openai") == "NOT SET"


def test_script_only_controls_are_hidden(settings: SettingsPage) -> None:
    """Controls that need the script are not shown without it."""
    assert not settings.row("openai", "[data-byok-action=reveal]").is_displayed()


def test_key_is_saved(settings: SettingsPage, byok_fake_providers: FakeProviders) -> None:
    """A form saves the key; the next page says so, shows the hint and not the key."""
    api_key = byok_fake_providers.api_key("openai")
    settings.save("openai", api_key)
    settings.expect("Key saved")
    assert settings.badge("openai") == "YOUR KEY"
    assert api_key not in settings.driver.page_source + settings.driver.current_url
    settings.driver.find_element(By.LINK_TEXT, "Back").click()
    assert settings.driver.title == "A host"


def test_key_is_saved_from_the_dialog(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """A form in the dialog leads to the page with the message, from where a link leads back."""
    settings.open("/?dir=ltr")
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    settings.driver.find_element(By.LINK_TEXT, "Back").click()
    assert settings.driver.current_url == f"{settings.url}/?dir=ltr"


def test_inline_settings_return_to_their_page(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """A form of settings inside a host's page leads back to that page."""
    settings.visit("/inline?dir=rtl")
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    assert settings.driver.current_url.startswith(f"{settings.url}/inline?dir=rtl&byok=saved")


def test_bad_key_is_refused(settings: SettingsPage) -> None:
    """A refused key is named as such and not repeated anywhere."""
    settings.save("openai", "sk-not-a-key-of-anybody")
    settings.expect(f"Failed to save key: {VERDICTS['invalid']}")
    assert settings.badge("openai") == "NOT SET"
    assert "not-a-key" not in settings.driver.page_source + settings.driver.current_url


def test_key_is_checked(settings: SettingsPage, byok_fake_providers: FakeProviders) -> None:
    """Check asks about what is typed, else about the key in use."""
    settings.type("openai", byok_fake_providers.api_key("openai", "broke"))
    settings.press("openai", "validate")
    settings.expect("OpenAI: The key is good, but the account has no credit left.")
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    settings.press("openai", "validate")
    settings.expect("OpenAI: The key works.")


def test_clear_asks_first(settings: SettingsPage, byok_fake_providers: FakeProviders) -> None:
    """Clear unfolds the question; only Remove removes."""
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    assert not settings.row("openai", "[data-byok-action=confirm]").is_displayed()
    settings.press("openai", "clear")
    settings.press("openai", "confirm")
    settings.expect("Key removed")
    assert settings.badge("openai") == "NOT SET"
