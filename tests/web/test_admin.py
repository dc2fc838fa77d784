"""``/api/admin/keys``: keys of teams and of the system, on each database."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from flask_byok.testing import FakeProviders
from tests.app import HostApp, fingerprint, problem_of
from tests.keeper import SHARED, Keeper, accounts_of, keeper, logged

from .conftest import MakeHost


@pytest.fixture
def root(host: HostApp) -> Keeper:
    """Sign in as the admin."""
    host.byok.team_loader(lambda: ["red"])
    return keeper(host, "root")


def test_a_persons_key_in_a_shared_tier(host: HostApp, root: Keeper, fake: FakeProviders) -> None:
    """Admins neither see nor reach a person's key, even if its tier column is wrong."""
    mine = keeper(host, "ann").keep(fake.api_key("openai"))
    shared = root.ask("POST", SHARED, {"provider": "groq", "api_key": fake.api_key("groq")})
    for tier in ("team", "system"):
        with accounts_of(host).engine.begin() as connection:
            connection.execute(
                text("UPDATE byok_credentials SET tier = :tier WHERE id = :id"),
                {"tier": tier, "id": mine["id"]},
            )
        listed = root.get(SHARED).get_json()["keys"]
        assert [record["id"] for record in listed] == [shared.get_json()["id"]]
        path = f"{SHARED}/{mine['id']}"
        for method, body in (("GET", None), ("PATCH", {"label": "x"}), ("DELETE", None)):
            assert problem_of(root.ask(method, path, body)) == (404, "key_not_found")
        assert root.get(f"{SHARED}/stats").get_json()["total"] == 1


def test_a_system_key_serves_everybody(host: HostApp, root: Keeper, fake: FakeProviders) -> None:
    """An admin's key for the system is used by all, whose status says so without its hint."""
    api_key = fake.api_key("openai")
    made = root.ask("POST", SHARED, {"provider": "openai", "api_key": api_key, "label": "ours"})
    assert made.status_code == 201
    record = made.get_json()
    assert (record["owner"], record["label"]) == ("system", "ours")
    assert record["hint"] == f"sk-proj-…{api_key[-4:]}"
    assert made.headers["Location"] == f"{SHARED}/{record['id']}"
    assert root.get(made.headers["Location"]).headers["ETag"] == '"1"'
    for user in (None, "ann"):
        other = keeper(host, user)
        assert other.get("/used/openai").get_json() == {
            "source": "system",
            "fingerprint": fingerprint(api_key),
        }
        status = other.status()
        assert (status["tiers"], status["hint"], status["label"]) == (["system"], None, None)
    assert logged(host, "system") == [("user:root", "set", "done")]


def test_a_team_key_serves_its_members(host: HostApp, root: Keeper, fake: FakeProviders) -> None:
    """A team's key comes before the system's, for who is in the team."""
    ours, theirs = fake.api_key("openai", owner="red"), fake.api_key("openai", owner="blue")
    red = root.keep(ours, path=SHARED, owner="team:red")
    root.keep(theirs, path=SHARED, owner="team:blue")
    assert red["owner"] == "team:red"
    ann = keeper(host, "ann")
    assert ann.get("/used/openai").get_json() == {
        "source": "team",
        "fingerprint": fingerprint(ours),
    }
    host.byok.team_loader(lambda: [])
    assert ann.get("/used/openai").status_code == 409
    assert logged(host, "team:red") == [("user:root", "set", "done")]


def test_lists(root: Keeper, fake: FakeProviders) -> None:
    """An admin lists shared keys, of one owner or of one provider, and no personal keys."""
    root.keep(fake.api_key("openai", owner="mine"))
    made = [
        root.keep(fake.api_key(provider, owner=owner), provider, SHARED, owner=owner)
        for provider, owner in [
            ("openai", "system"),
            ("groq", "system"),
            ("openai", "team:red"),
            ("openai", "team:blue & co"),
        ]
    ]
    assert [record["id"] for record in root.records(SHARED)] == [one["id"] for one in made]

    def listed(**query: str) -> list[int]:
        page = root.get(SHARED, query_string=query).get_json()
        return [[one["id"] for one in made].index(record["id"]) for record in page["keys"]]

    assert listed(owner="system") == [0, 1]
    assert listed(owner="team:blue & co") == [3]
    assert listed(owner="team:nobody") == []
    assert listed(provider="openai") == [0, 2, 3]
    assert listed(owner="system", provider="groq") == [1]


