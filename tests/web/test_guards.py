"""Requests that another site could make."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from flask import Response, g, stream_with_context
from flask_login import current_user
from flask_wtf.csrf import generate_csrf
from gunicorn.config import Config
from gunicorn.glogging import Logger, SafeAtoms
from itsdangerous import TimestampSigner
from werkzeug.test import EnvironBuilder

from flask_byok import ConfigurationError
from flask_byok.model.credential import all_alive
from flask_byok.testing import FakeProviders
from tests.app import KEYS, Browser, HostApp, browser, make_app
from tests.guarantees.wire import Wire, served

BODY = {"provider": "openai"}


@pytest.fixture(params=[True, False], ids=["with CSRFProtect", "without CSRFProtect"])
def host(request: pytest.FixtureRequest, tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Make a host that protects its own forms, and one that does not."""
    return make_app(tmp_path, fake, csrf_protect=request.param)


def _clear(client: Browser, token: str | None, **headers: str) -> tuple[int, str | None]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        sent["X-CSRFToken"] = token
    answer = client.post(f"{KEYS}/clear", json=BODY, headers=sent)
    body = answer.get_json()
    if answer.status_code != 200:
        assert answer.mimetype == "application/problem+json"
        assert answer.headers["Cache-Control"] == "no-store"
    return answer.status_code, body.get("code")


def test_missing_and_foreign_tokens(host: HostApp) -> None:
    """The token of this session passes; none, garbage, and that of another session are refused."""
    client, other = browser(host), browser(host)
    client.load()
    other.load()
    for token in (None, "", "garbage", other.token, (client.token or "") + "x"):
        assert _clear(client, token) == (400, "csrf")
    assert _clear(client, client.token) == (200, None)


def test_token_of_an_emptied_session(host: HostApp) -> None:
    """A token dies with the session's data, and a fresh one works."""
    client = browser(host)
    client.load()
    stale = client.token
    client.post("/empty?then=1")
    assert _clear(client, stale) == (400, "csrf")
    client.load()
    assert _clear(client, client.token) == (200, None)


