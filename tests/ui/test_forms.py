"""The form routes and pages over HTTP, without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_byok.testing import FakeProviders

from .host import create_host

PAGE = "/api/providers/settings"


@pytest.fixture
def client(tmp_path: Path, fake: FakeProviders) -> Iterator[FlaskClient]:
    """Speak to a host as a browser without a session would."""
    app = create_host(tmp_path, BYOK_BASE_URLS={"openai": fake.base_url("openai")})
    with app.test_client() as client:
        yield client


def token(client: FlaskClient) -> str:
    """Load the page and return its CSRF token."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get(PAGE).text)
    assert found is not None
    return found[1]


def post(
    client: FlaskClient, action: str, headers: dict[str, str] | None = None, **form: str
) -> TestResponse:
    """Post a form as the page would, with a fresh token unless one is given."""
    fields = {"csrf_token": token(client), "provider": "openai"} | form
    return client.post(f"{PAGE}/{action}", data=fields, headers=headers)


def outcome(response: TestResponse) -> dict[str, str]:
    """Return the codes in the address of a redirect."""
    assert response.status_code == 303
    return {name: values[0] for name, values in parse_qs(urlsplit(response.location).query).items()}


def test_saving_redirects_with_codes(client: FlaskClient, fake: FakeProviders) -> None:
    """A saved key leads back to the page; the address has codes and no free text."""
    api_key = fake.api_key("openai")
    response = post(client, "save", api_key=api_key)
    assert outcome(response) == {
        "byok": "saved",
        "byok_provider": "openai",
        "byok_verdict": "valid",
    }
    assert urlsplit(response.location).path == PAGE
    assert api_key not in response.location + client.get(response.location).text


def test_key_in_the_wrong_field_is_not_repeated(client: FlaskClient) -> None:
    """If a key was pasted as the provider's id, the address does not contain it."""
    response = post(client, "save", provider="sk-pasted-here-by-mistake", api_key="sk-and-here")
    assert outcome(response) == {"byok": "save_failed", "byok_reason": "unknown_provider"}


@pytest.mark.parametrize("url", ["https://evil.example/", "//evil.example", "/\\evil.example"])
def test_next_leads_nowhere_else(client: FlaskClient, url: str) -> None:
    """A form cannot be made to lead to another site, nor can the page's link back."""
    location = post(client, "clear", next=url).location
    assert location.startswith(f"{PAGE}?byok=")
    assert "evil" not in client.get(PAGE, query_string={"next": url}).text.split("<form")[0]


def test_form_needs_its_token(client: FlaskClient) -> None:
    """A form without the right token changes nothing and says so on the page."""
    response = post(client, "save", csrf_token="made up", api_key="sk-any-key-at-all")
    assert outcome(response)["byok_reason"] == "csrf"
    assert "NOT SET" in client.get(PAGE).text


@pytest.mark.parametrize("day", ["tomorrow", "2026-02-30", "2020-01-01"])
def test_impossible_day_is_refused(client: FlaskClient, day: str) -> None:
    """A day that is none, or has passed, is refused, and nothing is stored."""
    response = post(client, "save", api_key="sk-any-key-at-all", expires_at=day)
    assert outcome(response)["byok_reason"] == "invalid_field"
    assert "NOT SET" in client.get(PAGE).text


def test_days_that_may_be_chosen(tmp_path: Path) -> None:
    """Without a limit a key works until it is removed; the operator's limit gives the last day, and is said."""
    for limit, rule in ((None, "until you remove it."), (timedelta(days=30), "this site allows.")):
        client = create_host(tmp_path, BYOK_MAX_KEY_LIFETIME=limit).test_client()
        client.get("/sign-in/ada")
        text = client.get(PAGE).text
        assert rule in text
        assert (' max="' in text) is (limit is not None)


def test_visitor_changes_nothing(client: FlaskClient) -> None:
    """A label is kept beside a key in an account, which a visitor does not have."""
    response = post(client, "change", label="Work")
    assert outcome(response)["byok_reason"] == "owner_required"


