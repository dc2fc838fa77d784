"""The dialog as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

from selenium.webdriver.common.by import By

from flask_byok.catalog import PROVIDERS, Field, ProviderSpec
from flask_byok.testing import FakeProviders

from .browser import REJECTED, SettingsPage
from .conftest import ShowHost


def test_good_key_is_saved_and_bad_one_refused(settings: SettingsPage, fake: FakeProviders) -> None:
    """A good key is checked, saved and shown by its hint alone; a refused one stays in its input, unsaved."""
    api_key = fake.api_key("openai")
    settings.open()
    assert settings.badge("openai") == "NOT SET"
    settings.store("openai", api_key)
    assert settings.badge("openai") == "YOUR KEY"
    assert settings.source("openai") == "session"
    assert settings.row("openai", "[data-byok-chip]").text == "Active"
    hint = settings.row("openai", "[data-byok-hint]").text
    assert hint.endswith(f"…{api_key[-4:]}")
    assert settings.typed("openai") == ""
    assert fake.calls_for("openai")[-1].api_key == api_key
    settings.save("openai", "sk-not-a-key-of-anybody")
    settings.expect(f"Failed to save key: {REJECTED}")
    assert settings.typed("openai") == "sk-not-a-key-of-anybody"
    assert settings.row("openai", "[data-byok-hint]").text == hint
    assert settings.input("openai").get_attribute("aria-invalid") == "true"
    assert settings.focused() == "api_key"
    assert settings.find("[data-byok-message]").get_attribute("role") == "alert"


def test_a_key_of_another_provider_is_named(settings: SettingsPage, fake: FakeProviders) -> None:
    """A line under the field says whose key was typed before it is sent, and the answer says it again."""
    settings.open()
    settings.type("openai", f'GROQ_API_KEY="{fake.api_key("groq")}"')
    guess = settings.row("openai", "[data-byok-guess]")
    assert guess.text == "This looks like a key for Groq."
    assert fake.calls == []
    settings.type("openai", fake.api_key("openai"))
    assert guess.text == ""
    for _ in range(2):
        fake.answer_next("openai", 503)
    settings.save("openai", fake.api_key("groq"))
    settings.wait(lambda: settings.message.startswith("Key saved. "), "saved")
    assert settings.message.endswith("This looks like a key for Groq.")


def test_the_whole_catalog(show: ShowHost, fake: FakeProviders) -> None:
    """The settings show every provider in the catalog's order, with a labelled input for each field and its choices."""
    settings = show(BYOK_PROVIDERS=None, BYOK_ALLOW_CUSTOM_PROVIDERS=True)
    settings.open()
    rows = settings.find_all("[data-byok-provider]")
    assert [row.get_attribute("data-byok-provider") for row in rows] == [s.id for s in PROVIDERS]
    shown = settings.driver.execute_script(
        """
        const inputs = [...arguments[0].querySelectorAll("[data-byok-provider] [part=input]")];
        return inputs.map((input) => [
          input.name, input.labels.length, [...(input.list?.options ?? [])].map((one) => one.value),
        ]);
        """,
        settings.driver.find_element(By.CSS_SELECTOR, "byok-settings").shadow_root,
    )
    fields = [field for spec in PROVIDERS for field in spec.fields]
    assert shown == [[field.name, 1, list(field.choices)] for field in fields]
    settings.store("moonshot", fake.api_key("moonshot"))
    assert settings.badge("moonshot") == "YOUR KEY"


def test_the_file_of_a_service_account_is_pasted(show: ShowHost, fake: FakeProviders) -> None:
    """A file of several lines is pasted as it was downloaded, checked and saved."""
    settings = show(BYOK_PROVIDERS=["google_speech"])
    settings.open()
    text = json.dumps(json.loads(fake.api_key("google_speech")), indent=2)
    settings.driver.execute_script(
        """
        const data = new DataTransfer();
        data.setData("text", arguments[1]);
        const paste = { clipboardData: data, bubbles: true, cancelable: true };
        arguments[0].dispatchEvent(new ClipboardEvent("paste", paste));
        """,
        settings.input("google_speech", "service_account_json"),
        text,
    )
    settings.press("google_speech", "save")
    settings.expect("Key saved")


