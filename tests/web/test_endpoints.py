"""Named endpoints of people's own: saved, listed, used and removed over HTTP and in Python."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask_login import current_user
from sqlalchemy import event, update

from flask_byok import get_chat_model_with_api_key, get_provider_with_api_key
from flask_byok.catalog.endpoints import MOST_ENDPOINTS
from flask_byok.storage.tables import credentials
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import HostApp, make_app, problem_of
from tests.keeper import OWN, SHARED, Keeper, accounts_of, close, keeper, logged

ID, NAME = "custom/my-vllm", "My vLLM"
OPEN = {"BYOK_ALLOW_CUSTOM_PROVIDERS": True, "BYOK_ALLOW_PRIVATE_ENDPOINTS": True}

MakeHost = Callable[..., HostApp]


@pytest.fixture
def make(tmp_path: Path, fake: FakeProviders, sqlite_url: str) -> Any:
    """Make hosts where people bring servers of their own, and a server that wants no key."""
    fake.add_key("custom", "")
    made: list[HostApp] = []

    def make_host(**config: Any) -> HostApp:
        app = make_app(tmp_path, fake, BYOK_DATABASE_URL=sqlite_url, **OPEN | config)
        app.byok.admin_loader(lambda: current_user.get_id() == "root")
        app.byok.team_loader(lambda: ["red"] if current_user.get_id() == "ann" else [])
        made.append(app)

        @app.get("/asked/<path:provider>")
        def asked(provider: str) -> dict[str, Any]:
            used = get_provider_with_api_key(provider)
            text = "".join(used.stream_chat([{"role": "user", "content": "hello"}]))
            return {"text": text, **used.to_dict()}

        return app

    yield make_host
    for app in made:
        close(app)


@pytest.fixture
def host(make: MakeHost) -> HostApp:
    """Make one with default settings."""
    return make()


@pytest.fixture
def ann(host: HostApp) -> Keeper:
    """Sign in as ann."""
    return keeper(host, "ann")


def body(fake: FakeProviders, name: str = NAME, **others: Any) -> dict[str, Any]:
    """Return what is sent for an endpoint that wants no key."""
    return {"provider": "custom", "name": name, "base_url": fake.base_url("custom"), **others}


def save(client: Keeper, fake: FakeProviders, name: str = NAME, **others: Any) -> dict[str, Any]:
    """Save an endpoint for the session, and return its status."""
    answer = client.call("set", **body(fake, name, **others))
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.get_json()["provider"]
    return status


def shown(client: Keeper) -> dict[str, str]:
    """Return the names of the named endpoints that have a key, by id."""
    rows = client.load()["providers"]
    return {row["provider"]: row["name"] for row in rows if "/" in row["provider"]}


@pytest.mark.parametrize("where", ["session", "account", "record"])
def test_a_named_endpoint(host: HostApp, fake: FakeProviders, ann: Keeper, where: str) -> None:
    """It has an id and a row of its own after the catalog, its name as typed, and serves with its own model and key."""
    api_key = fake.api_key("custom")
    typed = body(fake, api_key=api_key, model="local-large")
    if where == "record":
        answer = ann.ask("POST", OWN, typed)
        assert (answer.status_code, answer.get_json()["provider"]) == (201, ID)
    else:
        status = ann.call("set", **typed, persist=where == "account").get_json()["provider"]
        assert (status["provider"], status["name"], status["has_key"]) == (ID, NAME, True)
    rows = ann.load()["providers"]
    assert [row["provider"] for row in rows][-2:] == ["custom", ID]
    assert (rows[-1]["name"], rows[-1]["standalone"], rows[-1]["validity"]["verdict"]) == (
        NAME,
        True,
        "valid",
    )
    assert rows[-2]["has_key"] is False
    used = ann.get(f"/asked/{ID}").get_json()
    assert (used["provider"], used["name"]) == (ID, NAME)
    call = fake.calls_for("custom")[-1]
    assert (call.api_key, call.body["model"]) == (api_key, "local-large")
    assert ann.call("validate", provider=ID).get_json()["verdict"] == "valid"
    if where != "session":
        get_state(host).service.traffic.flush()
        assert ann.get(f"{OWN}/stats").get_json()["by_provider"][ID]["uses"] == 1
    cleared = ann.call("clear", provider=ID).get_json()
    assert cleared["cleared"] == ["session" if where == "session" else "user"]
    assert shown(ann) == {}
    entries = accounts_of(host).audit.entries("user:ann")
    assert [(one.provider, one.action) for one in reversed(entries)] == [
        (ID, "set"),
        (ID, "validate"),
        (ID, "clear"),
    ]


def test_several_endpoints(host: HostApp, fake: FakeProviders) -> None:
    """A visitor may have several, beside the one without a name; each has its own key, and each goes alone."""
    visitor = keeper(host, None)
    keys = {name: fake.api_key("custom", owner=name) for name in ("Zwei", "Eins", "")}
    for name, api_key in keys.items():
        save(visitor, fake, name, api_key=api_key, model="local-small")
    assert shown(visitor) == {"custom/eins": "Eins", "custom/zwei": "Zwei"}
    for name, api_key in keys.items():
        visitor.get(f"/asked/custom/{name.lower()}".rstrip("/"))
        assert fake.calls_for("custom")[-1].api_key == api_key
    visitor.call("clear", provider="custom")
    assert shown(visitor) == {"custom/eins": "Eins", "custom/zwei": "Zwei"}
    visitor.call("clear", provider="Custom/Zwei")
    assert shown(visitor) == {"custom/eins": "Eins"}


def test_without_a_key_none_is_sent(host: HostApp, fake: FakeProviders, ann: Keeper) -> None:
    """An endpoint without a key has no hint, and neither its check nor a call or the SDK's client sends a key."""
    status = save(ann, fake, model="local-small")
    assert (status["has_key"], status["hint"]) == (True, "")
    assert status["validity"]["verdict"] == "valid"
    ann.get(f"/asked/{ID}")

    def models() -> list[str]:
        used = get_provider_with_api_key(ID)
        chat = get_chat_model_with_api_key(ID, "local-small")
        return [used.client.models.list().data[0].id, used.models()[0].id, chat.invoke("hi").id[:3]]

    host.view_functions["plain"] = models
    assert ann.get("/plain").get_json()[:2] == ["local-small", "local-small"]
    assert len(fake.calls_for("custom")) >= 5
    assert all("authorization" not in call.headers for call in fake.calls_for("custom"))


