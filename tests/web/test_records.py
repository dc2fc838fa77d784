"""``/api/keys``: a user's own keys, one by one, on each database."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from flask_byok import signals
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import HostApp, fingerprint, problem_of
from tests.keeper import OWN, Keeper, accounts_of, keeper

from .conftest import MakeHost

UNKNOWN = "0" * 32
RECORD = {
    *("id", "provider", "slot", "label", "description", "hint", "owner", "active", "state"),
    *("expires_at", "expires_soon", "created_at", "updated_at", "last_used_at", "usage_count"),
    *("validity", "version"),
}


# create and show


def test_a_new_key_is_shown_and_used(ann: Keeper, fake: FakeProviders) -> None:
    """A key is created at an address of its own, shown by its hint alone, and serves at once."""
    api_key = fake.api_key("openai")
    body = {"provider": "openai", "api_key": api_key, "label": "work", "description": "mine"}
    made = ann.ask("POST", OWN, body)
    assert made.status_code == 201
    record = made.get_json()
    assert record.pop("validation")["verdict"] == "valid"
    assert record.pop("warnings") == []
    assert set(record) == RECORD
    assert (record["owner"], record["slot"], record["version"]) == ("user:ann", "", 1)
    assert (record["label"], record["description"]) == ("work", "mine")
    assert (record["state"], record["active"]) == ("active", True)
    assert (record["usage_count"], record["last_used_at"]) == (0, None)
    assert record["hint"] == f"sk-proj-…{api_key[-4:]}"
    assert record["validity"]["verdict"] == "valid"
    assert (made.headers["Location"], made.headers["ETag"]) == (f"{OWN}/{record['id']}", '"1"')
    shown = ann.get(made.headers["Location"])
    assert (shown.get_json(), shown.headers["ETag"]) == (record, '"1"')
    assert shown.headers["Cache-Control"] == "no-store"
    assert api_key not in made.text + shown.text + ann.get(OWN).text
    assert ann.get("/used/openai").get_json() == {
        "source": "user",
        "fingerprint": fingerprint(api_key),
    }


def test_a_second_key_needs_room(ann: Keeper, fake: FakeProviders) -> None:
    """An owner has one key for a provider, unless the operator allows more; no provider is asked first."""
    ann.keep(fake.api_key("openai"))
    fake.clear_calls()
    body = {"provider": "openai", "api_key": fake.api_key("openai", owner=2)}
    for slot in ({}, {"slot": ""}, {"slot": "other"}):
        assert problem_of(ann.ask("POST", OWN, {**body, **slot})) == (409, "key_exists")
    assert fake.calls == []
    ann.keep(fake.api_key("groq"), "groq")
    assert len(ann.records()) == 2


def test_slots(make_host: MakeHost, fake: FakeProviders) -> None:
    """If an owner may have several keys, each takes the first free slot or the one it names."""
    ann = keeper(make_host(BYOK_KEYS_PER_PROVIDER=4), "ann")
    keys = [fake.api_key("openai", owner=number) for number in range(5)]
    slots = [None, None, "spare-1", None]
    made = [
        ann.keep(k, **({} if slot is None else {"slot": slot}))
        for k, slot in zip(keys, slots, strict=False)
    ]
    assert [record["slot"] for record in made] == ["", "2", "spare-1", "3"]
    assert problem_of(ann.ask("POST", OWN, {"provider": "openai", "api_key": keys[4]}))[0] == 409
    ann.ask("DELETE", f"{OWN}/{made[1]['id']}")
    assert ann.keep(keys[4])["slot"] == "2"
    assert ann.get("/used/openai").get_json()["fingerprint"] == fingerprint(keys[0])
    ann.ask("PATCH", f"{OWN}/{made[0]['id']}", {"active": False})
    assert ann.get("/used/openai").get_json()["fingerprint"] == fingerprint(keys[4])
    for slot in ("with space", "x" * 41, "a/b", "ü"):
        body = {"provider": "openai", "api_key": keys[0], "slot": slot}
        assert problem_of(ann.ask("POST", OWN, body)) == (422, "invalid_field")


#: Fields that no key may have, with the code of the answer.
REFUSED_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"owner": "user:b"}, "invalid_field"),
    ({"id": UNKNOWN}, "invalid_field"),
    ({"version": 7}, "invalid_field"),
    ({"active": None}, "invalid_field"),
    ({"label": "a\nb"}, "invalid_field"),
    ({"label": "k-12345678", "api_key": "k-12345678"}, "invalid_field"),
    ({"description": "x" * 501}, "invalid_field"),
    ({"expires_at": "2001-01-01T00:00:00Z"}, "invalid_field"),
    ({"api_key": "k-12345678", "fields": {}}, "invalid_field"),
    ({"fields": {"other": "k-12345678"}}, "invalid_field"),
    ({"api_key": "short"}, "malformed_api_key"),
]


def test_bodies_that_are_refused(ann: Keeper, fake: FakeProviders) -> None:
    """An invalid body is refused with its own code, nothing of it is repeated, and no key is made or changed."""
    typed = {"provider": "groq", "api_key": "k-12345678"}
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    address = {"base_url": "https://elsewhere.example/v1"}
    cases = [
        *(("POST", OWN, typed | fields, (422, code)) for fields, code in REFUSED_FIELDS),
        ("POST", OWN, {"provider": "groq"}, (422, "malformed_api_key")),
        ("POST", OWN, typed | {"provider": "nobody"}, (404, "unknown_provider")),
        ("POST", OWN, typed | address, (422, "endpoint_not_allowed")),
        *(("PATCH", path, fields, (422, code)) for fields, code in REFUSED_FIELDS),
        ("PATCH", path, {"provider": "groq"}, (422, "invalid_field")),
        ("PATCH", path, address, (422, "malformed_api_key")),
    ]
    for method, url, body, refusal in cases:
        answer = ann.ask(method, url, body)
        assert problem_of(answer) == refusal, (method, body)
        assert "12345678" not in answer.text, (method, body)
    assert [record["version"] for record in ann.records()] == [1]


# list


def test_pages(make_host: MakeHost, fake: FakeProviders) -> None:
    """A list comes in pages, oldest first, each key once, also while others come and go."""
    ann = keeper(make_host(BYOK_KEYS_PER_PROVIDER=9), "ann")
    made = [ann.keep(fake.api_key("openai", owner=n))["id"] for n in range(5)]
    made.append(ann.keep(fake.api_key("groq"), "groq")["id"])
    first = ann.get(f"{OWN}?limit=2").get_json()
    assert [record["id"] for record in first["keys"]] == made[:2]
    ann.ask("DELETE", f"{OWN}/{made[1]}")
    second = ann.get(f"{OWN}?limit=3&cursor={first['next']}").get_json()
    last = ann.get(f"{OWN}?limit=3&cursor={second['next']}").get_json()
    ids = [record["id"] for page in (first, second, last) for record in page["keys"]]
    assert (ids, last["next"]) == (made, None)
    only = ann.get(f"{OWN}?provider=groq").get_json()["keys"]
    assert [record["provider"] for record in only] == ["groq"]


def test_queries_that_are_refused(ann: Keeper) -> None:
    """A malformed cursor, a limit out of bounds and an unknown provider are refused."""
    for query in ("limit=0", "limit=101", "limit=x", "limit=", "cursor=x", "cursor=%00"):
        assert problem_of(ann.get(f"{OWN}?{query}")) == (422, "invalid_field"), query
    assert problem_of(ann.get(f"{OWN}?cursor={'G' * 32}")) == (422, "invalid_field")
    for provider in ("nobody", "", "%00", "a'b"):
        answer = ann.get(f"{OWN}?provider={provider}")
        assert problem_of(answer) == (404, "unknown_provider"), provider


def test_one_bad_row_never_breaks_the_list(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """A key that does not open is shown as unreadable, can be replaced, and leaves the others alone."""
    bad, good = ann.keep(fake.api_key("openai")), ann.keep(fake.api_key("groq"), "groq")
    with accounts_of(host).engine.begin() as connection:
        swap = "UPDATE byok_credentials SET ciphertext = :sealed WHERE id = :id"
        connection.execute(text(swap), {"sealed": "byok1.x.fernet.y", "id": bad["id"]})
    states = {record["id"]: record["state"] for record in ann.records()}
    assert states == {bad["id"]: "unreadable", good["id"]: "active"}
    path = f"{OWN}/{bad['id']}"
    assert problem_of(ann.ask("POST", f"{path}/validate")) == (409, "key_unreadable")
    assert ann.ask("PATCH", path, {"label": "still there"}).get_json()["state"] == "unreadable"
    replaced = ann.ask("PATCH", path, {"api_key": fake.api_key("openai")})
    assert replaced.get_json()["state"] == "active"


def test_an_impossible_time_never_breaks_the_list(
    host: HostApp, ann: Keeper, fake: FakeProviders
) -> None:
    """A key with an impossible time is unreadable and never serves; others do, and it can be deleted."""
    good = ann.keep(fake.api_key("groq"), "groq")
    checked = {"verdict": "'valid'", "verdict_at": "0", "verdict_version": "version"}
    for column in ("created_at", "expires_at", "last_used_at", "verdict_at"):
        bad = ann.keep(fake.api_key("openai"))
        with accounts_of(host).engine.begin() as connection:
            forged = {**checked, column: str(2**62)}
            values = ", ".join(f"{name} = {value}" for name, value in forged.items())
            forge = f"UPDATE byok_credentials SET {values} WHERE id = '{bad['id']}'"
            connection.execute(text(forge))
        states = {record["id"]: record["state"] for record in ann.records()}
        assert states == {bad["id"]: "unreadable", good["id"]: "active"}, column
        rows = [ann.status(provider)["state"] for provider in ("openai", "groq")]
        assert rows == ["unreadable", "active"], column
        assert ann.get("/used/groq").get_json()["source"] == "user", column
        path = f"{OWN}/{bad['id']}"
        assert problem_of(ann.ask("POST", f"{path}/validate")) == (409, "key_unreadable"), column
        assert ann.ask("DELETE", path).status_code == 204, column


@pytest.mark.parametrize(
    ("setting", "refusal"),
    [
        ({"BYOK_LOCKED_PROVIDERS": ["openai"]}, (403, "provider_locked")),
        ({"BYOK_PROVIDERS": ["groq"]}, (404, "unknown_provider")),
    ],
)
def test_a_provider_that_takes_no_keys_any_more(
    make_host: MakeHost, fake: FakeProviders, setting: dict[str, Any], refusal: tuple[int, str]
) -> None:
    """Keys of a provider that is locked or offered no more are listed, switched off and deleted, and not replaced."""
    there = keeper(make_host(), "ann").keep(fake.api_key("openai"))
    ann, path = keeper(make_host(**setting), "ann"), f"{OWN}/{there['id']}"
    change = {"api_key": fake.api_key("openai", owner=2)}
    assert [record["id"] for record in ann.records()] == [there["id"]]
    assert problem_of(ann.ask("POST", OWN, {"provider": "openai", **change})) == refusal
    assert problem_of(ann.ask("PATCH", path, change)) == refusal
    assert ann.ask("PATCH", path, {"active": False}).status_code == 200
    assert ann.ask("DELETE", path).status_code == 204


# who


def test_no_accounts(make_host: MakeHost) -> None:
    """Without account tiers there are no records."""
    ann = keeper(make_host(BYOK_PRECEDENCE=["session", "env"]), "ann")
    answer = ann.get(OWN)
    assert problem_of(answer) == (403, "not_allowed")
    assert answer.get_json()["detail"] == "No keys are kept in accounts here."


def test_unknown_ids(ann: Keeper) -> None:
    """An unknown id is 404, no matter what else is wrong with the request."""
    headers = {"X-CSRFToken": ann.token or "", "If-Match": "nonsense"}
    pasted = "sk-proj-PASTEDKEYPASTEDKEY01"
    for id in (UNKNOWN, "1", "stats2", "..%2Fx", "%00", pasted, "ü", "0" * 33):
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            for query in ("", "?include_value=true"):
                path = f"{OWN}/{id}{query}"
                answer = ann.open(path, method=method, data=b"{", headers=headers)
                assert answer.status_code == 404, (method, path)
                assert answer.get_json()["code"] in ("key_not_found", "not_found"), (method, path)
                assert "PASTEDKEY" not in answer.text, (method, path)


# the rest


def test_services(make_host: MakeHost) -> None:
    """The catalog is there for everybody, unless everybody has to sign in."""
    visitor = keeper(make_host(), None)
    services = visitor.get(f"{OWN}/services").get_json()["services"]
    openai = next(service for service in services if service["provider"] == "openai")
    assert openai["name"] == "OpenAI"
    assert openai["fields"][0]["name"] == "api_key"
    assert [s["provider"] for s in services] == [
        status["provider"] for status in visitor.load()["providers"]
    ]
    closed = make_host(BYOK_REQUIRE_LOGIN=True)
    assert problem_of(closed.test_client().get(f"{OWN}/services")) == (401, "owner_required")


def test_stats(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """The statistics count one's own keys and no others."""
    ann.keep(fake.api_key("openai"), active=False)
    ann.keep(fake.api_key("groq"), "groq")
    stats = ann.get(f"{OWN}/stats").get_json()
    assert (stats["total"], stats["active"], stats["expired"]) == (2, 1, 0)
    assert set(stats["by_provider"]) == {"openai", "groq"}
    assert keeper(host, "bob").get(f"{OWN}/stats").get_json()["total"] == 0