def test_other_owners(root: Keeper, fake: FakeProviders) -> None:
    """Admins cannot give a key to a person or to a team that cannot be, nor list such; no id is repeated."""
    others = ("user:root", "user:ann", "session:x", "team", "team:", "", "System", "team:a\nb")
    for owner in others:
        answer = root.get(SHARED, query_string={"owner": owner})
        assert problem_of(answer) == (422, "invalid_field"), owner
    teams = ("team:sk-proj-PASTEDKEY0123456789", "team:a\u202eb", "team:a\x9bb")
    for owner in (*others, *teams):
        body = {"provider": "openai", "api_key": fake.api_key("openai"), "owner": owner}
        answer = root.ask("POST", SHARED, body)
        assert problem_of(answer) == (422, "invalid_field"), owner
        assert "PASTEDKEY" not in answer.text
    assert root.records() == root.records(SHARED) == []


def test_a_locked_provider(make_host: MakeHost, fake: FakeProviders) -> None:
    """A team's key that could never serve is neither stored nor replaced; the system's can be."""
    before = keeper(make_host(), "root").keep(fake.api_key("openai"), path=SHARED, owner="team:red")
    root = keeper(make_host(BYOK_LOCKED_PROVIDERS=["openai"]), "root")
    body = {"provider": "openai", "api_key": fake.api_key("openai", owner=2), "owner": "team:blue"}
    assert problem_of(root.ask("POST", SHARED, body)) == (403, "provider_locked")
    path, change = f"{SHARED}/{before['id']}", {"api_key": body["api_key"]}
    assert problem_of(root.ask("PATCH", path, change)) == (403, "provider_locked")
    assert root.ask("PATCH", path, {"active": False}).status_code == 200
    assert root.ask("DELETE", path).status_code == 204
    system = root.keep(fake.api_key("openai"), path=SHARED)
    assert root.ask("PATCH", f"{SHARED}/{system['id']}", change).status_code == 200


def test_changes(host: HostApp, root: Keeper, fake: FakeProviders) -> None:
    """An admin changes, checks and deletes shared keys; the log of their owner says who."""
    record = root.keep(fake.api_key("openai"), path=SHARED, owner="team:red")
    path = f"{SHARED}/{record['id']}"
    changed = root.ask("PATCH", path, {"label": "x"}, If_Match='"1"')
    assert (changed.status_code, changed.get_json()["label"]) == (200, "x")
    assert problem_of(root.ask("PATCH", path, {"label": "y"}, If_Match='"1"'))[0] == 412
    api_key = fake.api_key("openai", owner="new")
    assert root.ask("PUT", path, {"api_key": api_key}).status_code == 200
    assert keeper(host, "ann").get("/used/openai").get_json()["source"] == "team"
    assert root.ask("POST", f"{path}/validate").get_json()["verdict"] == "valid"
    assert root.ask("DELETE", path).status_code == 204
    assert [(actor, action) for actor, action, _ in logged(host, "team:red")] == [
        ("user:root", action) for action in ("set", "change", "set", "validate", "clear")
    ]
    assert logged(host, "user:root") == []


def test_a_refused_key_is_logged_where_it_was_to_go(
    host: HostApp, root: Keeper, fake: FakeProviders
) -> None:
    """That a team was to get a bad key is in that team's log."""
    body = {"provider": "openai", "api_key": fake.api_key("openai", "bad"), "owner": "team:red"}
    assert problem_of(root.ask("POST", SHARED, body)) == (422, "key_refused")
    assert logged(host, "team:red") == [("user:root", "set", "invalid")]


def test_no_value_ever(make_host: MakeHost, fake: FakeProviders) -> None:
    """A shared key is never shown, even if the operator allows reveals."""
    host = make_host(BYOK_ALLOW_REVEAL=True)
    root, api_key = keeper(host, "root"), fake.api_key("openai")
    path = f"{SHARED}/{root.keep(api_key, path=SHARED)['id']}"
    for method, url in (
        ("GET", SHARED),
        ("POST", SHARED),
        ("GET", f"{SHARED}/stats"),
        ("GET", path),
        ("PATCH", path),
        ("DELETE", path),
        ("POST", f"{path}/validate"),
    ):
        answer = root.ask(method, f"{url}?include_value=true", {})
        assert problem_of(answer) == (403, "reveal_disabled")
        assert api_key not in answer.text
    assert [action for _, action, _ in logged(host, "system")] == ["set"]


@pytest.mark.parametrize(
    ("precedence", "owner", "status"),
    [
        (["session", "user", "env"], "system", 403),
        (["session", "user", "system"], "system", 201),
        (["session", "user", "system"], "team:red", 403),
        (["team", "env"], "team:red", 201),
        (["team", "env"], "system", 403),
    ],
)
def test_tiers_that_are_not_there(
    make_host: MakeHost, fake: FakeProviders, precedence: list[str], owner: str, status: int
) -> None:
    """No key is stored where none would be used."""
    root = keeper(make_host(BYOK_PRECEDENCE=precedence), "root")
    body = {"provider": "openai", "api_key": fake.api_key("openai"), "owner": owner}
    answer = root.ask("POST", SHARED, body)
    assert answer.status_code == status
    assert status == 201 or problem_of(answer) == (403, "not_allowed")
