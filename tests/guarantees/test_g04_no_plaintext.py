"""G4: a key is in the request that brings it and in the header that goes to its provider, and nowhere else."""

from __future__ import annotations

import base64
import gc
import json
import logging
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from flask import Flask, session

from flask_byok import Credential, Secret, get_chat_model_with_api_key, get_provider_with_api_key
from flask_byok.keys.typed import NewKey
from flask_byok.testing import FakeProviders
from tests.app import KEYS, HostApp, browser, make_app
from tests.guarantees.leaks import files_below, forms, leaks
from tests.guarantees.watching import BAD, CANARIES, Listener, everything_logged
from tests.guarantees.wire import Wire, served
from tests.services import RedisServer

STREAMS = ("gpt-4o-mini", "fail-midstream", "error-midstream")


def add_routes(app: HostApp) -> None:
    """Add views that fail while they hold a key."""

    @app.get("/boom-as-text")
    def boom_as_text() -> str:
        as_text = app.byok.get_api_key("openai")
        fields = app.byok.get_service_config("openai")
        app.logger.debug("about to fail with %s and %r", as_text, fields)
        raise RuntimeError(f"failed with {as_text}")

    @app.get("/boom")
    def boom() -> str:
        provider = get_provider_with_api_key("openai")
        credential = app.byok.resolve("openai")
        state = app.extensions["byok"]
        raise RuntimeError(f"failed with {provider} {credential!r} {state} {credential.fields}")

    @app.get("/boom-chained")
    def boom_chained() -> str:
        try:
            messages = [{"role": "user", "content": "x"}]
            list(get_provider_with_api_key("openai").stream_chat(messages, "error-midstream"))
        except Exception as error:
            raise RuntimeError("failed in a chain") from error
        return "never"

    @app.get("/langchain")
    def langchain() -> str:
        return str(get_chat_model_with_api_key("openai", "gpt-4o-mini").invoke("hello").content)


def good_calls(wire: Wire, canary: str) -> None:
    """Do with a good key all that can be done."""
    wire.load()
    whole = {"provider": "openai", "api_key": canary}
    padded = {"provider": "openai", "fields": {"api_key": f" {canary}\n"}}
    for verb, body in (
        *(("set", whole), ("set", padded)),
        *(("validate", {"provider": "openai"}), ("validate", whole)),
    ):
        assert wire.json(f"{KEYS}/{verb}", body)[0] == 200
    streams = [f"/chat/openai?model={model}" for model in STREAMS]
    ours = [KEYS, "/api/providers/settings", "/api/providers/openapi.json"]
    for path in (*streams, "/used/openai", "/langchain", *ours):
        assert wire.send("GET", path)[0] == 200
    for path in ("/boom-as-text", "/boom", "/boom-chained"):
        gc.collect()  # lets go of what only cycles hold, so that no redactor knows the key by chance
        assert wire.send("GET", path)[0] == 500
    for action in ("save", "validate"):
        assert wire.form(f"/api/providers/settings/{action}", **whole)[0] == 303
    wire.send("POST", "/sign-in/a")
    wire.load()
    assert wire.json(f"{KEYS}/promote", {})[0] == 200
    assert wire.send("GET", "/chat/openai")[0] == 200


def bad_calls(wire: Wire, canary: str, bad: str) -> None:
    """Do with a key all that is wrong: refused keys, wrong fields, wrong places, wrong formats."""
    wire.load()
    for body in wrong_bodies(canary):
        for verb in ("set", "clear", "validate", "promote"):
            wire.json(f"{KEYS}/{verb}", body)
    for verb in ("set", "validate"):
        wire.json(f"{KEYS}/{verb}", {"provider": "openai", "api_key": bad})
        wire.json(f"{KEYS}/{verb}", {"provider": "openai", "api_key": bad, "validate": "require"})
    form = "application/x-www-form-urlencoded"
    for content_type in (form, "multipart/form-data; boundary=b", "text/plain", ""):
        body = f"provider=openai&api_key={quote(canary)}"
        wire.send("POST", f"{KEYS}/set", body, Content_Type=content_type)
    query = f"?api_key={quote(canary, safe='')}&q={quote(canary)}"
    for method, path in (
        ("GET", KEYS),
        ("POST", f"{KEYS}/set"),
        ("DELETE", f"{KEYS}/set"),
        ("GET", "/api/providers/nothing"),
        ("GET", "/api/providers/openapi.json"),
        ("OPTIONS", KEYS),
        ("GET", "/api/providers/settings"),
        ("POST", "/api/providers/settings/save"),
        ("GET", f"/api/providers/keys/{quote(canary, safe='')}"),
    ):
        gc.collect()
        wire.send(method, path + query)
        wire.send(method, path + query.replace("?", "?label=%C3%A9&"))
    wire.send("POST", f"{KEYS}/clear", "{}", X_CSRFToken=canary, Content_Type="application/json")
    wire.send("POST", f"{KEYS}/clear", "{}", Origin=canary, Content_Type="application/json")
    wire.send("GET", KEYS, Authorization=f"Bearer {canary}", X_API_Key=canary)
    wire.load()
    wire.form("/api/providers/settings/save", provider=canary, api_key=bad)
    wire.form("/api/providers/settings/save", provider="openai", api_key=bad)
    wire.form("/api/providers/settings/clear", provider=canary, tier=canary)
    wire.json(f"{KEYS}/clear", {"provider": "openai"})
    wire.json(f"{KEYS}/set", {"provider": "openai", "api_key": canary})


