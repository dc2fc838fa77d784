"""Usable by everyone: axe, keyboard, small windows, forced colours."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from selenium.webdriver import Keys
from selenium.webdriver.common.action_chains import ActionChains

from flask_byok.testing import FakeProviders
from tests.services import AXE_SCRIPT

from .browser import SettingsPage
from .conftest import ShowHost

#: What axe looks for: WCAG 2.2 AA, and what it calls best practice.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

THEMES: dict[str, dict[str, str]] = {
    "light": {"prefers_color_scheme": "light"},
    "dark": {"prefers_color_scheme": "dark"},
    "forced": {"forced_colors": "active", "prefers_color_scheme": "dark"},
}
SIZES = {"wide": (900, 1000), "narrow": (320, 640)}


def findings(settings: SettingsPage) -> list[str]:
    """Run axe on the page and return what it finds, with the element."""
    if not settings.driver.execute_script("return 'axe' in window"):
        settings.driver.execute_script(AXE_SCRIPT.read_text())
    found: dict[str, Any] = settings.driver.execute_async_script(
        """
        const [rules, done] = arguments;
        axe.run(document, { runOnly: rules, resultTypes: ["violations"] }).then(done, (e) => done({ error: `${e}` }));
        """,
        RULES,
    )
    assert "error" not in found, found
    assert len(found["passes"]) > 15, "axe did not look into the page"
    return [
        f"{v['id']}: {json.dumps(n['target'])}" for v in found["violations"] for n in v["nodes"]
    ]


@pytest.fixture
def settings(show: ShowHost) -> SettingsPage:
    """Show a host with each kind of row: own key, shared, locked, not set, two fields."""
    return show(BYOK_LOCKED_PROVIDERS=["groq"], BYOK_ALLOW_CUSTOM_PROVIDERS=True)


def show_every_state(settings: SettingsPage, fake: FakeProviders) -> None:
    """Bring the dialog into the state with the most to see: saved, refused, asking."""
    settings.open()
    settings.save("openai", fake.api_key("openai", "restricted"))
    settings.expect("Key saved. The key is good, but its permissions are narrow.")
    assert settings.row("openai", "[data-byok-verdict=valid_restricted]").is_displayed()
    settings.press("openai", "clear")
    settings.save("anthropic", "sk-ant-not-a-key-of-anybody")
    settings.wait(lambda: settings.message.startswith("Failed"), "refused")


def in_each_look(settings: SettingsPage) -> Iterator[str]:
    """Show what there is in each theme and width in turn."""
    for theme, size in itertools.product(THEMES, SIZES):
        # Without motion: axe would judge colours on their way from one theme to the next.
        settings.emulate(prefers_reduced_motion="reduce", **THEMES[theme])
        settings.resize(*SIZES[size])
        yield f"{theme}, {size}"


def test_axe_finds_nothing_in_the_dialog(settings: SettingsPage, fake: FakeProviders) -> None:
    """In each theme and width, axe has no finding, a finger finds each control, and nothing is cut off."""
    show_every_state(settings, fake)
    for look in in_each_look(settings):
        assert findings(settings) == [], look
        assert overflow_of(settings) <= 0, look
        assert small_controls(settings) == [], look


@pytest.mark.parametrize(
    "path", ["/api/providers/settings?next=/", "/inline", "/inline?dir=rtl", "/"]
)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_the_pages(settings: SettingsPage, path: str, theme: str) -> None:
    """The standalone page, the inline settings in both directions, and the host's page with the dialog shut."""
    settings.emulate(**THEMES[theme])
    settings.resize(*SIZES["wide" if theme == "light" else "narrow"])
    settings.visit(path)
    assert findings(settings) == []
    assert overflow_of(settings) <= 0


def test_axe_finds_nothing_in_the_failure(show: ShowHost) -> None:
    """The page of a failed load, which asks a visitor to sign in, is as accessible."""
    settings = show(BYOK_REQUIRE_LOGIN=True)
    settings.open()
    failure = settings.find("[data-byok-failure]")
    assert failure.text.startswith("Failed to load API keys: Please sign in first.")
    assert findings(settings) == []


def show_an_account(settings: SettingsPage, fake: FakeProviders) -> None:
    """Show a key in the account beside one that waits, one that expires soon, unfolded, and one for the session."""
    settings.open()
    settings.store("openai", fake.api_key("openai"))
    settings.open("/sign-in/ada")
    settings.store("openai", fake.api_key("openai", owner="ada"))
    soon = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    options = {"persist": True, "label": "Work", "expires_at": soon}
    key = fake.api_key("anthropic")
    settings.call("byok.setProviderKey('anthropic', given[0], given[1])", key, options)
    settings.row("google", "input[name=persist]").click()
    settings.save("google", fake.api_key("google"))
    settings.wait(lambda: settings.source("google") == "session", "saved")
    settings.row("anthropic", "[part=more] summary").click()