@pytest.mark.parametrize("word", ["ollama", "EMPTY", "1234", "x", "sk-no-key-required"])
def test_words_as_keys(fake: FakeProviders, ann: Keeper, word: str) -> None:
    """A word that a server of one's own wants as its key is taken and sent."""
    fake.add_key("custom", word)
    assert save(ann, fake, api_key=word)["validity"]["verdict"] == "valid"
    assert fake.calls_for("custom")[-1].api_key == word


def test_the_same_name_again(fake: FakeProviders, ann: Keeper) -> None:
    """Names with one slug are one endpoint: `set` replaces it, and a new record of it is refused."""
    save(ann, fake, "Größe 2", persist=True)
    save(ann, fake, "grosse-2", persist=True, model="local-large")
    assert shown(ann) == {"custom/grosse-2": "grosse-2"}
    again = ann.ask("POST", OWN, body(fake, "Grosse, 2!"))
    assert problem_of(again) == (409, "key_exists")
    assert len(ann.records()) == 1


def test_one_key_each(make: MakeHost, fake: FakeProviders) -> None:
    """However many keys a provider may have, a named endpoint has one."""
    host = make(BYOK_KEYS_PER_PROVIDER=3)
    ann = keeper(host, "ann")
    answers = [ann.ask("POST", OWN, body(fake)).status_code for _ in range(2)]
    assert answers == [201, 409]
    save(ann, fake, persist=True)
    assert len(ann.records()) == 1