def wrong_bodies(canary: str) -> list[Any]:
    """Return bodies with the key where it does not belong."""
    whole = {"provider": "openai", "api_key": canary}
    return [
        {"provider": canary, "api_key": canary},
        {**whole, "label": canary},
        {**whole, "description": f"my key: {canary}"},
        {**whole, canary: 1},
        {**whole, "token": canary},
        {**whole, "tier": canary},
        {**whole, "validate": canary},
        {**whole, "expires_at": canary},
        {**whole, "persist": canary},
        {**whole, "base_url": canary},
        {**whole, "base_url": f"https://{canary}/v1"},
        {**whole, "base_url": f"https://llm.example.com/{canary}"},
        {**whole, "fields": {"api_key": canary}},
        {"provider": "openai", "fields": {canary: canary}},
        {"provider": "openai", "fields": {"api_key": "x", "base_url": canary}},
        {"provider": "openai", "api_key": [canary]},
        {"provider": "openai", "api_key": {"api_key": canary}},
        {"provider": "openai", "api_key": canary + "\nX-Injected: 1"},
        {"provider": "openai", "api_key": canary + " " + canary},
        {"provider": "openai", "api_key": canary + "ü"},
        {"provider": "openai", "api_key": "x" * 5000 + canary},
        {"provider": "openai", "tier": canary},
        {"providers": [canary], "on_conflict": canary},
        {"providers": canary},
        [canary],
        canary,
        '{"provider": "openai", "api_key": "' + canary,
        json.dumps(whole) + canary,
        "\ufeff" + json.dumps(whole),
        json.dumps({**whole, "filler": "x" * 70_000}),
    ]


def refused_streams(wire: Wire, fake: FakeProviders, canary: str) -> None:
    """Stream with a key that its provider refuses before and within, with errors that repeat it."""
    wire.load()
    save = {"provider": "openai", "api_key": canary, "validate": "off"}
    for status in (400, 401, 403, 404, 429, 500, 302):
        fake.add_key("openai", canary)
        wire.json(f"{KEYS}/set", save)
        repeated = dict.fromkeys(("type", "code", "param"), canary)
        echo = {"error": {"message": f"no: {canary}", **repeated}}
        away = "https://x.example/" if status == 302 else "/"
        for path in ("/chat/openai", "/boom-chained"):
            fake.answer_next("openai", status, echo, X_Echo="no", Location=away)
            wire.send("GET", path)
        for _ in range(2 if status == 500 else 1):  # so does a check
            fake.answer_next("openai", status, echo)
        wire.json(f"{KEYS}/validate", {"provider": "openai"})
    fake.add_key("openai", canary)
    wire.json(f"{KEYS}/set", save)
    wire.send("GET", "/chat/openai?model=revoked-midstream")
    wire.send("GET", "/chat/openai")
    fake.add_key("openai", canary)


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.parametrize("storage", ["files and SQLite", "Redis"])
def test_a_key_is_nowhere(
    tmp_path: Path,
    fake: FakeProviders,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    storage: str,
    name: str,
) -> None:
    """After every call, good and bad, a key is in no answer, log, report, signal, file or store."""
    canary, bad = CANARIES[name], BAD[name]
    fake.add_key("openai", canary)
    server: RedisServer | None = None
    if storage == "Redis":
        request.getfixturevalue("redis_url")  # emptied
        server = request.getfixturevalue("redis_server")
    app = make_app(tmp_path, fake, redis_url=server.url if server else None)
    add_routes(app)
    listener = Listener(app)
    with everything_logged() as log, served(app) as port:
        wire = Wire(port)
        good_calls(wire, canary)
        dump = server.dump() if server else b""
        files = files_below(tmp_path)
        bad_calls(wire, canary, bad)
        refused_streams(wire, fake, canary)
        dump += server.dump() if server else b""
        files |= {f"{place}, later": content for place, content in files_below(tmp_path).items()}
        wire.send("POST", "/sign-out")
    printed = capfd.readouterr()
    places = {
        **listener.places(log, printed, wire.received),
        "Redis": dump,
        **files,
    }
    assert leaks([canary, bad], places) == []
    # The calls did happen: the provider has seen both keys, and every place has something in it.
    assert {canary, bad} <= {call.api_key for call in fake.calls}
    assert {200, 303, 400, 404, 405, 409, 413, 415, 422, 500} <= set(wire.statuses)
    assert len(listener.payloads) > 10
    assert len(listener.reports) == 1
    assert len(listener.tracebacks) > 2
    assert "httpcore2" in log.getvalue()
    assert "openai" in log.getvalue()
    assert "werkzeug" in log.getvalue()
    if storage == "Redis":
        assert b"byok:d:" in dump
    else:
        assert "sqlalchemy.engine" in log.getvalue()
        assert any("byok.sqlite" in place for place in files)


