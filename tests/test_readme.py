"""What the README and the documentation say is true: their examples run, and what they name is there."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from cachelib import FileSystemCache
from flask import Flask, render_template_string, session
from flask_session import Session
from markupsafe import Markup
from werkzeug.exceptions import default_exceptions

import flask_byok
from flask_byok import BYOK, errors
from flask_byok.catalog import PROVIDERS
from flask_byok.cli import byok as group
from flask_byok.settings import Settings
from flask_byok.testing import FakeProviders
from flask_byok.web.problems import TYPE_PREFIX, http_problem_response
from tests import services
from tests.app import OTHER_ENCRYPTION_KEY, browser, make_app
from tests.demo import Visitor, read_events

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
BLOCKS = re.findall(r"^( *)```python\n(.*?)^ *```$", README, re.DOTALL | re.MULTILINE)


@contextmanager
def _run_as_told(directory: Path, fake: FakeProviders) -> Iterator[_ReadmeVisitor]:
    """Serve `app.py` there by the commands that the pages give, on fake providers, and visit it."""
    flask = [sys.executable, "-m", "flask"]
    generate = [*flask, "byok", "generate-key"]
    key = subprocess.run(generate, cwd=directory, capture_output=True, text=True, check=True)
    port = services.free_port()
    command = [*flask, "run", "--port", str(port)]
    environ = {
        **{name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")},
        "FLASK_SECRET_KEY": "made up for this test",
        "FLASK_BYOK_BASE_URLS": json.dumps(fake.base_urls),
        "BYOK_ENCRYPTION_KEY": key.stdout.strip(),
    }
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(command, cwd=directory, env=environ, stdout=log, stderr=log) as process,
    ):
        try:
            visitor = _ReadmeVisitor(f"http://127.0.0.1:{port}")
            # It loads the SDKs first: seconds of CPU, of which a busy machine has little.
            services.wait_until(lambda: visitor.open("/api/providers/keys"), "flask run", 120)
            yield visitor
        finally:
            process.terminate()


class _ReadmeVisitor(Visitor):
    """Takes the CSRF token from where the README's app has it."""

    def csrf_token(self) -> str:
        with self.open("/api/providers/keys") as answer:
            return str(json.load(answer)["csrf_token"])


def test_quick_start_runs_as_written(tmp_path: Path, byok_fake_providers: FakeProviders) -> None:
    """The README's app, saved and run by its commands, keeps a key and streams with it; its forms need no token."""
    form = '\n\n@app.post("/form")\ndef form():\n    return "saved"\n'
    (tmp_path / "app.py").write_text(BLOCKS[0][1] + form)
    with _run_as_told(tmp_path, byok_fake_providers) as visitor:
        assert visitor.open("/form", b"a=1").read() == b"saved"
        assert '<dialog id="byok-dialog"' in visitor.page()
        assert visitor.post("/chat", HELLO)[1]["code"] == "key_missing"
        api_key = byok_fake_providers.api_key("openai")
        new = {"provider": "openai", "api_key": api_key}
        assert visitor.post("/api/providers/keys/set", new)[0] == 200
        with visitor.stream("/chat", HELLO) as answer:
            assert answer.headers["X-BYOK-Source"] == "session"
            assert read_events(answer.read().decode())[-1] == ("done", {})
    assert byok_fake_providers.calls_for("openai")[-1].api_key == api_key


def test_app_factory_runs_as_written(tmp_path: Path, byok_fake_providers: FakeProviders) -> None:
    """The app factory of the quick start, run by the commands of its page, keeps a key and streams with it."""
    shutil.copy(EXAMPLES / "app.py", tmp_path / "app.py")
    with _run_as_told(tmp_path, byok_fake_providers) as visitor:
        new = {"provider": "openai", "api_key": byok_fake_providers.api_key("openai")}
        assert visitor.post("/api/providers/keys/set", new)[0] == 200
        with visitor.stream("/chat", HELLO) as answer:
            assert read_events(answer.read().decode())[-1] == ("done", {})


def test_readme_is_run_here_and_in_the_documentation() -> None:
    """The README has two blocks of Python, each run here; its app is the documentation's, and short."""
    assert len(BLOCKS) == README.count("```python") == 2
    assert BLOCKS[0][1] == (EXAMPLES / "quickstart.py").read_text()
    assert len([line for line in BLOCKS[0][1].splitlines() if line]) <= 20