def test_stats_of_conversations(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """After streams the statistics have their calls and tokens, by provider and by day."""
    ann.keep(fake.api_key("openai"))
    ann.keep(fake.api_key("anthropic"), "anthropic")
    for provider, usage in (("openai", (9, 2)), ("openai", (1, 1)), ("anthropic", (500, 70))):
        fake.stream_next(provider, "Once", " upon", usage=usage)
        assert "event: done" in ann.get(f"/chat/{provider}").text
    get_state(host).service.traffic.flush()
    stats = ann.get(f"{OWN}/stats").get_json()
    names = ("uses", "input_tokens", "output_tokens")
    assert {
        provider: tuple(facts[name] for name in names)
        for provider, facts in stats["by_provider"].items()
    } == {"openai": (2, 10, 3), "anthropic": (1, 500, 70)}
    (day,) = stats["daily"]
    assert (day["used"], day["input_tokens"], day["output_tokens"]) == (3, 510, 73)


def test_signals(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """Signals report keys that are set, replaced and deleted, by safe facts that name no person."""
    heard: list[tuple[str, dict[str, Any]]] = []
    for signal in (signals.key_set, signals.key_cleared):

        def hear(_sender: Any, _name: str = signal.name, **facts: Any) -> None:
            heard.append((_name, facts))

        signal.connect(hear, host, weak=False)
    record = ann.keep(fake.api_key("openai"))
    path = f"{OWN}/{record['id']}"
    ann.ask("PATCH", path, {"label": "no key"})
    replaced = ann.ask("PATCH", path, {"api_key": fake.api_key("openai", owner=2)}).get_json()
    ann.ask("DELETE", path)
    facts = {"provider": "openai", "tier": "user"}
    assert heard == [
        ("key_set", {**facts, "hint": record["hint"]}),
        ("key_set", {**facts, "hint": replaced["hint"]}),
        ("key_cleared", facts),
    ]


def test_guards(ann: Keeper, fake: FakeProviders) -> None:
    """Another site's requests, forms and oversized bodies are turned away."""
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    other = ann.ask("DELETE", path, Sec_Fetch_Site="cross-site")
    assert problem_of(other) == (400, "csrf")
    token = {"X-CSRFToken": ann.token or ""}
    form = ann.post(OWN, data={"provider": "openai"}, headers=token)
    assert problem_of(form) == (415, "unsupported_media_type")
    form = ann.patch(path, data='{"label": "x"}', content_type="text/plain", headers=token)
    assert problem_of(form) == (415, "unsupported_media_type")
    big = ann.ask("PATCH", path, {"label": "x" * 70_000})
    assert problem_of(big) == (413, "too_large")
    assert ann.get(path).get_json()["version"] == 1


def test_answers_name_their_request(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """Each answer has the id under which the log knows its request; it is never one that a client sent."""
    names = ("X-BYOK-Request-ID", "X-Request-ID", "Request-Id")
    headers = {name.replace("-", "_"): "a-name-of-the-clients" for name in names}
    body = {"provider": "openai", "api_key": fake.api_key("openai"), "validate": "off"}
    answer = ann.ask("POST", OWN, body, **headers)
    (entry,) = accounts_of(host).audit.entries("user:ann")
    assert entry.request_id == answer.headers["X-BYOK-Request-ID"]
    assert "a-name-of-the-clients" not in f"{entry} {answer.headers}"
    assert accounts_of(host).audit.verify() == []
