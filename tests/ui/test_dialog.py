"""The dialog as a person uses it."""

from __future__ import annotations

from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from flask_byok.catalog import Field, ProviderSpec
from flask_byok.testing import FakeProviders
from flask_byok.web.text import VERDICTS

from .browser import SettingsPage
from .conftest import ServeHost


def test_good_key_is_saved(settings: SettingsPage, byok_fake_providers: FakeProviders) -> None:
    """A good key is checked at its provider, saved, and shown by its hint alone."""
    api_key = byok_fake_providers.api_key("openai")
    settings.open()
    assert settings.badge("openai") == "NOT SET"
    settings.save("openai", api_key)
    settings.expect("Key saved")
    assert settings.badge("openai") == "YOUR KEY"
    assert settings.source("openai") == "session"
    assert settings.row("openai", "[data-byok-chip]").text == "Active"
    assert settings.row("openai", "[data-byok-hint]").text.endswith(f"…{api_key[-4:]}")
    assert settings.typed("openai") == ""
    assert byok_fake_providers.calls_for("openai")[-1].api_key == api_key


def test_bad_key_is_refused(settings: SettingsPage, byok_fake_providers: FakeProviders) -> None:
    """A key that its provider does not know is refused; what was typed stays, and so does the key before."""
    settings.open()
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    hint = settings.row("openai", "[data-byok-hint]").text
    settings.save("openai", "sk-not-a-key-of-anybody")
    settings.expect(f"Failed to save key: {VERDICTS['invalid']}")
    assert settings.typed("openai") == "sk-not-a-key-of-anybody"
    assert settings.row("openai", "[data-byok-hint]").text == hint
    assert settings.input("openai").get_attribute("aria-invalid") == "true"
    assert settings.focused() == "api_key"
    assert settings.find("[data-byok-message]").get_attribute("role") == "alert"


