"""The demo in a browser: what a newcomer sees and does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from tests.demo import Demo, run_demo

from .browser import SettingsPage, violations
from .test_accessibility import findings, in_each_look


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


def find(page: SettingsPage, selector: str) -> WebElement:
    """Find an element of the page."""
    return page.driver.find_element(By.CSS_SELECTOR, selector)


def sign_in(page: SettingsPage, name: str) -> None:
    """Sign out if need be, and in as one of the accounts, with the password that the page shows."""
    for button in page.driver.find_elements(By.XPATH, "//button[text()='Sign out']"):
        button.click()
        wait_for(page, "nav a", "Sign in")
    page.visit("/sign-in")
    find(page, "#name").send_keys(name)
    password = page.driver.find_element(By.XPATH, f"//tr[td='{name}']/td[2]").text
    find(page, "#password").send_keys(password + Keys.ENTER)
    wait_for(page, ".who", name.capitalize())


def add_shared(page: SettingsPage, owner: str, api_key: str) -> None:
    """Fill in the admin's form and send it."""
    Select(find(page, "#owner")).select_by_visible_text(owner.capitalize())
    find(page, "#api_key").send_keys(api_key)
    page.driver.find_element(By.XPATH, "//button[text()='Add']").click()


def change_shared(page: SettingsPage, button: str, api_key: str = "") -> None:
    """Open the first key's dialog, type, and press a button."""
    find(page, "#keys button").click()
    find(page, "#new_key").send_keys(api_key)
    page.driver.find_element(By.XPATH, f"//dialog//button[text()='{button}']").click()


def test_admin_shares_a_key(page: SettingsPage, demo: Demo) -> None:
    """An admin sets, changes and deletes the key that a member then uses without seeing more than that it is there."""
    good, bad = (
        demo.printed(r"demo-good-\w+"),
        demo.printed(r"demo-good-\w+").replace("good", "bad"),
    )
    sign_in(page, "katherine")
    page.driver.find_element(By.LINK_TEXT, "Shared keys").click()
    add_shared(page, "everybody", good)
    wait_for(page, "#said", "Added")
    wait_for(page, "#keys", f"…{good[-4:]}")
    assert find(page, "#api_key").get_property("value") == ""

    change_shared(page, "Save", bad)
    wait_for(page, "#said", "rejected this key")
    wait_for(page, "#keys", f"…{good[-4:]}")

    sign_in(page, "ada")
    page.open()
    assert page.badge("demo") == "SHARED"
    assert page.row("demo", "[data-byok-place]").text == "Shared by this site"
    assert page.row_all("demo", "[data-byok-hint]") == []
    page.visit()
    wait_for(page, "#source", "Answers with the app's key.")
    say(page, "Whose key is it?")
    wait_for(page, ".theirs .from", "Demo provider, with the app's key")
    wait_for(page, "#send", "Send")

    sign_in(page, "katherine")
    page.visit("/shared-keys")
    wait_for(page, "#keys", "uses: 1")
    change_shared(page, "Delete…")
    wait_for(page, "#delete", "Delete Demo provider, Everybody?")
    find(page, "#delete .quiet").click()
    wait_for(page, "#keys", "uses: 1")
    change_shared(page, "Delete…")
    wait_for(page, "#delete", "Delete Demo provider, Everybody?")
    find(page, "#delete [value=delete]").click()
    wait_for(page, "#said", "Deleted")
    assert not find(page, "#keys").is_displayed()
    assert violations(page) == []


def test_newcomer_pastes_a_key_and_chats(page: SettingsPage, demo: Demo) -> None:
    """A message without a key opens the settings at its provider; with the key saved, it is answered."""
    say(page, "Tell me a story")
    page.wait(page.dialog_is_open, "the dialog is open")
    assert page.focused() == "api_key"

    page.save("demo", demo.printed(r"demo-bad-\w+"))
    page.wait(lambda: page.message.startswith("Failed to save key"), "refused")
    page.store("demo", demo.printed(r"demo-good-\w+"))
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
    page.store("demo", demo.printed(r"demo-good-\w+"))
    page.visit()
    say(page, "error-midstream")
    wait_for(page, ".failed", "Demo provider has too much to do")
    wait_for(page, ".theirs", "Hello! This")


def test_pages_are_accessible(page: SettingsPage, demo: Demo) -> None:
    """In each theme and width, axe finds nothing on any page, and nothing is cut off at the side."""
    for path in ("/", "/sign-in", "/keys-to-try"):
        page.visit(path)
        assert_accessible(page)
    sign_in(page, "katherine")
    page.visit("/shared-keys")
    add_shared(page, "everybody", demo.printed(r"demo-good-\w+"))
    wait_for(page, "#keys", "Everybody")
    change_shared(page, "Save", "demo-anything-at-all")
    wait_for(page, "#said", "The provider rejected this key")
    assert_accessible(page)
    find(page, "#keys button").click()
    assert_accessible(page)
    page.driver.find_element(By.XPATH, "//dialog//button[text()='Delete…']").click()
    page.wait(lambda: find(page, "#delete").is_displayed(), "the question")
    assert_accessible(page)
    find(page, "#delete [value=delete]").click()
    wait_for(page, "#said", "Deleted")
    sign_in(page, "ada")
    page.visit("/shared-keys")
    assert_accessible(page)


def assert_accessible(page: SettingsPage) -> None:
    """Let axe look at the page in each theme and width, and measure how wide the page is."""
    for look in in_each_look(page):
        assert findings(page) == [], look
        wide, window = page.driver.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert wide <= window, look