@pytest.mark.parametrize("name", CANARIES)
def test_public_objects_do_not_show_a_key(app: HostApp, fake: FakeProviders, name: str) -> None:
    """No repr, str, format, vars, JSON or pickle of an object that holds a key has the key in it."""
    canary = CANARIES[name]
    fake.add_key("openai", canary)
    objects: list[Any] = [Secret(canary), NewKey(fields={"api_key": Secret(canary)})]

    @app.get("/collect")
    def collect() -> str:
        provider = get_provider_with_api_key("openai")
        credential = app.byok.resolve("openai")
        model = get_chat_model_with_api_key("openai", "gpt-4o-mini")
        given = get_provider_with_api_key("openai", canary)
        objects.extend([provider, provider.to_dict(), provider.credential, given, model])
        objects.extend([credential, credential.fields, app.extensions["byok"], app.byok])
        objects.extend([app.byok.list_keys(), app.byok.validate("openai")])
        return "ok"

    client = browser(app)
    client.save(canary)
    assert client.get("/collect").text == "ok"
    assert any(isinstance(one, Credential) and one.api_key == canary for one in objects)
    shown = {f"{type(one).__name__} {number}": _shown(one) for number, one in enumerate(objects)}
    assert leaks([canary], shown) == []


def _shown(one: Any) -> bytes:
    """Return all that is easily shown of an object."""
    texts = [repr(one), str(one), f"{one}", repr([one]), repr({"a": one})]
    texts.append(repr(getattr(one, "__dict__", None)))
    for write in (
        pickle.dumps,
        json.dumps,
        lambda o: json.dumps(o, default=str),
        lambda o: json.dumps(vars(o), default=repr),
    ):
        try:
            texts.append(repr(write(one)))
        except Exception as error:  # refusing is fine, as long as the refusal says nothing
            texts.append(repr(error) + str(error))
    return "\n".join(texts).encode()


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.parametrize(
    "around", [(b"", b""), (b"a", b"b"), (b"ab", b"c"), (b'{"key":"', b'","x":1}')]
)
def test_the_detector_sees_every_writing(name: str, around: tuple[bytes, bytes]) -> None:
    """The search finds a key in each encoding, wherever it begins."""
    canary = CANARIES[name]
    whole = around[0] + canary.encode() + around[1]
    writings = {
        "base64": base64.b64encode(whole),
        "URL-safe base64": base64.urlsafe_b64encode(whole),
        "hex": whole.hex().encode(),
        "JSON": json.dumps({"a": canary}).encode(),
        "URL": quote(canary).encode(),
        "raw": whole,
    }
    for writing, content in writings.items():
        assert leaks([canary], {"here": content}), writing
    assert leaks([canary], {"here": whole.replace(b"0123456789", b"")}) == []
    assert all(len(written) >= 12 for written in forms(canary).values())


def test_the_detector_finds_what_a_naive_app_leaks(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """On an app that handles keys as they come, the same search finds the key in every place."""
    canary = "sk-naive-CANARYabcdefghijklmnopqrstuvwxyz0123456789"
    app = Flask("naive")
    app.config.update(SECRET_KEY="x")
    database = redis.Redis.from_url(redis_server.url)

    @app.post("/set/<api_key>")
    def save(api_key: str) -> str:
        session["api_key"] = api_key
        database.set("key", api_key)
        (tmp_path / "keys.txt").write_text(api_key)
        logging.getLogger("naive").debug("saved %s", api_key)
        return f"saved {api_key}"

    @app.get("/boom")
    def boom() -> str:
        api_key = session["api_key"]
        raise RuntimeError(f"{len(api_key)} characters are too many")

    listener = Listener(app)
    with everything_logged() as log, served(app) as port:
        wire = Wire(port)
        wire.send("POST", f"/set/{canary}")
        wire.send("GET", "/boom")
    database.close()
    places = {
        "answer": bytes(wire.received),
        "cookie": wire.cookie.encode(),
        "log": log.getvalue().encode(),
        "traceback": "\n".join(listener.tracebacks).encode(),
        "Redis": redis_server.dump(),
        **files_below(tmp_path),
    }
    found = leaks([canary], places)
    assert {entry.rpartition(" in ")[2] for entry in found} == set(places)
    in_cookie = [entry for entry in found if entry.endswith("cookie")]
    assert any(entry.startswith(("base64", "URL-safe")) for entry in in_cookie)