def test_several_lines_are_pasted(settings: SettingsPage, fake: FakeProviders) -> None:
    """Of several variables that are pasted at once, which an input would run together, the provider's own is saved."""
    api_key = fake.api_key("openai")
    settings.open()
    settings.driver.execute_script(
        """
        const data = new DataTransfer();
        data.setData("text/plain", arguments[1]);
        const paste = { clipboardData: data, bubbles: true, cancelable: true, composed: true };
        arguments[0].dispatchEvent(new ClipboardEvent("paste", paste));
        """,
        settings.input("openai"),
        f"# mine\nGROQ_API_KEY={fake.api_key('groq')}\nOPENAI_API_KEY={api_key}\n",
    )
    assert settings.row("openai", "[data-byok-guess]").text == ""
    settings.press("openai", "save")
    settings.expect("Key saved")
    assert fake.calls_for("openai")[-1].api_key == api_key


def test_impatience_sends_once(settings: SettingsPage, fake: FakeProviders) -> None:
    """While a save is on its way the row says so, takes no second press and keeps the focus."""
    fake.latency = 3.0
    settings.open()
    settings.save("openai", fake.api_key("openai"))
    settings.press("openai", "save")
    settings.press("openai", "validate")
    assert settings.row("openai").get_attribute("aria-busy") == "true"
    assert settings.message == "Working…"
    assert settings.focused() == "validate"
    settings.expect("Key saved")
    assert settings.row("openai").get_attribute("aria-busy") != "true"
    assert len(fake.calls_for("openai")) == 1


def test_check_stores_nothing(settings: SettingsPage, fake: FakeProviders) -> None:
    """Check asks about the key that is typed, which stays there, else about the one in use, which may be refused."""
    api_key = fake.api_key("openai")
    settings.open()
    settings.type("openai", api_key)
    settings.press("openai", "validate")
    settings.wait(lambda: settings.message.startswith("OpenAI: The key works."), "verdict")
    assert settings.typed("openai") == api_key
    assert settings.badge("openai") == "NOT SET"
    settings.store("openai", api_key)
    fake.revoke("openai", api_key)
    settings.press("openai", "validate")
    settings.expect(REJECTED)
    assert settings.row("openai").get_attribute("data-byok-state") == "rejected"
    assert settings.row("openai", "[data-byok-chip]").text == "Rejected"


def test_clear_names_the_key_that_serves_instead(
    show: ShowHost, fake: FakeProviders, tmp_path: Path
) -> None:
    """If a shared key takes over, the message says so and the badge changes to SHARED."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/openai_api_key").write_text(fake.api_key("openai"))
    settings = show()
    settings.open()
    assert settings.badge("openai") == "SHARED"
    settings.store("openai", fake.api_key("openai", owner="ada"))
    assert settings.badge("openai") == "YOUR KEY"
    settings.press("openai", "clear")
    settings.press("openai", "confirm")
    settings.expect("Key removed. The shared key is now in use.")
    assert settings.badge("openai") == "SHARED"


def test_locked_provider_takes_no_key(show: ShowHost) -> None:
    """A locked provider's input is disabled, the reason stands beside it, and there is no Save."""
    settings = show(BYOK_LOCKED_PROVIDERS=["groq"])
    settings.open()
    field = settings.input("groq")
    assert not field.is_enabled()
    described_by = str(field.get_attribute("aria-describedby")).split()
    assert any(
        "Managed by your administrator" in settings.find(f"#{id}").text for id in described_by
    )
    assert settings.row_all("groq", ":is([data-byok-action=save], [data-byok-action=reveal])") == []


def test_reveal_shows_only_what_is_typed(settings: SettingsPage) -> None:
    """The eye shows and hides the typed text, and says which it does; with the dialog closed the text is gone."""
    settings.open()
    settings.type("openai", "sk-typed")
    button = settings.row("openai", "[data-byok-action=reveal]")
    states = []
    for _ in range(3):
        field = settings.input("openai")
        states.append((field.get_attribute("type"), button.get_attribute("aria-pressed")))
        button.click()
    assert states == [("password", "false"), ("text", "true"), ("password", "false")]
    settings.driver.find_element(By.CSS_SELECTOR, ".byok-close button").click()
    settings.wait(lambda: settings.typed("openai") == "", "emptied")
    assert not settings.dialog_is_open()
    assert settings.input("openai").get_attribute("type") == "password"


def test_custom_provider_has_its_fields(show: ShowHost, fake: FakeProviders) -> None:
    """A provider with a base URL of one's own takes both fields and is marked as standing alone."""
    settings = show(BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_ALLOW_PRIVATE_ENDPOINTS=True)
    settings.open()
    settings.type("custom", fake.base_url("custom"), "base_url")
    settings.store("custom", fake.api_key("custom"))
    assert settings.source("custom") == "session"
    assert "STANDALONE" in settings.row("custom").text