def test_set_by_its_id(fake: FakeProviders, ann: Keeper) -> None:
    """An endpoint set by its id keeps name, model and, if none is sent, address; a fresh one is called by its id."""
    save(ann, fake, model="local-large")
    base_url = fake.base_url("custom")
    again = ann.call("set", provider=ID, api_key=fake.api_key("custom"), base_url=base_url)
    assert again.get_json()["provider"]["name"] == NAME
    ann.get(f"/asked/{ID}")
    assert fake.calls_for("custom")[-1].body["model"] == "local-large"
    other = fake.api_key("custom", owner="other")
    assert ann.call("set", provider=ID, api_key=other).status_code == 200
    ann.get(f"/asked/{ID}")
    assert fake.calls_for("custom")[-1].api_key == other
    ann.call("set", provider="custom/fresh", base_url=base_url)
    assert shown(ann) == {"custom/fresh": "fresh", ID: NAME}


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("  My vLLM  ", "my-vllm"),
        ("Ólafur’s Þing", "olafur-s-thing"),
        ("a" * 40, "a" * 40),
        ("a" * 41, None),
        ("Ærø_№2 (β?)", None),
        ("Мой сервер", None),
        ("🚀", None),
        ("a\u200bb", None),
        ("sk-proj-abcdefghij0123456789", None),
    ],
)
def test_slugs(fake: FakeProviders, ann: Keeper, name: str, slug: str | None) -> None:
    """A name becomes Latin letters, digits and hyphens; one that cannot, or that looks like a key, is refused."""
    answer = ann.call("set", **body(fake, name))
    if slug is None:
        assert problem_of(answer) == (422, "invalid_field")
        assert name not in answer.text
    assert shown(ann) == ({} if slug is None else {f"custom/{slug}": name.strip()})


@pytest.mark.parametrize("end", ["chat/completions", "models", "responses", "models/x?y=z#w", ""])
def test_a_pasted_address(host: HostApp, fake: FakeProviders, ann: Keeper, end: str) -> None:
    """A whole address that was pasted is cut to its base URL."""
    base_url = fake.base_url("custom")
    status = save(ann, fake, base_url=f" {base_url}/{end}/ ")
    assert status["validity"]["verdict"] == "valid"
    host.view_functions["plain"] = lambda: host.byok.resolve(ID).base_url
    assert ann.get("/plain").text == base_url


def test_an_address_without_a_scheme(host: HostApp, fake: FakeProviders, ann: Keeper) -> None:
    """An address without a scheme gets https://."""
    save(ann, fake, base_url="llm.example.com/v1/", validate="off")
    host.view_functions["plain"] = lambda: host.byok.resolve(ID).base_url
    assert ann.get("/plain").text == "https://llm.example.com/v1"


@pytest.mark.parametrize(
    ("harm", "verdict", "said"),
    [
        ("no_version", "unchecked", "Add /v1"),
        ("wants_key", "invalid", "wants an API key"),
        ("no_models", "unchecked", "lists no models"),
        ("no_tls", "unreachable", "TLS"),
        ("closed", "unreachable", "refused"),
    ],
)
def test_what_is_wrong(
    fake: FakeProviders, ann: Keeper, harm: str, verdict: str, said: str
) -> None:
    """The check of an endpoint says what is wrong with it."""
    address = fake.base_url("custom")
    if harm == "no_version":
        address = address.removesuffix("/v1")
        fake.answer_next("custom", 404, {"detail": "Not Found"})
    elif harm == "wants_key":
        fake.add_key("custom", "", "bad")
    elif harm == "no_models":
        fake.answer_next("custom", 404, {"detail": "Not Found"})
    elif harm == "no_tls":
        address = address.replace("http:", "https:")
    elif harm == "closed":
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    found = ann.call("validate", provider="custom", base_url=address).get_json()
    assert found["verdict"] == verdict
    assert said in found["reason"]


def test_nobody_elses(host: HostApp, fake: FakeProviders, ann: Keeper) -> None:
    """Another owner's endpoint is in no list and is answered as one that there is not."""
    save(ann, fake, persist=True)
    for other in (keeper(host, "bob"), keeper(host, None)):
        assert shown(other) == {}
        for name in (ID, "custom/never-was"):
            assert problem_of(other.call("validate", provider=name)) == (409, "key_missing")
            assert other.get(f"/asked/{name}").status_code == 409
            assert other.call("clear", provider=name).get_json()["cleared"] == []
    assert shown(ann) == {ID: NAME}