def test_axe_finds_nothing_in_an_account(settings: SettingsPage, fake: FakeProviders) -> None:
    """Keys in the account, such that expire soon and such that wait are as good, and nothing is cut off."""
    show_an_account(settings, fake)
    for look in in_each_look(settings):
        assert settings.row("openai", "[part=promotable]").is_displayed()
        assert settings.row("anthropic", "[data-byok-chip]").text == "Expires soon"
        assert settings.row("google", "[part=promotable]").is_displayed()
        assert findings(settings) == [], look
        assert overflow_of(settings) <= 0, look
        assert small_controls(settings) == [], look


def overflow_of(settings: SettingsPage) -> int:
    """Return by how many pixels the settings, or the page, are wider than there is room."""
    wider: int = settings.driver.execute_script("""
        const box = document.querySelector("byok-settings"), page = document.documentElement;
        return Math.max(page.scrollWidth - innerWidth, box.scrollWidth - box.clientWidth);
    """)
    return wider


def small_controls(settings: SettingsPage) -> list[str]:
    """Return the controls that are too small for a finger, which needs 44 pixels."""
    controls = settings.find_all(
        ":is([part=choice], [part~=button], [part~=input], [part=more] summary)"
    )
    shown = [(c.text, c.size) for c in controls if c.is_displayed()]
    return [text for text, size in shown if size["height"] < 44 or size["width"] < 44]


def test_harsh_host_style_changes_nothing_inside(settings: SettingsPage) -> None:
    """A host's resets and rules for dialogs and buttons do not reach the settings."""
    measure = """
        const root = document.querySelector("byok-settings").shadowRoot, row = root.querySelector("[part=row]");
        const parts = [document.querySelector("dialog"), row, ...row.querySelectorAll("input, button, [part=name]")];
        return parts.map((part) => [part.offsetWidth, part.offsetHeight, getComputedStyle(part).color]);
    """
    settings.open()
    expected = settings.driver.execute_script(measure)
    settings.open("/harsh")
    measured = settings.driver.execute_script(measure)
    for before, after in zip(expected, measured, strict=True):
        assert after == [
            pytest.approx(before[0], abs=30),
            pytest.approx(before[1], abs=4),
            before[2],
        ]
    assert findings(settings) == []


def test_axe_would_find_something(settings: SettingsPage) -> None:
    """The check can fail: an input without its label is found inside the shadow root."""
    settings.open()
    script = "arguments[0].querySelector('label').remove(); arguments[0].querySelector('[part=input]').placeholder = ''"
    settings.driver.execute_script(script, settings.row("openai"))
    assert any(found.startswith("label:") for found in findings(settings))


def test_keyboard_alone_is_enough(settings: SettingsPage, fake: FakeProviders) -> None:
    """Tab, Enter, Space and Escape open, save, ask, take back, clear and close; the focus is never lost."""
    settings.visit()

    def press(*keys: str) -> str:
        ActionChains(settings.driver).send_keys(*keys).perform()
        return settings.focused()

    def tab_to(control: str) -> None:
        for _ in range(8):
            if press(Keys.TAB) == control:
                return
        raise AssertionError(f"Tab does not lead to {control}")

    tab_to("button")
    press(Keys.ENTER)
    settings.wait(settings.dialog_is_open, "the dialog is open")
    settings.wait(settings.is_fresh, "the dialog shows what is there now")
    tab_to("api_key")
    press(fake.api_key("openai"), Keys.ENTER)
    settings.expect("Key saved")
    assert settings.focused() == "api_key"
    tab_to("clear")
    press(Keys.SPACE)
    settings.wait(lambda: settings.focused() == "cancel", "the question has the focus")
    assert press(Keys.ESCAPE) == "clear"
    assert settings.dialog_is_open()
    assert settings.source("openai") == "session"
    press(Keys.SPACE)
    settings.wait(lambda: settings.focused() == "cancel", "the question has the focus")
    ActionChains(settings.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(
        Keys.SHIFT
    ).perform()
    assert settings.focused() == "confirm"
    press(Keys.ENTER)
    settings.expect("Key removed")
    assert settings.badge("openai") == "NOT SET"
    assert settings.focused() == "api_key"
    press(Keys.ESCAPE)
    settings.wait(lambda: not settings.dialog_is_open(), "the dialog is shut")
    assert settings.focused() == "button"


def test_focus_is_not_hidden(settings: SettingsPage) -> None:
    """In a low window, the focused control is never behind the header or the message."""
    settings.resize(400, 420)
    settings.open()
    settings.press("openai", "validate")
    settings.wait(lambda: settings.message.startswith("Failed"), "a message stands at the bottom")
    hidden = """
        const root = document.querySelector("byok-settings").shadowRoot;
        const box = root.activeElement?.getBoundingClientRect();
        const edge = (part) => root.querySelector(`[part="${part}"]`).getBoundingClientRect();
        return box && (box.bottom > edge("message-bar").top + 1 || box.top < edge("header").bottom - 1)
          ? root.activeElement.outerHTML : null;
    """
    for _ in range(20):
        ActionChains(settings.driver).send_keys(Keys.TAB).perform()
        assert settings.driver.execute_script(hidden) is None
