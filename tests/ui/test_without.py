"""What the settings do when something fails."""

from __future__ import annotations

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from flask_byok.testing import FakeProviders
from tests.services import RedisServer

from .browser import SettingsPage
from .conftest import ServeHost
from .host import Host


def go_offline(driver: Chrome, offline: bool) -> None:
    """Cut the browser off from the network, or let it back."""
    driver.execute_cdp_cmd("Network.enable", {})
    speed = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", speed)


def test_expired_token_is_renewed(
    serve: ServeHost, browser: Chrome, byok_fake_providers: FakeProviders
) -> None:
    """A token that died with the page open is replaced and the save sent once more, unseen."""
    host = serve()
    settings = SettingsPage(browser, host.url)
    settings.open()
    host.app.secret_key = "another secret, so that no earlier token holds"
    answers = count_answers(host)
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    assert answers["/api/providers/keys/set"] == [400, 200]


def test_token_is_renewed_only_once(serve: ServeHost, browser: Chrome) -> None:
    """A token that is refused again is not tried for ever; what was typed stays."""
    host = serve(WTF_CSRF_TIME_LIMIT=-1)
    settings = SettingsPage(browser, host.url)
    settings.open()
    answers = count_answers(host)
    settings.save("openai", "sk-any-key-at-all")
    settings.wait(lambda: settings.message.startswith("Failed to save key:"), "failed")
    assert answers["/api/providers/keys/set"] == [400, 400]
    assert settings.typed("openai") == "sk-any-key-at-all"


def test_lost_session_is_renewed(
    serve: ServeHost, browser: Chrome, byok_fake_providers: FakeProviders
) -> None:
    """If the session has ended while the page was open, a new one begins and the save is sent again."""
    settings = SettingsPage(browser, serve(WTF_CSRF_ENABLED=False).url)
    settings.open()
    browser.delete_all_cookies()
    settings.save("openai", byok_fake_providers.api_key("openai"))
    settings.expect("Key saved")
    assert settings.badge("openai") == "YOUR KEY"


def test_no_network_is_said_and_can_be_retried(
    settings: SettingsPage, byok_fake_providers: FakeProviders
) -> None:
    """Without a connection nothing is claimed, what was typed stays, and Try again saves it."""
    api_key = byok_fake_providers.api_key("openai")
    settings.open()
    go_offline(settings.driver, True)
    try:
        settings.save("openai", api_key)
        settings.expect("Failed to save key: No connection to the server. Please try again.")
        assert settings.typed("openai") == api_key
    finally:
        go_offline(settings.driver, False)
    settings.find("button[data-byok-action=retry]").click()
    settings.expect("Key saved")
    assert settings.badge("openai") == "YOUR KEY"


def test_success_is_said_only_on_2xx(settings: SettingsPage) -> None:
    """An answer that is not our JSON, such as a sign-in page, is a failure."""
    settings.open()
    settings.driver.execute_script(
        "window.fetch = async () => new Response('<h1>Sign in</h1>', { status: 200 })"
    )
    settings.save("openai", "sk-any-key-at-all")
    settings.expect("Failed to save key: The server gave an unexpected answer.")
    assert settings.typed("openai") == "sk-any-key-at-all"


@pytest.fixture
def harmed_redis() -> RedisServer:
    """Make a Redis for one test to kill."""
    return RedisServer()


def test_store_that_is_down(
    serve: ServeHost, browser: Chrome, byok_fake_providers: FakeProviders, harmed_redis: RedisServer
) -> None:
    """Without its store the dialog says that it cannot load, keeps what is typed, and recovers by Try again."""
    api_key = byok_fake_providers.api_key("openai")
    with harmed_redis:
        settings = SettingsPage(browser, serve(BYOK_REDIS=harmed_redis.url).url)
        settings.open()
        harmed_redis.kill()
        settings.save("openai", api_key)
        settings.wait(lambda: settings.message.startswith("Failed to save key:"), "refused")
        assert settings.typed("openai") == api_key
        settings.open()
        assert settings.find("[data-byok-failure]").text.startswith("Failed to load API keys: ")
        harmed_redis.start()
        settings.wait(lambda: try_again(settings), "the rows are back")
        assert settings.badge("openai") == "NOT SET"
        assert settings.focused() == "api_key"


def try_again(settings: SettingsPage) -> bool:
    """Press Try again, which the breaker may answer with one more failure, and look for rows."""
    if failures := settings.find_all("[data-byok-failure] [data-byok-action=retry]"):
        failures[0].click()
    settings.wait(lambda: settings.message == "", "loaded or failed")
    return bool(settings.find_all("[data-byok-provider]"))


def test_store_that_is_down_without_script(
    serve: ServeHost, plain_browser: Chrome, harmed_redis: RedisServer
) -> None:
    """The standalone page says the same without a script, and its link tries again."""
    with harmed_redis:
        settings = SettingsPage(plain_browser, serve(BYOK_REDIS=harmed_redis.url).url)
        harmed_redis.kill()
        settings.visit("/api/providers/settings")
        assert settings.find("[data-byok-failure]").text.startswith("Failed to load API keys: ")
        harmed_redis.start()

        def back() -> bool:
            settings.find("[data-byok-action=retry]").click()
            return bool(settings.find_all("[data-byok-provider]"))

        settings.wait(back, "the rows are back")


def test_going_back_finds_no_typed_key(settings: SettingsPage) -> None:
    """A page that comes back from the browser's back/forward cache has lost the typed key and shows fresh rows."""
    settings.visit("/inline")
    settings.type("openai", "sk-typed-and-left")
    settings.driver.execute_script("""
        const find = () => document.querySelector("byok-settings").shadowRoot.querySelector("[part=input]");
        window.before = find();
        window.refreshed = () => find() !== window.before;
        addEventListener("pageshow", (event) => { window.found = [event.persisted, find().value]; });
    """)
    settings.driver.find_element(By.LINK_TEXT, "Elsewhere").click()
    settings.driver.back()
    assert settings.driver.execute_script("return window.found") == [True, ""]
    settings.wait(
        lambda: settings.driver.execute_script("return window.refreshed()"), "the rows are fresh"
    )


def count_answers(host: Host) -> dict[str, list[int]]:
    """Record the status of each answer from now on, by path."""
    answers: dict[str, list[int]] = {}
    inner = host.app.wsgi_app

    def recording(environ: dict, start_response: object) -> object:  # type: ignore[type-arg]
        def start(status: str, *rest: object) -> object:
            answers.setdefault(environ["PATH_INFO"], []).append(int(status[:3]))
            return start_response(status, *rest)  # type: ignore[operator]

        return inner(environ, start)  # type: ignore[arg-type]

    host.app.wsgi_app = recording  # type: ignore[method-assign,assignment]
    return answers