def test_readme_owner_loader_says_who_it_is(host: tuple[Flask, BYOK]) -> None:
    """The README's loader makes the host's own session entry the owner."""
    app, byok = host
    indent, code = BLOCKS[1]
    plain = "\n".join(line.removeprefix(indent) for line in code.splitlines())
    exec(plain, {"byok": byok, "session": session})
    app.add_url_rule("/become", view_func=lambda: session.update(user_id="7") or "")
    client = app.test_client()
    assert client.get("/api/providers/keys").get_json()["authenticated"] is False
    client.get("/become")
    assert client.get("/api/providers/keys").get_json()["authenticated"] is True


def test_readme_names_files_that_exist() -> None:
    """Each link and each test that the README names is a file of the project."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    tests = re.findall(r"`(tests/[^`]+)`", README)
    assert len(tests) >= 12
    assert [name for name in links + tests if not (ROOT / name).exists()] == []


@pytest.fixture
def host(tmp_path: Path, byok_fake_providers: FakeProviders) -> tuple[Flask, BYOK]:
    """Make a host as the examples' reader has one."""
    app = Flask("host", instance_path=str(tmp_path))
    app.config.update(
        SECRET_KEY="made up for this test",
        SESSION_TYPE="cachelib",
        SESSION_CACHELIB=FileSystemCache(str(tmp_path / "sessions")),
        BYOK_ENCRYPTION_KEY=OTHER_ENCRYPTION_KEY,
        BYOK_BASE_URLS=byok_fake_providers.base_urls,
        BYOK_PRECEDENCE=("session",),
    )
    Session(app)
    return app, BYOK(app)


def _fresh(host: tuple[Flask, BYOK]) -> Flask:
    """Return an app of the same settings, without extensions."""
    fresh = Flask("fresh", instance_path=host[0].instance_path)
    fresh.config.update(host[0].config)
    return fresh


def _example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_example_of_calls_works(
    host: tuple[Flask, BYOK], byok_fake_providers: FakeProviders
) -> None:
    """Each way to use a key in the quick start answers with the key, and says so without one."""
    app, byok = host
    _example("calls")["add_views"](app, byok)
    client = app.test_client()
    assert client.get("/poem").get_json()["code"] == "key_missing"
    assert client.get("/key-or-not").text.startswith("key_missing: No API key for Anthropic")
    _save(client, "openai", byok_fake_providers.api_key("openai"))
    assert client.get("/models").get_json()["source"] == "session"
    assert "gpt-4o-mini" in client.get("/models").get_json()["names"]
    byok_fake_providers.answer_next("openai", 403, {"error": {"message": "No."}})
    assert client.get("/models").get_json() == {"code": "provider_error", "status": 403}
    assert "A poem" in client.get("/poem").text
    assert "A question" in client.get("/ask").text
    _save(client, "anthropic", byok_fake_providers.api_key("anthropic"))
    assert client.get("/key-or-not").text == "there is one"


def _save(client: Any, provider: str, api_key: str) -> None:
    token = client.get("/api/providers/keys").get_json()["csrf_token"]
    body = {"provider": provider, "api_key": api_key}
    headers = {"X-CSRFToken": token}
    answer = client.post("/api/providers/keys/set", json=body, headers=headers)
    assert answer.status_code == 200, answer.get_json()


def test_example_of_an_owner_loader_works(
    host: tuple[Flask, BYOK], byok_fake_providers: FakeProviders
) -> None:
    """Signing in and out as the quick start does makes an owner, and takes the keys away in the end."""
    fresh, example = _fresh(host), _example("owner_loader")
    Session(fresh)
    example["byok"].init_app(fresh)
    example["add_accounts"](fresh)
    client = fresh.test_client()
    client.post("/sign-in/7")
    assert client.get("/api/providers/keys").get_json()["authenticated"] is True
    _save(client, "openai", byok_fake_providers.api_key("openai"))
    assert _sources(client)["openai"] == "session"
    client.post("/sign-out")
    assert client.get("/api/providers/keys").get_json()["authenticated"] is False
    assert _sources(client)["openai"] is None


def _sources(client: Any) -> dict[str, str | None]:
    statuses = client.get("/api/providers/keys").get_json()["providers"]
    return {status["provider"]: status["source"] for status in statuses}