@pytest.mark.parametrize("name", ["custom/", "custom/a b", "custom/*", "openai/x", "custom/a/b"])
def test_no_such_id(ann: Keeper, name: str) -> None:
    """What has no slug, or is an endpoint of a provider that has none, is an unknown provider."""
    assert problem_of(ann.call("validate", provider=name)) == (404, "unknown_provider")


def test_switched_off(make: MakeHost, fake: FakeProviders) -> None:
    """Where people may not bring servers, or the operator keeps them, there are no endpoints either."""
    closed = keeper(make(BYOK_ALLOW_CUSTOM_PROVIDERS=False), "ann")
    assert problem_of(closed.call("set", **body(fake))) == (404, "unknown_provider")
    locked = keeper(make(BYOK_LOCKED_PROVIDERS=["custom"]), "ann")
    assert problem_of(locked.call("set", **body(fake))) == (403, "provider_locked")
    assert problem_of(locked.ask("POST", OWN, body(fake))) == (403, "provider_locked")


def test_of_a_team(host: HostApp, fake: FakeProviders) -> None:
    """A team's endpoint serves its members alone."""
    root, ann, bob = (keeper(host, name) for name in ("root", "ann", "bob"))
    answer = root.ask("POST", SHARED, body(fake, owner="team:red", model="local-small"))
    assert answer.status_code == 201
    assert shown(ann) == {ID: NAME}
    assert shown(bob) == {}
    assert ann.get(f"/asked/{ID}").get_json()["source"] == "team"


def test_changes_of_a_record(fake: FakeProviders, ann: Keeper) -> None:
    """Its model changes without its key, its name within its slug; its address only with the key; and it can rest."""
    api_key = fake.api_key("custom")
    path = f"{OWN}/{ann.ask('POST', OWN, body(fake, api_key=api_key)).get_json()['id']}"
    assert ann.ask("PATCH", path, {"model": "local-large"}).status_code == 200
    assert ann.ask("PATCH", path, {"name": "my VLLM"}).status_code == 200
    assert problem_of(ann.ask("PATCH", path, {"name": "Other"})) == (422, "invalid_field")
    moved = {"base_url": fake.base_url("groq"), "model": "x"}
    assert problem_of(ann.ask("PATCH", path, moved)) == (422, "malformed_api_key")
    ann.get(f"/asked/{ID}")
    call = fake.calls_for("custom")[-1]
    assert (call.api_key, call.body["model"]) == (api_key, "local-large")
    ann.ask("PATCH", path, {"active": False})
    assert shown(ann) == {ID: "my VLLM"}
    assert ann.status(ID)["state"] == "inactive"


def test_its_label_may_hold_its_name(fake: FakeProviders, ann: Keeper) -> None:
    """A label may contain the endpoint's name and model, which are no secrets; a name may not hold the key."""
    save(ann, fake, "Large server", model="local-large", label="Large server: local-large")
    held = ann.call("set", **body(fake, "the-key-12345678", api_key="key-12345678"))
    assert problem_of(held) == (422, "invalid_field")


def test_in_python(host: HostApp, fake: FakeProviders, ann: Keeper) -> None:
    """The same verbs in Python take a name and a model, and its id everywhere."""
    byok, base_url = host.byok, fake.base_url("custom")

    def work() -> dict[str, Any]:
        status = byok.set("custom", base_url=base_url, name=NAME, model="local-small")
        listed = [one["provider"] for one in byok.list_keys() if one["has_key"]]
        config = byok.get_service_config(ID)
        missing = byok.missing_keys([ID, "custom/other"])
        return {
            "said": (status["provider"], status["name"], byok.validate(ID).verdict),
            "listed": listed,
            "config": dict(config),
            "missing": missing,
            "cleared": byok.clear(ID),
        }

    host.view_functions["plain"] = work
    assert ann.get("/plain").get_json() == {
        "said": [ID, NAME, "valid"],
        "listed": [ID],
        "config": {"name": NAME, "model": "local-small", "base_url": base_url},
        "missing": ["custom/other"],
        "cleared": ["session"],
    }