@pytest.mark.parametrize(
    ("shown", "typed", "stays"),
    [("2099-01-01", "2099-01-01", True), ("", "", True), ("2099-01-01", "", False)],
)
def test_day_counts_where_it_was_changed(
    client: FlaskClient, fake: FakeProviders, shown: str, typed: str, stays: bool
) -> None:
    """A day that is sent as it was shown changes nothing, even if another was set meanwhile; one taken out does."""
    client.get("/sign-in/ada")
    api_key = fake.api_key("openai")
    post(client, "save", api_key=api_key, persist="yes", expires_at="2099-06-01")
    changed = post(client, "change", label="Work", expires_at=typed, expires_at_shown=shown)
    assert outcome(changed)["byok"] == "changed"
    (key,) = client.get("/api/keys").get_json()["keys"]
    kept = "2099-06-01T23:59:59.000Z" if stays else None
    assert (key["label"], key["expires_at"]) == ("Work", kept)


def test_form_of_another_site_is_refused(client: FlaskClient) -> None:
    """A form that another site's page sent is refused with the bare problem, token or not."""
    response = post(client, "clear", headers={"Sec-Fetch-Site": "cross-site"})
    assert (response.status_code, response.get_json()["code"]) == (400, "csrf")


def test_too_large_form_is_refused(client: FlaskClient) -> None:
    """A form over the limit is answered 413."""
    assert post(client, "save", api_key="x" * 100_000).status_code == 413


def test_page_says_only_words_of_ours(client: FlaskClient) -> None:
    """A crafted link cannot put words on the page."""
    text = client.get(PAGE, query_string={"byok": "<b>Call us</b>", "byok_reason": "Call us"}).text
    assert "Call us" not in text.split("<form")[0].split("data-byok-message")[0]
    assert re.search(r"data-byok-message[^>]*></p>", text)


def test_page_has_its_headers(client: FlaskClient) -> None:
    """The standalone page is not kept, not framed, and names what it may load."""
    headers = client.get(PAGE).headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    for directive in ("frame-ancestors 'none'", "trusted-types 'none'", "default-src 'none'"):
        assert directive in headers["Content-Security-Policy"]


def test_assets_are_kept_by_their_content(client: FlaskClient) -> None:
    """The addresses of script and style name their content, so browsers may keep them."""
    urls = re.findall(r'(?:href|src)="(/api/providers/static/[^"]+)"', client.get("/").text)
    assert {Path(urlsplit(url).path).name for url in urls} == {"byok.css", "byok.js"}
    for url in urls:
        with client.get(url) as response:
            assert "immutable" in response.headers["Cache-Control"]
    with client.get(urlsplit(urls[0]).path) as response:
        assert "immutable" not in response.headers["Cache-Control"]


def test_mounted_host_keeps_its_root(client: FlaskClient) -> None:
    """Under a mount point every address of the dialog has it in front."""
    text = client.get("/", base_url="http://localhost/mounted").text
    addresses = re.findall(r'\s(?:src|action|formaction)="([^"]+)"', text)
    assert len(addresses) > 5
    assert {address.split("/")[1] for address in addresses} == {"mounted"}


def test_inputs_ask_password_managers_to_keep_out(client: FlaskClient) -> None:
    """An input for a key asks for a new password, since browsers fill the account's into one that says "off"."""
    inputs = re.findall(r'<input [^>]*type="password"[^>]*>', client.get(PAGE).text)
    assert inputs
    for field in inputs:
        assert 'autocomplete="new-password"' in field
        assert 'spellcheck="false"' in field
        for attribute in ("data-1p-ignore", "data-lpignore", "data-bwignore", "data-form-type"):
            assert attribute in field


def test_row_has_the_time_of_a_check_only(tmp_path: Path, fake: FakeProviders) -> None:
    """A row says when its key was checked, unless the provider could not be reached."""
    for url, is_checked in ((fake.base_url("openai"), True), ("http://127.0.0.1:1", False)):
        client = create_host(tmp_path, BYOK_BASE_URLS={"openai": url}).test_client()
        post(client, "save", api_key=fake.api_key("openai"))
        page = client.get(PAGE).text
        assert ("so the key was not checked." in page) != is_checked
        assert ("Checked <time" in page) == is_checked
