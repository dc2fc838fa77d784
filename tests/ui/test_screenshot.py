"""The picture in the documentation, taken from the real dialog."""

from __future__ import annotations

import os
from pathlib import Path

from selenium.webdriver import Chrome

from flask_byok.testing import FakeProviders

from .browser import SettingsPage
from .conftest import ServeHost

PICTURE = Path(__file__).parents[2] / "docs/_static/byok-settings.png"


def test_picture_of_the_dialog(
    serve: ServeHost, browser: Chrome, byok_fake_providers: FakeProviders, tmp_path: Path
) -> None:
    """The documentation has a picture of the dialog; `BYOK_SCREENSHOTS=1` takes it again."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/groq_api_key").write_text(byok_fake_providers.api_key("groq"))
    shown = ["openai", "anthropic", "groq"]
    host = serve(BYOK_PROVIDERS=shown, BYOK_LOCKED_PROVIDERS=["groq"])
    settings = SettingsPage(browser, host.url)
    settings.resize(800, 960)
    settings.open("/sign-in/ada")
    settings.row("anthropic", "input[name=persist]").click()
    settings.save("anthropic", byok_fake_providers.api_key("anthropic", "restricted"))
    settings.wait(lambda: settings.message.startswith("Key saved"), "saved")
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    browser.execute_script("return document.activeElement.blur()")
    picture = browser.get_screenshot_as_png()
    if os.environ.get("BYOK_SCREENSHOTS"):
        PICTURE.write_bytes(picture)
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
