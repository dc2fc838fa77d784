"""The settings without a network, session or store, and without JavaScript."""

from __future__ import annotations

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from flask_byok.testing import FakeProviders
from flask_byok.web.text import VERDICTS
from tests.services import PostgresServer, RedisServer

from .browser import SettingsPage
from .conftest import ServeHost, ShowHost
from .host import Host


def go_offline(driver: Chrome, offline: bool) -> None:
    """Cut the browser off from the network, or let it back."""
    driver.execute_cdp_cmd("Network.enable", {})
    speed = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", speed)


def test_expired_token_is_renewed(serve: ServeHost, browser: Chrome, fake: FakeProviders) -> None:
    """A token that died with the page open is replaced and the save sent once more, unseen."""
    host = serve()
    settings = SettingsPage(browser, host.url)
    settings.open()
    host.app.secret_key = "another secret, so that no earlier token holds"
    answers = count_answers(host)
    settings.store("openai", fake.api_key("openai"))
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


def test_lost_session_is_renewed(serve: ServeHost, browser: Chrome, fake: FakeProviders) -> None:
    """If the session has ended while the page was open, a new one begins and the save is sent again."""
    settings = SettingsPage(browser, serve(WTF_CSRF_ENABLED=False).url)
    settings.open()
    browser.delete_all_cookies()
    settings.store("openai", fake.api_key("openai"))
    assert settings.badge("openai") == "YOUR KEY"


def test_no_network_is_said_and_can_be_retried(settings: SettingsPage, fake: FakeProviders) -> None:
    """Without a connection nothing is claimed, what was typed stays, and Try again saves it."""
    api_key = fake.api_key("openai")
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


def test_store_that_is_down(show: ShowHost, fake: FakeProviders) -> None:
    """Without its store the dialog says that it cannot load, keeps what is typed, and recovers by Try again."""
    api_key = fake.api_key("openai")
    with RedisServer() as server:
        settings = show(BYOK_REDIS=server.url)
        settings.open()
        server.kill()
        settings.save("openai", api_key)
        settings.wait(lambda: settings.message.startswith("Failed to save key:"), "refused")
        assert settings.typed("openai") == api_key
        settings.open()
        assert settings.find("[data-byok-failure]").text.startswith("Failed to load API keys: ")
        server.start()
        settings.wait(lambda: try_again(settings), "the rows are back")
        assert settings.badge("openai") == "NOT SET"
        assert settings.focused() == "api_key"


@pytest.mark.parametrize("how", ["no network", "no database"])
def test_rows_stay_after_a_change(
    serve: ServeHost, browser: Chrome, fake: FakeProviders, redis_url: str, how: str
) -> None:
    """If the rows cannot be loaded after a save, they and what is typed stay, and Try again loads them."""
    with PostgresServer() as server:
        settings = SettingsPage(
            browser, serve(BYOK_REDIS=redis_url, BYOK_DATABASE_URL=server.url).url
        )
        settings.open()
        settings.type("groq", "gsk-typed")
        _harm(how, server, browser)
        settings.save("openai", fake.api_key("openai"))
        settings.wait(lambda: settings.message.startswith("Key saved. The list is out of "), "told")
        assert (settings.source("openai"), settings.typed("groq")) == ("", "gsk-typed")
        settings.find("button[data-byok-action=retry]").click()
        settings.wait(lambda: settings.message.startswith("The list is out of date: "), "still")
        assert settings.badge("openai") == "NOT SET"
        _mend(how, server, browser)

        def again() -> bool:
            settings.find("button[data-byok-action=retry]").click()
            settings.wait(lambda: settings.message != "Working…", "an answer")
            return settings.message == ""

        settings.wait(again, "loaded")
        assert settings.badge("openai") == "YOUR KEY"


def _harm(how: str, server: PostgresServer, driver: Chrome) -> None:
    if how == "no database":
        return server.kill()
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/providers/settings"]})


def _mend(how: str, server: PostgresServer, driver: Chrome) -> None:
    if how == "no database":
        return server.start()
    driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})