def test_by_plain_forms(fake: FakeProviders, ann: Keeper) -> None:
    """Without a script the form of the provider saves an endpoint, and its own row replaces and removes it."""
    page = "/api/providers/settings"

    def send(action: str, **typed: str) -> int:
        return ann.post(f"{page}/{action}", data={"csrf_token": ann.token, **typed}).status_code

    assert send("save", **body(fake), model="local-large") == 303
    assert 'data-byok-provider="custom/my-vllm"' in ann.get(page).text
    assert shown(ann) == {ID: NAME}
    assert send("save", provider=ID, base_url=fake.base_url("custom")) == 303
    assert shown(ann) == {ID: NAME}
    assert send("clear", provider=ID) == 303
    assert shown(ann) == {}


def test_ports(make: MakeHost, fake: FakeProviders) -> None:
    """A named endpoint may be at the ports that the operator allows, and at no other."""
    host = make(BYOK_ALLOW_PRIVATE_ENDPOINTS=False, BYOK_ENDPOINT_PORTS=[443, 8443])
    ann = keeper(host, "ann")
    save(ann, fake, base_url="https://llm.example.com:8443/v1/models", validate="off")
    other = body(fake, "Other") | {"base_url": "llm.example.com:8000/v1", "validate": "off"}
    assert problem_of(ann.call("set", **other)) == (422, "endpoint_not_allowed")
    assert shown(ann) == {ID: NAME}


def test_no_round_trip_more(host: HostApp, fake: FakeProviders, ann: Keeper) -> None:
    """The list with named endpoints asks the database no more often than the list without."""
    statements: list[str] = []
    event.listen(
        accounts_of(host).engine,
        "before_cursor_execute",
        lambda *facts: statements.append(facts[2]),
    )

    def asked() -> int:
        statements.clear()
        ann.load()
        return len(statements)

    before = asked()
    for number in range(4):
        save(ann, fake, f"Box {number}", persist=number % 2 == 0, validate="off")
    assert asked() == before
    assert len(shown(ann)) == 4


# limits and races


@pytest.mark.parametrize("persist", [False, True])
def test_at_most_so_many(fake: FakeProviders, ann: Keeper, persist: bool) -> None:
    """An owner has at most twenty; others of theirs can still be changed and removed, and make room."""
    options: dict[str, Any] = {"persist": persist, "validate": "off"}
    for number in range(MOST_ENDPOINTS):
        save(ann, fake, f"Box {number}", **options)
    full = ann.call("set", **body(fake, "One more", **options))
    assert problem_of(full) == (409, "key_exists")
    assert "20 named endpoints" in full.get_json()["detail"]
    save(ann, fake, "Box 3", **options)
    save(ann, fake, "", **options)
    ann.call("clear", provider="custom/box-3")
    save(ann, fake, "One more", **options)
    assert len(shown(ann)) == MOST_ENDPOINTS