def test_example_of_an_explicit_key_prints_what_it_says() -> None:
    """The comments of the example are what its lines print."""
    with redirect_stdout(StringIO()) as printed:
        _example("explicit_key")
    said = re.findall(r"\)  # (.+)$", (EXAMPLES / "explicit_key.py").read_text(), re.MULTILINE)
    assert printed.getvalue().splitlines() == said


def test_example_of_a_policy_fits_the_dialog(host: tuple[Flask, BYOK]) -> None:
    """The policy's nonce is the one on the dialog's script, and a new one each time."""
    fresh = _fresh(host)
    _example("csp")["add_policy"](fresh)
    Session(fresh)
    BYOK(fresh)
    fresh.add_url_rule("/", view_func=lambda: render_template_string("{{ byok.head() }}"))
    seen = set()
    for _ in range(2):
        answer = fresh.test_client().get("/")
        (nonce,) = set(re.findall(r'nonce="([^"]+)"', answer.text))
        assert f"'nonce-{nonce}'" in answer.headers["Content-Security-Policy"]
        seen.add(nonce)
    assert len(seen) == 2


def test_example_for_sentry_hands_over_the_redactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example makes Sentry call the function that redacts events."""
    given: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "sentry_sdk", SimpleNamespace(init=given.update))
    _example("sentry")
    assert given["before_send"] is flask_byok.sentry_before_send


def test_example_for_production_is_safe(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The example for deployment keeps everything in Redis, and `flask byok check` finds nothing unsafe."""
    shutil.copy(EXAMPLES / "production.py", tmp_path / "app.py")
    environ = {
        "SECRET_KEY": "made up",
        "REDIS_URL": redis_url,
        "BYOK_ENCRYPTION_KEY": OTHER_ENCRYPTION_KEY,
    }
    done = subprocess.run(
        [sys.executable, "-m", "flask", "byok", "check"],
        cwd=tmp_path,
        env=os.environ | environ,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = (DOCS / "operating.rst").read_text().replace("\n   ", "\n")
    assert done.stdout.replace(str(tmp_path), "/srv/app") in shown


def test_cron_gives_the_command_its_environment(tmp_path: Path) -> None:
    """The line for cron exports what the file for systemd sets."""
    line = re.search(
        r"17 3 \* \* \*  app  (.* )\.venv/bin/flask", (DOCS / "operating.rst").read_text()
    )
    assert line is not None
    (tmp_path / "env").write_text("BYOK_REDIS='redis://host/?a=1&b=$2'\n")
    command = line[1].replace("/srv/app", str(tmp_path)) + "env"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert "BYOK_REDIS=redis://host/?a=1&b=$2" in done.stdout.splitlines()


def test_examples_for_testing_pass(tmp_path: Path) -> None:
    """The tests that the documentation shows run, beside an app like its reader's, and pass."""
    for name in ("app.py", "test_chat.py", "test_no_bleed.py", "test_endings.py"):
        shutil.copy(EXAMPLES / name, tmp_path / name)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "10 passed" in done.stdout


def test_every_example_is_used() -> None:
    """Each file of examples is shown in the documentation, and run here or beside what it is an example of."""
    pages = "".join(page.read_text() for page in DOCS.glob("*.rst"))
    outside = (ROOT / "tests" / "outside").glob("test_*.py")
    here = "".join(place.read_text() for place in (Path(__file__), *outside))
    for example in EXAMPLES.glob("*.py"):
        stem, ways = example.stem, ('"{}.py"', '_example("{}")', "import {}\n")
        assert f"examples/{example.name}" in pages
        assert any(way.format(stem) in here for way in ways), stem


def test_no_example_signs_people_out() -> None:
    """No example has a store of sessions that drops them once there are 500, as cachelib makes it by default."""
    pages = [page for page in DOCS.rglob("*") if page.suffix in (".py", ".rst")]
    calls = re.findall(r"FileSystemCache\((?!\.).*", README + "".join(map(Path.read_text, pages)))
    assert calls
    assert [call for call in calls if "threshold=0" not in call] == []


def test_what_adopting_sessions_costs(redis_url: str, tmp_path: Path) -> None:
    """A cookie of Flask's names no session on the server, and values come back or are refused as the page says."""
    costs = (DOCS / "quickstart.rst").read_text().partition("adopting-sessions:")[2]
    values = {
        "a tuple comes back as a list": ((1, 2), [1, 2]),
        "a ``UUID`` as text": (UUID(int=1), str(UUID(int=1))),
    }
    given: dict[str, Any] = {words: value for words, (value, _) in values.items()}
    visitors = []
    for name, config in (
        ("cookie", {"SESSION_TYPE": None, "BYOK_PRECEDENCE": ["user"]}),
        ("server", {"redis_url": redis_url}),
    ):
        app = make_app(tmp_path / name, csrf_protect=False, **config)
        app.add_url_rule("/keep", "keep", lambda: session.update(given) or "")
        app.add_url_rule(
            "/kept", "kept", lambda: {words: repr(session.get(words)) for words in given}
        )
        app.add_url_rule("/markup", "markup", lambda: session.update(one=Markup("<b>")) or "")
        visitors.append(browser(app))
    for index, visitor in enumerate(visitors):
        visitor.get("/keep")
        assert visitor.get("/kept").get_json() == {
            words: repr(pair[index]) for words, pair in values.items()
        }
    assert [visitor.get("/markup").status_code for visitor in visitors] == [200, 500]
    visitors[1].set_cookie("session", visitors[0].session_id)
    assert set(visitors[1].get("/kept").get_json().values()) == {"None"}
    for words in (
        "Everybody is signed out",
        *values,
        "``Markup`` and objects of your own are refused",
    ):
        assert words in " ".join(costs.split())


def test_every_setting_is_described() -> None:
    """The page on configuration has an entry for each setting that is read, and the README says how many there are."""
    page = (DOCS / "configuration.rst").read_text()
    described = re.findall(r"^\.\. confval:: (\w+)$", page, re.M)
    read = {f"BYOK_{field.name.upper()}" for field in fields(Settings)}
    assert sorted(described) == sorted(read | {"BYOK_ENCRYPTION_KEY_FILE"})
    (number,) = re.findall(r"The others, (\d+) in all,", README)
    assert len(set(described) - {"BYOK_ENCRYPTION_KEY"}) == int(number)


def test_the_page_has_every_provider() -> None:
    """The table of providers is made from the catalog: each with its ids, fields, variables and its document."""
    assert ".. providers::" in (DOCS / "providers.rst").read_text()
    table = runpy.run_path(str(DOCS / "catalog_table.py"))["catalog_table"]()
    _, _, *rows = re.split(r"^ +\* - ", table, flags=re.MULTILINE)
    assert len(rows) == len(PROVIDERS)
    for spec, row in zip(PROVIDERS, rows, strict=True):
        names = {f.name for f in spec.fields} | {
            n for names in spec.variables.values() for n in names
        }
        for name in (spec.id, *spec.aliases, *names, spec.default_model or spec.id):
            assert f"``{name}``" in row
        assert spec.docs in row


def test_every_public_name_is_described() -> None:
    """The page on the Python interface has each name that `flask_byok` exports."""
    page = (DOCS / "api.rst").read_text()
    assert [name for name in flask_byok.__all__ if not re.search(rf"\b{name}\b", page)] == []


def test_changes_name_what_there_is() -> None:
    """The list of changes names each command, and the verbs and loaders that its first lines do not imply."""
    text = (ROOT / "CHANGES.md").read_text()
    verbs = {name for name in vars(BYOK) if "_key" in name or "_user" in name} | {
        "get_service_config"
    }
    commands = {*group.commands, *group.commands["audit"].commands, *group.commands["db"].commands}
    wanted = verbs - {"list_keys"} | {"key_expiring", "fresh_login_loader"} | commands
    assert [name for name in sorted(wanted) if name not in text] == []


def test_every_problem_is_described() -> None:
    """Each code that an answer can have is an anchor on the page that its `type` links to."""
    anchors = set(re.findall(r'<span id="(\w+)">', (DOCS / "problems.rst").read_text()))
    of_errors = {
        error.code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.ByokError)
    }
    of_http = {
        http_problem_response(default_exceptions[status]()).get_json()["type"]
        for status in (400, 404, 405, 413, 415, 500)
    }
    of_http = {link.removeprefix(TYPE_PREFIX) for link in of_http}
    assert anchors == of_errors | of_http | {"csrf"}
    assert TYPE_PREFIX.endswith("problems.html#")
