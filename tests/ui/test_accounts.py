"""Keys in accounts, as a signed-in person meets them, with the script and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import Client
from selenium.webdriver import Chrome

from flask_byok.testing import FakeProviders
from tests.services import PostgresServer

from .browser import SettingsPage
from .conftest import ServeHost, ShowHost

PAGE = "/api/providers/settings"
MakeKey = Callable[[str], str]


@pytest.fixture(params=["browser", "plain_browser"])
def either_browser(request: pytest.FixtureRequest) -> Chrome:
    """Be a browser with JavaScript, then one without."""
    driver: Chrome = request.getfixturevalue(request.param)
    return driver


@pytest.fixture
def settings(serve: ServeHost, either_browser: Chrome) -> SettingsPage:
    """Show a host's settings as a page, which is there in both browsers."""
    page = SettingsPage(either_browser, serve().url)
    page.visit(PAGE)
    return page


@pytest.fixture
def make_key(fake: FakeProviders) -> MakeKey:
    """Make keys that OpenAI takes, one for each name."""
    return lambda name: fake.api_key("openai", owner=name)


def sign_in(settings: SettingsPage, user: str = "ada") -> None:
    """Sign in and show the settings."""
    settings.visit(f"/sign-in/{user}")
    settings.visit(PAGE)


def save_for_session(settings: SettingsPage, api_key: str) -> None:
    """Save a key with the account's box unticked."""
    settings.row("openai", "input[name=persist]").click()
    settings.store("openai", api_key)


def hint(settings: SettingsPage) -> str:
    """Read the last four characters of the key in use."""
    return settings.row("openai", "[data-byok-hint]").text[-4:]


def answer(settings: SettingsPage, words: str) -> None:
    """Press the answer that begins with these words, of the question about a key that could be kept."""
    buttons = settings.row_all("openai", "[part=promotable] button")
    next(button for button in buttons if button.text.startswith(words)).click()


def test_key_in_the_account_is_there_in_another_browser(
    serve: ServeHost, browser: Chrome, plain_browser: Chrome, make_key: MakeKey
) -> None:
    """The account's key serves its user after a sign-out and in any browser, and serves no other user."""
    url, api_key = serve().url, make_key("ada")
    here, there = SettingsPage(browser, url), SettingsPage(plain_browser, url)
    sign_in(here)
    here.store("openai", api_key)
    assert here.source("openai") == "user"
    assert here.row("openai", "[data-byok-place]").text == "In your account"
    here.visit("/sign-out")
    here.visit(PAGE)
    assert here.badge("openai") == "NOT SET"
    sign_in(there, "grace")
    assert there.badge("openai") == "NOT SET"
    sign_in(there)
    assert (there.badge("openai"), hint(there)) == ("YOUR KEY", api_key[-4:])


def test_key_for_the_session_goes_with_it(settings: SettingsPage, make_key: MakeKey) -> None:
    """With the box unticked a key is kept for the session, and is gone after signing out."""
    sign_in(settings)
    save_for_session(settings, make_key("ada"))
    assert settings.source("openai") == "session"
    assert settings.row("openai", "[data-byok-place]").text == "For this session only"
    settings.visit("/sign-out")
    sign_in(settings)
    assert settings.badge("openai") == "NOT SET"


@pytest.mark.parametrize("first", ["session", "user"])
def test_place_is_asked_only_where_there_are_two(show: ShowHost, first: str) -> None:
    """If keys have only one place, there is no checkbox, and the text above names the place."""
    settings = show(BYOK_PRECEDENCE=[first, "env"])
    sign_in(settings)
    assert settings.row_all("openai", "input[name=persist]") == []
    assert ("until you remove them" in settings.find("[part=storage]").text) is (first == "user")


def test_visitors_key_is_kept_in_the_account(settings: SettingsPage, make_key: MakeKey) -> None:
    """A visitor is offered no account; the key waits at the sign-in, with its hint, and goes there if it is kept."""
    api_key = make_key("ada")
    assert settings.row_all("openai", "input[name=persist], [part=more]") == []
    settings.store("openai", api_key)
    sign_in(settings)
    assert settings.badge("openai") == "NOT SET"
    question = settings.row("openai", "[part=promotable]").text
    assert question.startswith("You added this key before signing in: ")
    assert f"…{api_key[-4:]}. Use it with this account?" in question
    answer(settings, "Use this key")
    settings.expect("Key added to your account")
    assert (settings.source("openai"), hint(settings)) == ("user", api_key[-4:])
    assert settings.row_all("openai", "[part=promotable]") == []