def test_restricted_key_is_saved_with_a_caveat(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """A key with narrow permissions is saved, and the message says what the check found."""
    settings.open()
    settings.save("openai", byok_fake_providers.api_key("openai", "restricted"))
    settings.expect("Key saved. The key is good, but its permissions are narrow.")
    assert settings.row("openai", "[data-byok-verdict=valid_restricted]").is_displayed()


def test_impatience_sends_once(settings: SettingsPage, byok_fake_providers: FakeProviders) -> None:
    """While a save is on its way the row says so, takes no second press and keeps the focus."""
    byok_fake_providers.latency = 3.0
    settings.open()
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.press("openai", "save")
    settings.press("openai", "validate")
    assert settings.row("openai").get_attribute("aria-busy") == "true"
    assert settings.message == "Working…"
    assert settings.focused() == "validate"
    settings.expect("Key saved")
    assert settings.row("openai").get_attribute("aria-busy") != "true"
    assert len(byok_fake_providers.calls_for("openai")) == 1


def test_typed_key_is_checked_without_saving(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """Check asks about the key that is typed, stores nothing, and leaves it in the input."""
    api_key = byok_fake_providers.api_key("openai")
    settings.open()
    settings.type("openai", api_key)
    settings.press("openai", "validate")
    settings.wait(lambda: settings.message.startswith("OpenAI: The key works."), "verdict")
    assert settings.typed("openai") == api_key
    assert settings.badge("openai") == "NOT SET"


def test_key_in_use_is_checked(settings: SettingsPage, byok_fake_providers: FakeProviders) -> None:
    """Check with nothing typed asks about the key in use, and the row then shows that it was refused."""
    api_key = byok_fake_providers.api_key("openai")
    settings.open()
    settings.save("openai", api_key)
    settings.expect("Key saved")
    byok_fake_providers.revoke("openai", api_key)
    settings.press("openai", "validate")
    settings.expect(f"OpenAI: {VERDICTS['invalid']}")
    assert settings.row("openai").get_attribute("data-byok-state") == "rejected"
    assert settings.row("openai", "[data-byok-chip]").text == "Rejected"


def test_clear_asks_first(settings: SettingsPage, byok_fake_providers: FakeProviders) -> None:
    """Clear asks; Escape takes the question back and leaves key and dialog; Remove removes."""
    settings.open()
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    settings.press("openai", "clear")
    settings.wait(lambda: settings.focused() == "cancel", "the question has the focus")
    settings.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert settings.focused() == "clear"
    assert settings.dialog_is_open()
    assert settings.source("openai") == "session"
    settings.press("openai", "clear")
    settings.press("openai", "confirm")
    settings.expect("Key removed")
    assert settings.badge("openai") == "NOT SET"
    assert settings.focused() == "api_key"


def test_clear_names_the_key_that_serves_instead(
    serve: ServeHost, browser: Chrome, byok_fake_providers: FakeProviders, tmp_path: Path
) -> None:
    """If a shared key takes over, the message says so and the badge changes to SHARED."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/openai_api_key").write_text(byok_fake_providers.api_key("openai"))
    settings = SettingsPage(browser, serve().url)
    settings.open()
    assert settings.badge("openai") == "SHARED"
    settings.save("openai", byok_fake_providers.api_key("openai", owner="ada"))
    settings.expect("Key saved")
    assert settings.badge("openai") == "YOUR KEY"
    settings.press("openai", "clear")
    settings.press("openai", "confirm")
    settings.expect("Key removed. The shared key is now in use.")
    assert settings.badge("openai") == "SHARED"


def test_locked_provider_takes_no_key(serve: ServeHost, browser: Chrome) -> None:
    """A locked provider's input is disabled, the reason stands beside it, and there is no Save."""
    settings = SettingsPage(browser, serve(BYOK_LOCKED_PROVIDERS=["groq"]).url)
    settings.open()
    field = settings.input("groq")
    assert not field.is_enabled()
    described_by = str(field.get_attribute("aria-describedby")).split()
    assert any(
        "Managed by your administrator" in settings.find(f"#{id}").text for id in described_by
    )
    assert settings.row_all("groq", ":is([data-byok-action=save], [data-byok-action=reveal])") == []


def test_reveal_shows_only_what_is_typed(settings: SettingsPage) -> None:
    """The eye shows and hides the typed text, and says which it does."""
    settings.open()
    settings.type("openai", "sk-typed")
    button = settings.row("openai", "[data-byok-action=reveal]")
    states = []
    for _ in range(3):
        field = settings.input("openai")
        states.append((field.get_attribute("type"), button.get_attribute("aria-pressed")))
        button.click()
    assert states == [("password", "false"), ("text", "true"), ("password", "false")]


def test_closing_the_dialog_forgets_what_is_typed(settings: SettingsPage) -> None:
    """A key that was typed and not saved is gone when the dialog is closed."""
    settings.open()
    settings.type("openai", "sk-typed-and-left")
    settings.press("openai", "reveal")
    settings.driver.find_element(By.CSS_SELECTOR, ".byok-close button").click()
    settings.wait(lambda: settings.typed("openai") == "", "emptied")
    assert not settings.dialog_is_open()
    assert settings.input("openai").get_attribute("type") == "password"


def test_custom_provider_has_two_fields(
    serve: ServeHost, browser: Chrome, byok_fake_providers: FakeProviders
) -> None:
    """A provider with a base URL of one's own takes both fields and is marked as standing alone."""
    host = serve(BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_ALLOW_PRIVATE_ENDPOINTS=True)
    settings = SettingsPage(browser, host.url)
    settings.open()
    settings.type("custom", byok_fake_providers.base_url("custom"), "base_url")
    settings.save("custom", byok_fake_providers.api_key("custom"))
    settings.expect("Key saved")
    assert settings.source("custom") == "session"
    assert "STANDALONE" in settings.row("custom").text


def test_provider_name_is_text(serve: ServeHost, browser: Chrome) -> None:
    """Markup in a provider's name, label or placeholder is shown, not run."""
    markup = "<img src=x onerror=\"document.title='run'\">"
    spec = ProviderSpec(
        id="odd",
        name=markup,
        base_url="https://example.com",
        fields=(Field(label=markup, placeholder=f'"{markup}'),),
    )
    host = serve(register=[spec])
    settings = SettingsPage(browser, host.url)
    settings.open()
    assert settings.row("odd", "h3").text == markup
    assert settings.input("odd").get_attribute("placeholder") == f'"{markup}'
    assert settings.find_all("img") == []


def test_settings_work_inside_a_page(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """The same settings, inline in a page of the host, save a key too."""
    settings.visit("/inline")
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    assert settings.badge("openai") == "YOUR KEY"


def test_other_prefix_is_followed(
    serve: ServeHost, browser: Chrome, byok_fake_providers: FakeProviders
) -> None:
    """The script finds the interface where BYOK_URL_PREFIX puts it."""
    settings = SettingsPage(browser, serve(BYOK_URL_PREFIX="/elsewhere/api").url)
    settings.open()
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    assert settings.badge("openai") == "YOUR KEY"


def save_elsewhere(settings: SettingsPage, provider: str, api_key: str) -> None:
    """Save a key in another tab, and come back."""
    here = settings.driver.current_window_handle
    settings.driver.switch_to.new_window("tab")
    settings.open()
    settings.save(provider, api_key)
    settings.expect("Key saved")
    settings.driver.close()
    settings.driver.switch_to.window(here)


def test_dialog_shows_what_another_tab_did(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """Each time it is opened, the dialog shows the present keys, not those of when its page was loaded."""
    settings.visit("/")
    save_elsewhere(settings, "openai", byok_fake_providers.api_key("openai"))
    assert settings.source("openai") == ""
    settings.driver.find_element(By.CSS_SELECTOR, "[commandfor=byok-dialog]").click()
    settings.wait(lambda: settings.badge("openai") == "YOUR KEY", "the new key")
    settings.driver.find_element(By.CSS_SELECTOR, ".byok-close button").click()
    save_elsewhere(settings, "groq", byok_fake_providers.api_key("groq"))
    settings.call(
        "document.dispatchEvent(new CustomEvent('byok:open', {detail: {provider: 'groq'}}))"
    )
    settings.wait(lambda: settings.badge("groq") == "YOUR KEY", "the newer key")
    assert settings.focused() == "api_key"
    settings.type("groq", "typed")
    assert settings.typed("groq") == "typed"


def test_what_is_typed_at_once_stays(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """Text typed before the fresh rows arrive stays; the other rows are fresh."""
    settings.visit("/")
    save_elsewhere(settings, "openai", byok_fake_providers.api_key("openai"))
    field = settings.input("groq")
    settings.driver.execute_script(
        "document.querySelector('#byok-dialog').showModal();"
        "arguments[0].focus(); arguments[0].value = 'half a ke'",
        field,
    )
    settings.wait(lambda: settings.badge("openai") == "YOUR KEY", "the new key")
    field.send_keys("y")
    assert settings.typed("groq") == "half a key"


#: Keeps back the first answer with rows, which has come but is not seen, until `release` is called.
HOLD_FIRST = """
    const { prototype } = XMLHttpRequestEventTarget;
    const onload = Object.getOwnPropertyDescriptor(prototype, "onload");
    let asked = 0;
    Object.defineProperty(prototype, "onload", { ...onload, set(seen) {
      const hold = (event) => { window.release = () => seen.call(this, event); };
      onload.set.call(this, asked++ ? seen : hold);
    }});
    document.querySelector("#byok-dialog").showModal();
"""


def test_late_answer_does_not_undo_a_save(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """Rows that were rendered before a save and come after it are not shown; what another tab did still is."""
    settings.visit("/")
    settings.driver.execute_script(HOLD_FIRST)
    settings.wait(lambda: settings.driver.execute_script("return !!window.release"), "an answer")
    save_elsewhere(settings, "groq", byok_fake_providers.api_key("groq"))
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    settings.driver.execute_script("""
        const { shadowRoot } = document.querySelector("byok-settings");
        window.shown = [];
        new MutationObserver(() => window.shown.push(
          shadowRoot.querySelector('[data-byok-provider="openai"]').dataset.byokSource
        )).observe(shadowRoot, { childList: true, subtree: true });
        window.release();
    """)
    settings.wait(lambda: settings.badge("groq") == "YOUR KEY", "the other tab's key")
    assert settings.badge("openai") == "YOUR KEY"
    assert set(settings.driver.execute_script("return window.shown")) == {"session"}
