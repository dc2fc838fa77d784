"""The demo in a browser: what a newcomer sees and does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from tests.demo import Demo, run_demo

from .browser import SettingsPage
from .test_accessibility import SIZES, THEMES, findings
from .test_policy import violations


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """Run one demo for all tests of this file."""
    with run_demo() as running:
        yield running


@pytest.fixture
def page(demo: Demo, browser: Chrome) -> SettingsPage:
    """Open the chat."""
    settings = SettingsPage(browser, demo.url)
    settings.visit()
    return settings


def say(page: SettingsPage, text: str) -> None:
    """Write a message and press Enter."""
    page.driver.find_element(By.ID, "text").send_keys(text + Keys.ENTER)


def wait_for(page: SettingsPage, selector: str, text: str) -> None:
    """Wait until an element has the text in it."""
    find = page.driver.find_elements
    page.wait(lambda: any(text in e.text for e in find(By.CSS_SELECTOR, selector)), text)


def test_newcomer_pastes_a_key_and_chats(page: SettingsPage, demo: Demo) -> None:
    """A message without a key opens the settings at its provider; with the key saved, it is answered."""
    say(page, "Tell me a story")
    page.wait(page.dialog_is_open, "the dialog is open")
    assert page.focused() == "api_key"

    page.save("demo", demo.printed(r"demo-bad-\w+"))
    page.wait(lambda: page.message.startswith("Failed to save key"), "refused")
    page.save("demo", demo.printed(r"demo-good-\w+"))
    page.expect("Key saved")
    page.driver.find_element(By.CSS_SELECTOR, ".byok-close button").click()
    wait_for(page, "#source", "Answers with your key.")

    text = page.driver.find_element(By.ID, "text")
    assert text.get_property("value") == "Tell me a story"
    text.send_keys(Keys.ENTER)
    wait_for(page, ".theirs", "“Tell me a story”")
    wait_for(page, ".theirs .from", "Demo provider, with your key")
    wait_for(page, "#send", "Send")
    assert page.driver.find_elements(By.CSS_SELECTOR, ".failed") == []
    assert violations(page) == []


def test_refusal_in_the_middle_of_an_answer_is_said(page: SettingsPage, demo: Demo) -> None:
    """A stream that the provider breaks off keeps its words, and says what happened."""
    page.open()
    page.save("demo", demo.printed(r"demo-good-\w+"))
    page.expect("Key saved")
    page.visit()
    say(page, "error-midstream")
    wait_for(page, ".failed", "Demo provider has a fault of its own")
    wait_for(page, ".theirs", "Hello! This")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_pages_are_accessible(page: SettingsPage, theme: str, size: str) -> None:
    """Axe finds nothing on any page, and nothing is cut off at the side."""
    page.emulate(**THEMES[theme])
    page.resize(*SIZES[size])
    for path in ("/", "/sign-in", "/keys-to-try"):
        page.visit(path)
        assert findings(page) == []
        width = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= SIZES[size][0]
