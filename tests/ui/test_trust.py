"""The typed key goes to the host's own address, whatever HTML of other people the page shows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flask import render_template_string
from selenium.webdriver import Chrome

from flask_byok.testing import FakeProviders

from .browser import SettingsPage
from .host import PAGE, Host, create_host

# What people's HTML may hold if a host shows it; {evil} is a server of theirs, open to every origin.
SAID = [
    '<div data-byok-base="{evil}/api/providers"></div>',
    '<div data-byok-base="/collect/{evil}"></div>',
    '<base href="{evil}/">',
    '<meta name="byok-base" content="{evil}" data-byok-base="{evil}">',
    '<script type="text/plain" src="{evil}/static/byok.js" data-byok-base="{evil}"></script>',
    '<form name="location" id="base" data-byok-base="{evil}"><input name="origin" value="{evil}"></form>'
    '<a id="import" name="above" href="{evil}">here</a>',
    '<byok-settings data-byok-base="{evil}"><template><form action="{evil}" data-byok-provider="openai">'
    '<input type="hidden" name="csrf" data-byok-csrf value="x"></form></template></byok-settings>',
]

# As the script's own tag is read before a <base> of the page's body.
SAVE = """
    const [apiKey, done] = arguments;
    const source = document.head.querySelector("script[type=module]").getAttribute("src");
    import(new URL(source, location.origin)).then((byok) => byok.setProviderKey("openai", apiKey)).then(done, done);
"""


class Evil(ThreadingHTTPServer):
    """A server that takes whatever it is sent, from any origin."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.taken: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Take(BaseHTTPRequestHandler):
    server: Evil

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.taken.append(f"{self.command} {self.path} {body}")
        self.send_response(200)
        origin = self.headers.get("Origin", "*")
        self.send_header("Access-Control-Allow-Origin", origin)
        self.send_header("Access-Control-Allow-Headers", "Content-Type, X-CSRFToken")
        self.end_headers()

    do_GET = do_POST = do_OPTIONS = _take  # noqa: N815  (the library's names)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def evil() -> Iterator[Evil]:
    """Run the server of people who wait for keys."""
    server = Evil()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_base_of_the_host_does_not_get_the_key(
    tmp_path: Path, fake: FakeProviders, browser: Chrome, evil: Evil
) -> None:
    """With a <base> to another origin below ``byok.head()``, the dialog sends a typed key to its own server."""
    head, api_key = "{{ byok.head() }}", fake.api_key("openai")
    page = PAGE.replace(head, f'{head}<base href="{evil.url}/">')
    app = create_host(tmp_path, BYOK_BASE_URLS={"openai": fake.base_url("openai")})
    app.add_url_rule("/based", "based", lambda: render_template_string(page))
    with Host(app) as host:
        settings = SettingsPage(browser, host.url)
        settings.open("/based")
        settings.store("openai", api_key)
        assert settings.badge("openai") == "YOUR KEY"
    assert not any(api_key in one for one in evil.taken)


def test_html_of_people_does_not_get_the_key(
    tmp_path: Path, fake: FakeProviders, browser: Chrome, evil: Evil
) -> None:
    """No attribute, <base>, form, second element or tag of another person above the settings gets a typed key."""
    urls = {name: url for name, url in fake.base_urls.items() if name not in ("demo", "custom")}
    app = create_host(tmp_path, BYOK_BASE_URLS=urls)

    @app.get("/said/<int:number>")
    def said(number: int) -> str:
        # Without the policy of the other pages, which would stop some of these.
        return render_template_string(
            PAGE.replace("<main>", "<main>{{ said | safe }}"), said=html(number)
        )

    def html(number: int) -> str:
        return SAID[number].replace("{evil}", evil.url)

    with Host(app) as host:
        page = SettingsPage(browser, host.url)
        for number in range(len(SAID)):
            page.visit(f"/said/{number}")
            api_key = fake.api_key("openai", owner=str(number))
            saved = browser.execute_async_script(SAVE, api_key)
            assert saved.get("success") is True, (SAID[number], saved)
            assert not any(api_key in one for one in evil.taken), SAID[number]
