"""Headless Chromium, and the settings as a person uses them in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=900,1000",
)


@contextmanager
def chromium(*, script: bool = True) -> Iterator[Chrome]:
    """Run a browser with a new profile, with or without JavaScript."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if not script:
            blocked = {"profile.managed_default_content_settings.javascript": 2}
            options.add_experimental_option("prefs", blocked)
        driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


#: What the settings say of a key that OpenAI does not know.
REJECTED = (
    "OpenAI rejected this key. Check that you copied all of it, or create a new one at OpenAI."
)


def violations(settings: SettingsPage) -> list[str]:
    """Return what the page's listener and the browser's log have about the policy."""
    seen = list(settings.driver.execute_script("return window.violations ?? []"))
    entries = settings.driver.get_log("browser")  # type: ignore[no-untyped-call]
    words = ("Content Security Policy", "Trusted Type", "TrustedHTML")
    return seen + [e["message"] for e in entries if any(word in e["message"] for word in words)]


class SettingsPage:
    """What a person sees and does in the settings, be they a dialog or a page."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def visit(self, path: str = "/") -> None:
        """Load a page of the host."""
        self.driver.get(self.url + path)

    def open(self, path: str = "/") -> None:
        """Load a page of the host and open its dialog with the button."""
        self.visit(path)
        self.driver.find_element(By.CSS_SELECTOR, "[commandfor=byok-dialog]").click()
        self.wait(lambda: self.dialog_is_open(), "the dialog is open")
        self.wait(self.is_fresh, "the dialog shows what is there now")

    def is_fresh(self) -> bool:
        """Return True if the settings wait for no answer of the server."""
        settings = self.driver.find_element(By.CSS_SELECTOR, "byok-settings")
        return settings.get_attribute("aria-busy") != "true"

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
        """Poll until the condition holds; errors, as of a replaced element, count as "not yet"."""
        waiting = WebDriverWait(self.driver, seconds, 0.05, ignored_exceptions=[Exception])
        return waiting.until(lambda _: condition(), what)

    def dialog_is_open(self) -> bool:
        """Return True if the dialog is open."""
        dialog = self.driver.find_element(By.ID, "byok-dialog")
        return dialog.get_attribute("open") is not None

    def find(self, selector: str) -> WebElement:
        """Find an element inside the shadow root."""
        root = self.driver.find_element(By.CSS_SELECTOR, "byok-settings").shadow_root
        return root.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        """Find all such elements inside the shadow root."""
        root = self.driver.find_element(By.CSS_SELECTOR, "byok-settings").shadow_root
        return root.find_elements(By.CSS_SELECTOR, selector)

    def row(self, provider: str, selector: str = "") -> WebElement:
        """Find a provider's row, or an element in it."""
        return self.find(f'[data-byok-provider="{provider}"] {selector}'.strip())

    def row_all(self, provider: str, selector: str) -> list[WebElement]:
        """Find all such elements in a provider's row."""
        return self.find_all(f'[data-byok-provider="{provider}"] {selector}')

    def source(self, provider: str) -> str | None:
        """Return the tier that the row names."""
        return self.row(provider).get_attribute("data-byok-source")

    def badge(self, provider: str) -> str:
        """Return the row's badge."""
        return self.row(provider, "[data-byok-badge]").text

    def input(self, provider: str, name: str = "api_key") -> WebElement:
        """Find where a field is typed."""
        return self.row(provider, f'input[name="{name}"]')

    def typed(self, provider: str) -> str:
        """Return the text in the key's input."""
        return str(self.input(provider).get_property("value"))

    def type(self, provider: str, text: str, name: str = "api_key") -> None:
        """Type into a field."""
        field = self.input(provider, name)
        field.clear()
        field.send_keys(text)

    def press(self, provider: str, action: str) -> None:
        """Press one of a row's buttons."""
        self.row(provider, f'[data-byok-action="{action}"]').click()

    def save(self, provider: str, api_key: str) -> None:
        """Type a key and press Save."""
        self.type(provider, api_key)
        self.press(provider, "save")

    def store(self, provider: str, api_key: str) -> None:
        """Save a good key and wait until the settings say that it is saved."""
        self.save(provider, api_key)
        self.expect("Key saved")

    @property
    def message(self) -> str:
        """The text of the live region."""
        return self.find("[data-byok-message]").text

    def expect(self, message: str) -> None:
        """Wait until this is the whole text of the live region."""
        try:
            self.wait(lambda: self.message == message, message)
        except Exception:
            assert self.message == message
            raise

    def focused(self) -> str:
        """Return the action, name or tag of the focused element, inside the shadow root too."""
        name = self.driver.execute_script("""
            let element = document.activeElement;
            while (element.shadowRoot?.activeElement) element = element.shadowRoot.activeElement;
            return element.dataset.byokAction ?? (element.name || element.tagName.toLowerCase());
        """)
        return str(name)

    def call(self, expression: str, *arguments: Any) -> Any:
        """Evaluate and await an expression; `byok` is the module, `given` the arguments."""
        return self.driver.execute_async_script(
            f"""
            const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);
            const source = document.querySelector('script[type="module"]').src;
            import(source)
              .then(async (byok) => done(await ({expression})))
              .catch((error) => done({{ code: error.code, message: error.message }}));
            """,
            *arguments,
        )

    def emulate(self, **features: str) -> None:
        """Set media features: `prefers_color_scheme="dark"`."""
        chosen = [{"name": n.replace("_", "-"), "value": v} for n, v in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": chosen})

    def resize(self, width: int, height: int) -> None:
        """Set the size of the viewport in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
