"""One browser for all tests, and a fresh host for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome

from flask_byok.testing import FakeProviders

from .browser import SettingsPage, chromium
from .host import Host, create_host

ServeHost = Callable[..., Host]
ShowHost = Callable[..., SettingsPage]


@pytest.fixture(scope="session")
def scripted_browser() -> Iterator[Chrome]:
    """Start a browser once; starting takes longer than most tests."""
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="session")
def scriptless_browser() -> Iterator[Chrome]:
    """Start a browser without JavaScript once."""
    with chromium(script=False) as driver:
        yield driver


@pytest.fixture
def browser(scripted_browser: Chrome) -> Iterator[Chrome]:
    """Return the browser, without the state of the test before."""
    yield scripted_browser
    scripted_browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    scripted_browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    _empty(scripted_browser)


@pytest.fixture
def plain_browser(scriptless_browser: Chrome) -> Iterator[Chrome]:
    """Return the browser without JavaScript, without the state of the test before."""
    yield scriptless_browser
    _empty(scriptless_browser)


def _empty(driver: Chrome) -> None:
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    driver.get("about:blank")
    driver.get_log("browser")  # type: ignore[no-untyped-call]


@pytest.fixture
def serve(tmp_path: Path, fake: FakeProviders) -> Iterator[ServeHost]:
    """Return a function that serves a host with fake providers; keywords are its settings."""
    hosts: list[Host] = []

    def start(**config: Any) -> Host:
        urls = fake.base_urls
        real = {name: urls[name] for name in urls.keys() - {"demo", "custom"}}
        host = Host(create_host(tmp_path, **{"BYOK_BASE_URLS": real} | config))
        hosts.append(host.__enter__())
        return host

    yield start
    for host in hosts:
        host.__exit__()


@pytest.fixture
def show(serve: ServeHost, browser: Chrome) -> ShowHost:
    """Return a function that shows a host; keywords are its settings."""
    return lambda **config: SettingsPage(browser, serve(**config).url)


@pytest.fixture
def settings(show: ShowHost) -> SettingsPage:
    """Show a host with the default settings."""
    return show()