@pytest.mark.parametrize(
    ("words", "message", "kept"),
    [
        ("Use this key", "Key added to your account", "visitor"),
        ("Keep my account's key", "Key removed", "account"),
    ],
)
def test_visitors_key_beside_the_accounts(
    settings: SettingsPage, make_key: MakeKey, words: str, message: str, kept: str
) -> None:
    """If the account has a key, the user chooses between the two; then the question is gone."""
    keys = {name: make_key(name) for name in ("account", "visitor")}
    sign_in(settings)
    settings.store("openai", keys["account"])
    settings.visit("/sign-out")
    settings.visit(PAGE)
    settings.store("openai", keys["visitor"])
    sign_in(settings)
    assert hint(settings) == keys["account"][-4:]
    assert f"…{keys['visitor'][-4:]}." in settings.row("openai", "[part=promotable]").text
    answer(settings, words)
    settings.wait(lambda: settings.message.startswith(message), message)
    assert (settings.source("openai"), hint(settings)) == ("user", keys[kept][-4:])
    assert settings.row_all("openai", "[part=promotable]") == []


def test_key_of_the_session_moves_to_the_account(settings: SettingsPage, make_key: MakeKey) -> None:
    """A session key can be kept in the account later, and replaces the key there if the user wishes."""
    sign_in(settings)
    for name, words in (("first", "Keep in my account"), ("second", "Replace my account's key")):
        api_key = make_key(name)
        save_for_session(settings, api_key)
        assert (settings.source("openai"), hint(settings)) == ("session", api_key[-4:])
        answer(settings, words)
        settings.expect("Key added to your account")
        assert (settings.source("openai"), hint(settings)) == ("user", api_key[-4:])
        assert settings.row_all("openai", "[part=promotable]") == []


def call_elsewhere(settings: SettingsPage, method: str, path: str, body: object = None) -> Any:
    """Call the interface from another window of the same session."""
    cookies = {cookie["name"]: cookie["value"] for cookie in settings.driver.get_cookies()}
    with Client(base_url=settings.url, cookies=cookies) as window:
        token = window.get("/api/providers/keys").json()["csrf_token"]
        answered = window.request(method, path, json=body, headers={"X-CSRFToken": token})
        assert answered.status_code < 300, answered.text
        return answered.json()


def set_day(settings: SettingsPage, day: str) -> None:
    """Choose a day, ``YYYY-MM-DD``, or none."""
    field = settings.row("openai", "input[name=expires_at]")
    field.clear()
    if day:
        year, month, date = day.split("-")
        field.send_keys(f"{month}{date}{year}")


def test_expiry_is_chosen_and_taken_back(settings: SettingsPage, make_key: MakeKey) -> None:
    """A key expires after the day that was chosen, says so from some days before, and need not any more."""
    sign_in(settings)
    day = (datetime.now(UTC) + timedelta(days=3)).date().isoformat()
    settings.row("openai", "[part=more] summary").click()
    set_day(settings, day)
    settings.type("openai", "Work", "label")
    api_key = make_key("ada")
    settings.store("openai", api_key)
    assert settings.row("openai", "[data-byok-expiry]").text == f"Expires on {day}"
    assert settings.row("openai", "[data-byok-label]").text == "Work"
    assert settings.row("openai", "[data-byok-chip]").text == "Expires soon"

    settings.row("openai", "[part=more] summary").click()
    assert settings.row("openai", "input[name=expires_at]").get_property("value") == day
    set_day(settings, "")
    rename(settings, "Home")
    assert settings.row_all("openai", "[data-byok-expiry]") == []
    assert settings.row("openai", "[data-byok-chip]").text == "Active"
    assert (settings.source("openai"), hint(settings)) == ("user", api_key[-4:])


def stored_expiry(settings: SettingsPage) -> datetime | None:
    """Return when the account's key expires."""
    (key,) = call_elsewhere(settings, "GET", "/api/keys")["keys"]
    return None if key["expires_at"] is None else datetime.fromisoformat(key["expires_at"])