def test_token_expires(host: HostApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is refused after 3,600 seconds, and a fresh one works."""
    client = browser(host)
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(TimestampSigner, "get_timestamp", lambda signer: int(now) - 3602)
        client.load()
    assert _clear(client, client.token) == (400, "csrf")
    client.load()
    assert _clear(client, client.token) == (200, None)


def test_other_sites_are_refused(host: HostApp) -> None:
    """Even with a good token only the site's own pages pass, by Sec-Fetch-Site or else by Origin."""
    client = browser(host)
    client.load()
    for site in ("cross-site", "same-site", "", "nonsense"):
        assert _clear(client, client.token, Sec_Fetch_Site=site) == (400, "csrf"), site
    evil = ("https://evil.example", "http://localhost.evil.example", "http://localhost:8080")
    for origin in (*evil, "null", "http://[", ""):
        assert _clear(client, client.token, Origin=origin) == (400, "csrf"), origin
    for site in ("same-origin", "none"):
        assert _clear(client, client.token, Sec_Fetch_Site=site) == (200, None), site
    assert _clear(client, client.token, Origin="http://localhost") == (200, None)


def test_a_page_is_no_person(host: HostApp) -> None:
    """A request that a browser calls a person's own, but that names a foreign page, is refused."""
    client = browser(host)
    client.load()
    for origin in ("https://evil.example", "null", "http://localhost:8080"):
        refused = _clear(client, client.token, Sec_Fetch_Site="none", Origin=origin)
        assert refused == (400, "csrf"), origin
    own = _clear(client, client.token, Sec_Fetch_Site="none", Origin="http://localhost")
    assert own == (200, None)


@pytest.mark.parametrize(
    ("written", "front"),
    [
        ("HTTPS://app.example.org:443/", "https://app.example.org"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
    ],
)
def test_a_trusted_front_end_may_call(
    tmp_path: Path, fake: FakeProviders, written: str, front: str
) -> None:
    """A page of an origin in BYOK_TRUSTED_ORIGINS calls and reads, also after a preflight; no other origin does."""
    config = {"BYOK_TRUSTED_ORIGINS": [written], "WTF_CSRF_SSL_STRICT": True}
    client = browser(make_app(tmp_path, fake, **config))
    site = {"Origin": front, "Sec-Fetch-Site": "cross-site", "Referer": f"{front}/page"}
    listed = client.get(KEYS, headers=site, base_url="https://localhost")
    assert listed.headers["Access-Control-Allow-Origin"] == front
    assert listed.headers["Access-Control-Allow-Credentials"] == "true"
    asked = {**site, "Access-Control-Request-Method": "POST"}
    preflight = client.options(f"{KEYS}/clear", headers=asked, base_url="https://localhost")
    assert preflight.status_code == 200
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert {"Content-Type", "X-CSRFToken", "If-Match"} <= set(
        preflight.headers["Access-Control-Allow-Headers"].split(", ")
    )
    sent = {**site, "X-CSRFToken": listed.get_json()["csrf_token"]}
    for origin, status in ((front, 200), (front + ".evil.example", 400), ("null", 400)):
        headers = {**sent, "Origin": origin}
        answer = client.post(
            f"{KEYS}/clear", json=BODY, headers=headers, base_url="https://localhost"
        )
        assert answer.status_code == status, origin
        assert ("Access-Control-Allow-Origin" in answer.headers) is (status == 200)
        assert "Origin" in answer.vary or status == 400
    without = client.post(f"{KEYS}/clear", json=BODY, headers=site, base_url="https://localhost")
    assert without.status_code == 400, "a trusted origin needs the token too"


@pytest.mark.parametrize(
    "origins",
    [
        "*",
        "null",
        ["https://a.example/path"],
        ["app.example.org"],
        ["https://*.a.example"],
        ["https://a\0.example"],
        ["https://a .example"],
        ["https://a..example"],
        ["https://a.example:99999"],
        ["https://ann@a.example"],
        ["https://a.example?x"],
        ["http://[::1::]"],
        ["https://b\u0378cher.example"],
    ],
)
def test_an_origin_is_written_whole(tmp_path: Path, fake: FakeProviders, origins: Any) -> None:
    """What no browser sends is refused at the start, with an example."""
    with pytest.raises(
        ConfigurationError, match=r"BYOK_TRUSTED_ORIGINS .*https://app\.example\.org"
    ):
        make_app(tmp_path, fake, BYOK_TRUSTED_ORIGINS=origins)


def test_a_page_without_a_referrer_saves(host: HostApp) -> None:
    """Over https a page with `Referrer-Policy: no-referrer` works, by script and by form."""
    client = browser(host)
    token = client.get(KEYS, base_url="https://localhost").get_json()["csrf_token"]
    headers = {"X-CSRFToken": token, "Sec-Fetch-Site": "same-origin"}
    options: dict[str, Any] = {"headers": headers, "base_url": "https://localhost"}
    assert client.post(f"{KEYS}/clear", json=BODY, **options).status_code == 200
    headers = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}
    form = {"provider": "openai", "tier": "all", "csrf_token": token}
    answer = client.post(
        "/api/providers/settings/clear", data=form, headers=headers, base_url="https://localhost"
    )
    assert answer.status_code == 303
    assert client.post("/sign-out", base_url="https://localhost").status_code == 200


@pytest.mark.parametrize(
    ("served", "headers", "advice"),
    [
        ("http://localhost", {"Origin": "https://app.example.org"}, "BYOK_TRUSTED_ORIGINS"),
        ("http://localhost", {"Sec-Fetch-Site": "same-site"}, "BYOK_TRUSTED_ORIGINS"),
        ("https://localhost", {"Origin": "http://localhost"}, "ProxyFix"),
        ("https://localhost", {"Sec-Fetch-Site": "same-origin"}, "session cookie"),
    ],
)
def test_the_refusal_names_what_helps(
    host: HostApp, served: str, headers: dict[str, str], advice: str
) -> None:
    """Another origin, a scheme that a proxy hides and a frame without the cookie each get their own advice."""
    answer = browser(host).post(
        f"{KEYS}/clear", json=BODY, headers={"X-CSRFToken": "x", **headers}, base_url=served
    )
    problem = answer.get_json()
    assert (answer.status_code, problem["code"]) == (400, "csrf")
    assert advice in problem["detail"]
    assert "fresh token" not in problem["detail"]


@pytest.mark.parametrize(
    ("served", "origin", "status"),
    [
        ("https://localhost", "https://localhost", 200),
        ("https://localhost", "http://localhost", 400),
        ("https://localhost", "HTTPS://localhost", 200),
        ("http://localhost", "http://localhost", 200),
        # A proxy ended the https, and without ProxyFix nobody told us.
        ("http://localhost", "https://localhost", 200),
    ],
)
def test_plain_http_is_another_origin(
    tmp_path: Path, fake: FakeProviders, served: str, origin: str, status: int
) -> None:
    """A page that came over http, which an attacker can forge, cannot act on the https site."""
    client = browser(make_app(tmp_path, fake, csrf_protect=False))
    token = client.get(KEYS, base_url=served).get_json()["csrf_token"]
    answer = client.post(
        f"{KEYS}/clear",
        json=BODY,
        headers={"Origin": origin, "X-CSRFToken": token},
        base_url=served,
    )
    assert answer.status_code == status


def test_forms_of_other_sites(host: HostApp) -> None:
    """A form is refused, also one of text/plain that spells JSON."""
    client = browser(host)
    client.load()
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post(
            f"{KEYS}/clear", data='{"provider":"openai"}', content_type=content_type
        )
        assert (answer.status_code, answer.get_json()["code"]) == (400, "csrf")
    answer = client.post(f"{KEYS}/clear", data={"provider": "openai", "csrf_token": client.token})
    assert (answer.status_code, answer.get_json()["code"]) == (415, "unsupported_media_type")


def test_reading_changes_nothing(host: HostApp, fake: FakeProviders) -> None:
    """No GET, HEAD or OPTIONS needs a token or changes a key."""
    client = browser(host)
    client.save(fake.api_key("openai"))
    for method in ("GET", "HEAD", "OPTIONS"):
        for path in (KEYS, f"{KEYS}/clear", f"{KEYS}/set", "/api/providers/settings/clear"):
            client.open(path, method=method, query_string={"provider": "openai", "tier": "all"})
    assert client.status()["has_key"] is True


def test_csrf_can_be_switched_off_by_the_host(tmp_path: Path, fake: FakeProviders) -> None:
    """WTF_CSRF_ENABLED rules here too: then no token is given or needed, but other sites stay out."""
    client = browser(make_app(tmp_path, fake, WTF_CSRF_ENABLED=False))
    assert client.load()["csrf_token"] is None
    assert _clear(client, None) == (200, None)
    assert _clear(client, None, Sec_Fetch_Site="cross-site") == (400, "csrf")


def test_the_hosts_names_for_tokens_are_used(tmp_path: Path, fake: FakeProviders) -> None:
    """Header and session field may have the names that the host gave them."""
    config = {"WTF_CSRF_HEADERS": ["X-Own-Token"], "WTF_CSRF_FIELD_NAME": "own_token"}
    client = browser(make_app(tmp_path, fake, **config))
    client.load()
    assert _clear(client, None, X_Own_Token=client.token or "") == (200, None)
    assert _clear(client, client.token) == (400, "csrf")


def test_an_abandoned_stream_gives_nothing_to_the_next_person(
    tmp_path: Path, fake: FakeProviders
) -> None:
    """The next person on a worker gets neither identity, token nor key from another's abandoned stream."""
    app = make_app(tmp_path, fake)

    @app.get("/stuck")
    def stuck() -> Response:
        assert current_user.is_authenticated
        generate_csrf()
        app.byok.get_api_key("openai")

        def pieces() -> Iterator[bytes]:
            yield b"one"
            yield b"two"

        return Response(stream_with_context(pieces()))

    first, second = browser(app), browser(app)
    first.post("/sign-in/first")
    first.save(fake.api_key("openai", owner="first"))
    second.load()
    own_token = second.token
    headers = {"Cookie": f"session={first.session_id}"}
    # In this very thread and context, as a worker does; the rest is never read.
    rest = iter(app.wsgi_app(EnvironBuilder("/stuck", headers=headers).get_environ(), Mock()))
    next(rest)
    # Proof that something is left: Flask's own g is still the first person's.
    assert g._login_user.get_id() == "first"
    body = second.get(KEYS).get_json()
    assert body["authenticated"] is False
    assert not any(row["has_key"] for row in body["providers"])
    assert second.get("/used/openai").status_code == 409
    assert _clear(second, None) == (400, "csrf")
    assert _clear(second, first.token) == (400, "csrf")
    assert _clear(second, own_token) == (200, None)
    assert _clear(second, body["csrf_token"]) == (200, None)
    rest.close()  # type: ignore[attr-defined]  # a generator's
    gc.collect()


@pytest.mark.parametrize(
    "address",
    [
        f"{KEYS}?api_key={{key}}",
        f"{KEYS}?label=%C3%A9&api_key={{key}}",
        f"{KEYS}?label=a%22b&api_key={{escaped}}",
        f"{KEYS}/set?api_key={{escaped}}",
        f"{KEYS}?{{escaped}}",
        "/api/providers/settings?label=a+b%20c&api_key={key}",
        f"{KEYS}/{{key}}",
        f"{KEYS}/{{escaped}}/clear?label=%C3%A9",
        f"{KEYS}/set/" + "a/" * 30 + "{key}",
        f"{KEYS}/set?" + "a=1&" * 30 + "api_key={key}",
        "/api/providers/static/{key}",
        "/api/providers/static/{escaped}/byok.js",
        "/api/providers/static/byok.js?api_key={key}",
        "/api/providers/static/byok.css?v=012345678901&{escaped}",
        "/api/keys/{key}",
        "/api/keys/{escaped}/validate?x=1",
        "/api/providers/keys//{key}",
        "/api/providers/health?api_key={key}",
        "/api/providers/health?label=%C3%A9&{escaped}",
    ],
)
def test_a_key_in_the_address_is_not_logged(
    host: HostApp, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    """However a key comes into the address of a request to us, the access log does not have it."""
    key = "sk-proj-ABCDEFGHIJKLMNOP0123456789"
    caplog.set_level("INFO", logger="werkzeug")
    with served(host) as port:
        Wire(port).send("GET", address.format(key=key, escaped="%73" + key[1:]))
    logged = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
    assert any('"' in line and "GET /api/" in line for line in logged)
    assert not any(key[4:] in line for line in logged)


@pytest.mark.parametrize(
    "referrer",
    [
        "http://localhost/page?api_key={key}",
        "http://localhost/page?label=%C3%A9&api_key={escaped}",
        "http://localhost/chat/{key}",
        "http://localhost/chat/{escaped}/more",
        "http://user:{key}@localhost/",
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        KEYS,
        "/api/providers/static/byok.js",
        "/api/providers/nothing",
        "/api//providers/nothing",
        "/api/keys/none",
        "/api/providers/health",
    ],
)
def test_gunicorn_logs_no_key_of_an_address(host: HostApp, referrer: str, path: str) -> None:
    """A line of gunicorn's access log, and its parts for formatters of their own, have no key of referrer or path."""
    key = "sk-proj-ABCDEFGHIJKLMNOP0123456789"
    names = {"key": key, "escaped": "%73" + key[1:]}
    raw = f"{path}/{key}?x={names['escaped']}" if path.endswith("nothing") else f"{path}?x={key}"
    builder = EnvironBuilder(path=raw, headers={"Referer": referrer.format(**names)})
    environ = {**builder.get_environ(), "RAW_URI": raw}
    with closing(host(environ, lambda *args: None)) as answer:  # type: ignore[type-var]  # werkzeug's
        list(answer)
    atoms = Logger(Config()).atoms(
        SimpleNamespace(status="200 OK", headers=[], sent=1), [], environ, timedelta(0)
    )
    args = (SafeAtoms({**atoms, "{referer}i": environ["HTTP_REFERER"]}),)
    record = logging.getLogRecordFactory()(
        "gunicorn.access", 20, "f", 1, Config().access_log_format, args, None
    )
    assert record.getMessage().count(" ") > 5
    assert record.args["{missing}i"] == "-"  # type: ignore[index, call-overload]  # gunicorn's
    assert key[4:] not in f"{record.getMessage()} {vars(record)}"


def test_our_own_addresses_stay_readable(host: HostApp, caplog: pytest.LogCaptureFixture) -> None:
    """An access log still shows which of our calls was made, also if it failed, and the page that it was made from."""
    caplog.set_level("INFO", logger="werkzeug")
    paths = [
        f"{KEYS}/set",
        "/api/providers/static/byok.js?v=012345678901",
        "/api/providers/settings",
    ]
    with served(host) as port:
        for path in paths:
            Wire(port).send("GET", path, Referer="http://localhost/api/providers/settings")
    lines = " ".join(record.getMessage() for record in caplog.records if record.name == "werkzeug")
    assert all(f" {path} " in lines for path in paths)


def test_hiding_an_address_costs_little(host: HostApp) -> None:
    """A long query does not make every later log record of the process dear."""
    query = "&".join(f"name{number}=value-{number}" for number in range(2_000))
    environ = EnvironBuilder(path=KEYS, query_string=query).get_environ()
    before = len(list(all_alive()))
    host(environ, lambda *args: None)
    assert len(list(all_alive())) - before < 50