def test_named_endpoint(show: ShowHost, fake: FakeProviders) -> None:
    """A server that gets a name gets a row of its own, beside the one without; and loses it with its key."""
    fake.add_key("custom", "")
    settings = show(BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_ALLOW_PRIVATE_ENDPOINTS=True)
    settings.open()
    settings.type("custom", "My vLLM", "name")
    settings.type("custom", fake.base_url("custom"), "base_url")
    settings.row("custom", "[data-byok-action=save]").click()
    settings.wait(lambda: settings.source("custom/my-vllm") == "session", "a row of its own")
    assert settings.row("custom/my-vllm", "[part=name]").text == "My vLLM"
    assert settings.source("custom") == ""
    settings.row("custom/my-vllm", "[data-byok-action=validate]").click()
    settings.wait(lambda: "My vLLM: The key works." in settings.message, "checked")
    settings.row("custom/my-vllm", "[data-byok-action=clear]").click()
    settings.row("custom/my-vllm", "[data-byok-action=confirm]").click()
    settings.wait(lambda: not settings.find_all('[data-byok-provider="custom/my-vllm"]'), "gone")


def test_provider_name_is_text(show: ShowHost) -> None:
    """Markup in a provider's name, label or placeholder is shown, not run."""
    markup = "<img src=x onerror=\"document.title='run'\">"
    spec = ProviderSpec(
        id="odd",
        name=markup,
        base_url="https://example.com",
        fields=(Field(label=markup, placeholder=f'"{markup}'),),
    )
    settings = show(register=[spec])
    settings.open()
    assert settings.row("odd", "h3").text == markup
    assert settings.input("odd").get_attribute("placeholder") == f'"{markup}'
    assert settings.find_all("img") == []


def test_other_prefix_is_followed(show: ShowHost, fake: FakeProviders) -> None:
    """The script finds the interface where BYOK_URL_PREFIX puts it, also in a page without the dialog."""
    settings = show(BYOK_URL_PREFIX="/elsewhere/api")
    settings.visit("/inline")
    settings.store("openai", fake.api_key("openai"))
    assert settings.badge("openai") == "YOUR KEY"


def save_elsewhere(settings: SettingsPage, provider: str, api_key: str) -> None:
    """Save a key in another tab, and come back."""
    here = settings.driver.current_window_handle
    settings.driver.switch_to.new_window("tab")
    settings.open()
    settings.store(provider, api_key)
    settings.driver.close()
    settings.driver.switch_to.window(here)


def test_dialog_shows_what_another_tab_did(settings: SettingsPage, fake: FakeProviders) -> None:
    """Each time it is opened, the dialog shows the present keys, not those of when its page was loaded."""
    settings.visit("/")
    save_elsewhere(settings, "openai", fake.api_key("openai"))
    assert settings.source("openai") == ""
    settings.driver.find_element(By.CSS_SELECTOR, "[commandfor=byok-dialog]").click()
    settings.wait(lambda: settings.badge("openai") == "YOUR KEY", "the new key")
    settings.driver.find_element(By.CSS_SELECTOR, ".byok-close button").click()
    save_elsewhere(settings, "groq", fake.api_key("groq"))
    settings.call(
        "document.dispatchEvent(new CustomEvent('byok:open', {detail: {provider: 'groq'}}))"
    )
    settings.wait(lambda: settings.badge("groq") == "YOUR KEY", "the newer key")
    assert settings.focused() == "api_key"
    settings.type("groq", "typed")
    assert settings.typed("groq") == "typed"


def test_what_is_typed_at_once_stays(settings: SettingsPage, fake: FakeProviders) -> None:
    """Text typed before the fresh rows arrive stays; the other rows are fresh."""
    settings.visit("/")
    save_elsewhere(settings, "openai", fake.api_key("openai"))
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


def test_late_answer_does_not_undo_a_save(settings: SettingsPage, fake: FakeProviders) -> None:
    """Rows that were rendered before a save and come after it are not shown; what another tab did still is."""
    settings.visit("/")
    settings.driver.execute_script(HOLD_FIRST)
    settings.wait(lambda: settings.driver.execute_script("return !!window.release"), "an answer")
    save_elsewhere(settings, "groq", fake.api_key("groq"))
    settings.store("openai", fake.api_key("openai"))
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