def together(*works: Callable[[], Any]) -> list[Any]:
    """Do all of this at the same time, and return what each returned."""
    start, found = threading.Barrier(len(works)), [None] * len(works)

    def run(number: int) -> None:
        start.wait()
        found[number] = works[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def tabs(client: Keeper, count: int) -> list[Keeper]:
    """Return other tabs of a browser."""
    made = []
    for _ in range(count):
        tab = Keeper(client.application, client.response_wrapper, use_cookies=True)
        tab.set_cookie("session", client.session_id)
        tab.token = client.token
        made.append(tab)
    return made


def test_two_tabs_with_one_name(fake: FakeProviders, ann: Keeper) -> None:
    """Of several tabs that save a new record of one name at once one does; those that set it leave one of them."""
    typed = [
        body(fake, name, validate="off") for name in ("My vLLM", "my vllm", "MY-VLLM", "my.vllm")
    ]
    works = [
        lambda tab=tab, one=one: tab.ask("POST", OWN, one).status_code
        for tab, one in zip(tabs(ann, 4), typed, strict=True)
    ]
    assert sorted(together(*works)) == [201, 409, 409, 409]
    works = [
        lambda tab=tab, one=one: tab.call("set", **one).status_code
        for tab, one in zip(tabs(ann, 4), typed, strict=True)
    ]
    assert together(*works) == [200] * 4
    assert list(shown(ann)) == [ID]


@pytest.mark.parametrize("persist", [False, True])
def test_tabs_at_the_limit(fake: FakeProviders, ann: Keeper, persist: bool) -> None:
    """Tabs that save other names at once do not get past the limit."""
    options: dict[str, Any] = {"persist": persist, "validate": "off"}
    for number in range(MOST_ENDPOINTS - 2):
        save(ann, fake, f"Box {number}", **options)
    works = [
        lambda tab=tab, number=number: (
            tab.call("set", **body(fake, f"New {number}", **options)).status_code
        )
        for number, tab in enumerate(tabs(ann, 4))
    ]
    assert sorted(together(*works)) == [200, 200, 409, 409]
    assert len(shown(ann)) == MOST_ENDPOINTS


# from session to account


def test_promotion(host: HostApp, fake: FakeProviders) -> None:
    """A visitor's endpoint waits after the sign-in, with its name and unused, and moves to the account if asked."""
    client = keeper(host, None)
    save(client, fake, model="local-small")
    client.post("/sign-in/ann")
    status = client.status(ID)
    assert (status["name"], status["has_key"], status["promotable"]) == (NAME, False, True)
    assert client.call("promote").get_json() == {"promoted": [ID], "kept": []}
    status = client.status(ID)
    assert (status["name"], status["source"]) == (NAME, "user")
    assert client.get(f"/asked/{ID}").get_json()["source"] == "user"
    assert ("user:ann", "promote", "done") in logged(host, "user:ann")


def test_promotion_where_the_account_is_full(
    host: HostApp, fake: FakeProviders, ann: Keeper
) -> None:
    """What the account has no place for stays in the session; the rest moves."""
    for number in range(MOST_ENDPOINTS - 1):
        save(ann, fake, f"Box {number}", persist=True, validate="off")
    save(ann, fake, "New a")
    save(ann, fake, "New b")
    assert ann.call("promote").get_json() == {
        "promoted": ["custom/new-a"],
        "kept": ["custom/new-b"],
    }
    assert ann.status("custom/new-b")["source"] == "session"


def test_promotion_without_accounts(make: MakeHost, fake: FakeProviders) -> None:
    """In an app without accounts the user takes over the visitor's endpoint within the session."""
    client = keeper(make(BYOK_PRECEDENCE=["session", "env"]), None)
    save(client, fake)
    client.post("/sign-in/ann")
    assert client.load()["providers"][-1]["promotable"]
    assert client.call("promote").get_json()["promoted"] == [ID]
    assert client.status(ID)["source"] == "session"


# bound


@pytest.mark.parametrize("other", ["custom", "custom/other"])
def test_moved_to_another_endpoint(
    host: HostApp, fake: FakeProviders, ann: Keeper, other: str
) -> None:
    """A ciphertext that was moved to another endpoint's row is unreadable there, and the list answers."""
    save(ann, fake, persist=True)
    engine = accounts_of(host).engine
    with engine.begin() as connection:
        connection.execute(update(credentials).values(provider=other))
    status = ann.status(other)
    assert (status["state"], status["source"]) == ("unreadable", "user")
    assert problem_of(ann.get(f"/asked/{other}"))[1] == "key_unreadable"
    assert ID not in shown(ann)


def test_planted_ids(host: HostApp, fake: FakeProviders, ann: Keeper) -> None:
    """A row whose provider is no id of an endpoint, which nobody here writes, breaks no list."""
    save(ann, fake, persist=True)
    with accounts_of(host).engine.begin() as connection:
        connection.execute(update(credentials).values(provider="custom/../A b"))
    assert shown(ann) == {}
    assert len(ann.records()) == 1