def rename(settings: SettingsPage, label: str) -> None:
    """Change the label, and nothing else unless it was set before."""
    if not settings.row("openai", "input[name=label]").is_displayed():
        settings.row("openai", "[part=more] summary").click()
    settings.type("openai", label, "label")
    settings.press("openai", "change")
    settings.expect("Changes saved")
    assert settings.row("openai", "[data-byok-label]").text == label


@pytest.mark.parametrize("limited", [False, True])
def test_new_label_does_not_revive_a_key(
    serve: ServeHost, either_browser: Chrome, make_key: MakeKey, limited: bool
) -> None:
    """A key that has expired takes a label and stays expired, even where it has had all the time that keys may have."""
    lifetime = timedelta(seconds=3)
    host = serve(BYOK_MAX_KEY_LIFETIME=lifetime) if limited else serve()
    settings = SettingsPage(either_browser, host.url)
    sign_in(settings)
    over = (datetime.now(UTC) + lifetime).isoformat()
    key = {"provider": "openai", "api_key": make_key("ada"), "validate": "off"}
    call_elsewhere(settings, "POST", "/api/keys", key if limited else {**key, "expires_at": over})
    before = stored_expiry(settings)

    def is_over() -> bool:
        settings.visit(PAGE)
        return settings.row("openai", "[data-byok-chip]").text == "Expired"

    settings.wait(is_over, "expired")
    rename(settings, "Old")
    assert settings.row("openai", "[data-byok-chip]").text == "Expired"
    assert stored_expiry(settings) == before


def test_new_label_leaves_the_time_as_it_is(settings: SettingsPage, make_key: MakeKey) -> None:
    """A time that was set to the hour stays so while only the label changes; a day that is chosen replaces it."""
    sign_in(settings)
    day = datetime.now(UTC) + timedelta(days=30)
    hour = day.replace(hour=6, minute=0, second=0, microsecond=0)
    key = {"provider": "openai", "api_key": make_key("ada"), "expires_at": hour.isoformat()}
    call_elsewhere(settings, "POST", "/api/keys", key)
    settings.visit(PAGE)
    rename(settings, "Work")
    assert stored_expiry(settings) == hour
    chosen = (hour + timedelta(days=1)).replace(hour=23, minute=59, second=59)
    settings.row("openai", "[part=more] summary").click()
    set_day(settings, chosen.date().isoformat())
    rename(settings, "Home")
    assert stored_expiry(settings) == chosen


def test_label_of_the_accounts_key_is_not_the_sessions(
    settings: SettingsPage, make_key: MakeKey
) -> None:
    """A key for the session takes no label and no day from the account's, which the row showed; only what is typed."""
    sign_in(settings)
    day = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    settings.row("openai", "[part=more] summary").click()
    set_day(settings, day)
    settings.type("openai", "Work", "label")
    settings.store("openai", make_key("account"))
    save_for_session(settings, make_key("session"))
    assert settings.source("openai") == "session"
    assert settings.row_all("openai", "[data-byok-label], [data-byok-expiry]") == []
    settings.row("openai", "[part=more] summary").click()
    settings.type("openai", "Mine", "label")
    save_for_session(settings, make_key("other"))
    assert settings.row("openai", "[data-byok-label]").text == "Mine"
    settings.row("openai", "[data-byok-action=clear]").click()
    settings.press("openai", "confirm")
    settings.wait(lambda: settings.source("openai") == "user", "the account's key")
    assert settings.row("openai", "[data-byok-label]").text == "Work"
    settings.store("openai", make_key("new"))
    assert settings.row("openai", "[data-byok-label]").text == "Work"
    assert settings.row("openai", "[data-byok-expiry]").text == f"Expires on {day}"


def test_past_day_is_refused(show: ShowHost, make_key: MakeKey) -> None:
    """A day that has passed is refused where it was typed, folded away or not, with the words that stand beside it."""
    settings = show()
    sign_in(settings)
    settings.row("openai", "[part=more] summary").click()
    set_day(settings, "2020-01-01")
    settings.row("openai", "[part=more] summary").click()
    settings.save("openai", "sk-any-key-at-all")
    day = "input[name=expires_at]"
    settings.wait(lambda: settings.row("openai", day).is_displayed(), "unfolded")
    assert settings.message == ""
    set_day(settings, "")
    settings.store("openai", make_key("ada"))
    settings.row("openai", "[part=more] summary").click()
    set_day(settings, "2020-01-01")
    settings.press("openai", "change")
    settings.expect("Failed to save changes: “Expires after” is in the past.")
    marked = settings.row_all("openai", "[aria-invalid=true]")
    assert [one.get_attribute("name") for one in marked] == ["expires_at"]
    assert settings.focused() == "expires_at"