def try_again(settings: SettingsPage) -> bool:
    """Press Try again, which the breaker may answer with one more failure, and look for rows."""
    if failures := settings.find_all("[data-byok-failure] [data-byok-action=retry]"):
        failures[0].click()
    settings.wait(lambda: settings.message == "", "loaded or failed")
    return bool(settings.find_all("[data-byok-provider]"))


def test_store_that_is_down_without_script(serve: ServeHost, plain_browser: Chrome) -> None:
    """The standalone page says the same without a script, and its link tries again."""
    with RedisServer() as server:
        settings = SettingsPage(plain_browser, serve(BYOK_REDIS=server.url).url)
        server.kill()
        settings.visit("/api/providers/settings")
        assert settings.find("[data-byok-failure]").text.startswith("Failed to load API keys: ")
        server.start()

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


# without JavaScript: plain forms, and codes in the query of the next page


@pytest.fixture
def plain(serve: ServeHost, plain_browser: Chrome) -> SettingsPage:
    """Show the standalone page of a host in a browser without JavaScript."""
    page = SettingsPage(plain_browser, serve().url)
    page.visit("/api/providers/settings?next=/")
    return page


def test_dialog_and_page_are_there(plain: SettingsPage) -> None:
    """Button and cross open and close the dialog, and a link leads to the page; controls for the script are hidden."""
    assert not plain.row("openai", "[data-byok-action=reveal]").is_displayed()
    plain.open()
    assert plain.row("openai").is_displayed()
    plain.driver.find_element(By.CSS_SELECTOR, ".byok-close button").click()
    assert not plain.dialog_is_open()
    plain.driver.find_element(By.CSS_SELECTOR, "noscript .byok-page-link").click()
    assert plain.driver.title == "API keys"
    assert plain.badge("openai") == "NOT SET"


def test_key_is_saved_or_refused(plain: SettingsPage, fake: FakeProviders) -> None:
    """A form saves a good key alone; the next page says so, and has no typed key anywhere."""
    bad, good = "sk-not-a-key-of-anybody", fake.api_key("openai")
    plain.save("openai", bad)
    plain.expect(f"Failed to save key: {VERDICTS['invalid']}")
    assert plain.badge("openai") == "NOT SET"
    assert "not-a-key" not in plain.driver.page_source + plain.driver.current_url
    plain.store("openai", good)
    assert plain.badge("openai") == "YOUR KEY"
    assert good not in plain.driver.page_source + plain.driver.current_url
    plain.driver.find_element(By.LINK_TEXT, "Back").click()
    assert plain.driver.title == "A host"


def test_forms_lead_back(plain: SettingsPage, fake: FakeProviders) -> None:
    """A form in the dialog leads to the page, whose link leads back; one inside a host's page leads back there."""
    plain.open("/?dir=ltr")
    plain.store("openai", fake.api_key("openai"))
    plain.driver.find_element(By.LINK_TEXT, "Back").click()
    assert plain.driver.current_url == f"{plain.url}/?dir=ltr"
    plain.visit("/inline?dir=rtl")
    plain.store("openai", fake.api_key("openai"))
    assert plain.driver.current_url.startswith(f"{plain.url}/inline?dir=rtl&byok=saved")


def test_key_is_checked(plain: SettingsPage, fake: FakeProviders) -> None:
    """Check asks about what is typed, else about the key in use."""
    plain.type("openai", fake.api_key("openai", "broke"))
    plain.press("openai", "validate")
    plain.expect("OpenAI: The key is good, but the account has no credit left.")
    plain.store("openai", fake.api_key("openai"))
    plain.press("openai", "validate")
    plain.expect("OpenAI: The key works.")


def test_clear_asks_first(plain: SettingsPage, fake: FakeProviders) -> None:
    """Clear unfolds the question; only Remove removes."""
    plain.store("openai", fake.api_key("openai"))
    assert not plain.row("openai", "[data-byok-action=confirm]").is_displayed()
    plain.press("openai", "clear")
    plain.press("openai", "confirm")
    plain.expect("Key removed")
    assert plain.badge("openai") == "NOT SET"