def test_change_of_a_key_that_is_gone(settings: SettingsPage, make_key: MakeKey) -> None:
    """A key that was removed elsewhere meanwhile cannot be given a label, and the message says so."""
    sign_in(settings)
    settings.store("openai", make_key("ada"))
    settings.row("openai", "[part=more] summary").click()
    body = {"provider": "openai", "tier": "user"}
    call_elsewhere(settings, "POST", "/api/providers/keys/clear", body)
    settings.press("openai", "change")
    settings.expect("Failed to save changes: This key no longer exists.")


def test_one_of_several_keys_is_changed(
    serve: ServeHost, either_browser: Chrome, make_key: MakeKey
) -> None:
    """Of an account's several keys the row is about the one in use, and Clear says that all of them go."""
    settings = SettingsPage(either_browser, serve(BYOK_KEYS_PER_PROVIDER=3).url)
    first, second, tenth = (
        {"provider": "openai", "api_key": make_key(name)} for name in ("one", "two", "ten")
    )
    sign_in(settings)
    idle = call_elsewhere(settings, "POST", "/api/keys", first)["id"]
    call_elsewhere(settings, "POST", "/api/keys", {**tenth, "slot": "10"})
    call_elsewhere(settings, "POST", "/api/keys", second)
    call_elsewhere(settings, "PATCH", f"/api/keys/{idle}", {"active": False})
    settings.visit(PAGE)
    assert hint(settings) == second["api_key"][-4:]
    rename(settings, "Home")
    settings.press("openai", "clear")
    question = settings.row("openai", "[part=question]").text
    assert "Remove all your keys for this provider?" in question
    settings.press("openai", "confirm")
    settings.expect("Key removed")
    assert settings.badge("openai") == "NOT SET"


def test_expiry_has_the_operators_limit(show: ShowHost, make_key: MakeKey) -> None:
    """The operator's limit on a key's lifetime is shown, and holds if no day is chosen."""
    settings = show(BYOK_MAX_KEY_LIFETIME=timedelta(days=90))
    sign_in(settings)
    last = (datetime.now(UTC) + timedelta(days=90)).date().isoformat()
    settings.row("openai", "[part=more] summary").click()
    assert last in settings.row("openai", "[part=latest]").text
    assert settings.row("openai", "input[name=expires_at]").get_attribute("max") == last
    settings.store("openai", make_key("ada"))
    assert settings.row("openai", "[data-byok-expiry]").text == f"Expires on {last}"
    assert settings.row("openai", "[data-byok-chip]").text == "Active"


def test_box_asks_for_an_account_that_is_still_there(show: ShowHost, make_key: MakeKey) -> None:
    """After a sign-out in another tab, a save asks to sign in; the key is not stored, and stays in its input."""
    settings, api_key = show(), make_key("ada")
    sign_in(settings)
    settings.driver.execute_async_script("fetch('/sign-out').then(arguments[0])")
    settings.save("openai", api_key)
    settings.wait(lambda: settings.message.startswith("Failed to save key: Sign in first"), "told")
    assert settings.typed("openai") == api_key


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that may be killed; it outlives the hosts."""
    with PostgresServer() as server:
        yield server


def test_accounts_that_are_away(
    own_postgres: PostgresServer,
    serve: ServeHost,
    browser: Chrome,
    make_key: MakeKey,
    redis_url: str,
) -> None:
    """Without its database the dialog says so and keeps what is typed; Try again saves it once it is back."""
    api_key = make_key("ada")
    host = serve(BYOK_REDIS=redis_url, BYOK_DATABASE_URL=own_postgres.url)
    settings = SettingsPage(browser, host.url)
    settings.open("/sign-in/ada")
    own_postgres.kill()
    settings.save("openai", api_key)
    settings.wait(lambda: settings.message.startswith("Failed to save key: "), "refused")
    assert "not answer" in settings.message or "not available" in settings.message
    assert settings.typed("openai") == api_key
    own_postgres.start()

    def again() -> bool:
        settings.find("button[data-byok-action=retry]").click()
        settings.wait(lambda: settings.message != "Working…", "an answer")
        return settings.message == "Key saved"

    settings.wait(again, "saved")
    assert settings.source("openai") == "user"
