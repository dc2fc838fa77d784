"""Nobody is shown, and nobody uses, what is not theirs: every route for every role, and long random walks.

All of it on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import request
from flask_login import current_user
from werkzeug.test import TestResponse

from flask_byok.testing import FakeProviders
from tests.app import HostApp, fingerprint, make_app
from tests.keeper import OWN, SHARED, Keeper, close, keeper

UNKNOWN = "0" * 32
STATUS = "/api/providers/keys"


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def host(request: pytest.FixtureRequest, tmp_path: Path, fake: FakeProviders) -> Iterator[HostApp]:
    """Make a host on each kind of database."""
    url: str = request.getfixturevalue(request.param)
    options = {"BYOK_KEYS_PER_PROVIDER": 2, "BYOK_VALIDATE_ON_SET": "off"}
    app = make_app(tmp_path, fake, BYOK_DATABASE_URL=url, **options)
    yield app
    close(app)


# the matrix

ROLES: dict[str, str | None] = {
    "visitor": None,
    "user": "ann",
    "other": "bob",
    "member": "tim",
    "admin": "root",
}
IDS = ("own", "foreign", "team", "system", "unknown")
NEW = {"provider": "groq", "api_key": "gsk_matrix-12345678"}


#: Returns the status for a role and a kind of id.
Status = Callable[[str, str], int]


def own(good: int = 200) -> Status:
    """Return the statuses of a call on one of the caller's own keys; this one where it succeeds."""
    return lambda role, kind: 401 if role == "visitor" else good if kind == "own" else 404


def shared(good: int = 200) -> Status:
    """Return the statuses of a call on a shared key."""
    of_admin = {"team": good, "system": good}
    others = plain(401, 403, 404)
    return lambda role, kind: of_admin.get(kind, 404) if role == "admin" else others(role, kind)


def plain(visitor: int, user: int, admin: int) -> Status:
    """Return the statuses of a call without an id: for a visitor, for users, and for an admin."""
    return lambda role, kind: {"visitor": visitor, "admin": admin}.get(role, user)


EVERYBODY = plain(200, 200, 200)
#: Every route of ours: what is sent, and what comes back to whom.
MATRIX: dict[tuple[str, str], tuple[Status, Any]] = {
    ("GET", "/api/providers/keys"): (EVERYBODY, None),
    ("POST", "/api/providers/keys/set"): (EVERYBODY, NEW),
    ("POST", "/api/providers/keys/clear"): (EVERYBODY, {"provider": "groq"}),
    ("POST", "/api/providers/keys/validate"): (EVERYBODY, NEW),
    ("POST", "/api/providers/keys/promote"): (plain(401, 200, 200), {}),
    ("GET", "/api/providers/openapi.json"): (EVERYBODY, None),
    ("GET", "/api/providers/health"): (EVERYBODY, None),
    ("GET", "/api/providers/settings"): (EVERYBODY, None),
    ("POST", "/api/providers/settings/<action>"): (plain(303, 303, 303), None),
    ("GET", "/api/providers/static/<filename>"): (EVERYBODY, None),
    ("GET", "/api/keys"): (plain(401, 200, 200), None),
    ("POST", "/api/keys"): (plain(401, 201, 201), NEW),
    ("GET", "/api/keys/stats"): (plain(401, 200, 200), None),
    ("GET", "/api/keys/services"): (EVERYBODY, None),
    ("GET", "/api/keys/<id>"): (own(), None),
    ("PATCH", "/api/keys/<id>"): (own(), {"label": "mine"}),
    ("PUT", "/api/keys/<id>"): (own(), {"label": "mine"}),
    ("DELETE", "/api/keys/<id>"): (own(204), None),
    ("POST", "/api/keys/<id>/validate"): (own(), None),
    ("GET", "/api/admin/keys"): (plain(401, 403, 200), None),
    ("POST", "/api/admin/keys"): (plain(401, 403, 201), NEW),
    ("GET", "/api/admin/keys/stats"): (plain(401, 403, 200), None),
    ("GET", "/api/admin/keys/<id>"): (shared(), None),
    ("PATCH", "/api/admin/keys/<id>"): (shared(), {"label": "ours"}),
    ("PUT", "/api/admin/keys/<id>"): (shared(), {"label": "ours"}),
    ("DELETE", "/api/admin/keys/<id>"): (shared(204), None),
    ("POST", "/api/admin/keys/<id>/validate"): (shared(), None),
}


def test_matrix_is_complete(host: HostApp) -> None:
    """Every route that the app has is in the matrix, and no other."""
    ours = (rule for rule in host.url_map.iter_rules() if rule.endpoint.startswith("byok."))
    assert set(MATRIX) == {
        (method, re.sub("<[^>]*:", "<", rule.rule))
        for rule in ours
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


@pytest.mark.parametrize(("method", "rule"), MATRIX)
def test_every_route_for_every_role(
    host: HostApp, fake: FakeProviders, method: str, rule: str
) -> None:
    """Each role gets just what it may from each route, by whatever id, and is shown no key."""
    people = _people(host)
    expected, body = MATRIX[method, rule]
    keys = _stock(people, fake)
    for role, person in people.items():
        for kind in IDS if "<id>" in rule else ("",):
            path = rule.replace("<id>", keys.get((role, kind), UNKNOWN))
            path = path.replace("<action>", "clear").replace("<filename>", "byok.js")
            answer = person.ask(method, path, body)
            assert answer.status_code == expected(role, kind), (role, kind, answer.text)
            _assert_shows_only(answer, _visible(role, path, fake))
            answer.close()
            if answer.status_code in (201, 204):
                keys = _stock(people, fake)


def _people(host: HostApp) -> dict[str, Keeper]:
    host.byok.team_loader(lambda: ["red"] if current_user.get_id() == "tim" else [])
    host.byok.admin_loader(lambda: current_user.get_id() == "root")
    return {role: keeper(host, user) for role, user in ROLES.items()}


def _stock(people: dict[str, Keeper], fake: FakeProviders) -> dict[tuple[str, str], str]:
    """Give everybody one key, the team and the system as well, and return their ids as each role sees them."""
    admin, ids = people["admin"], {}
    for record in admin.records(SHARED):
        admin.ask("DELETE", f"{SHARED}/{record['id']}")
    for role, person in people.items():
        if role != "visitor":
            for record in person.records():
                person.ask("DELETE", f"{OWN}/{record['id']}")
            ids[role] = person.keep(_key(fake, role))["id"]
    shared = {
        kind: admin.keep(_key(fake, kind), path=SHARED, owner=owner)["id"]
        for kind, owner in (("team", "team:red"), ("system", "system"))
    }
    foreign = {role: ids["other" if role != "other" else "user"] for role in people}
    return {
        **{(role, "own"): id for role, id in ids.items()},
        **{(role, "foreign"): id for role, id in foreign.items()},
        **{(role, kind): id for role in people for kind, id in shared.items()},
    }


def _key(fake: FakeProviders, whose: str) -> str:
    return fake.api_key("openai", owner=f"matrix {whose}")


def _visible(role: str, path: str, fake: FakeProviders) -> set[str]:
    """Return the ends of keys that a role may be shown the hints of."""
    shared = ("team", "system") if role == "admin" and path.startswith(SHARED) else ()
    return {_key(fake, whose)[-4:] for whose in (role, *shared)} | {NEW["api_key"][-4:]}


def _assert_shows_only(answer: TestResponse, tails: set[str]) -> None:
    """No whole key stands in an answer, and no hint but of these."""
    if answer.mimetype == "text/javascript" or answer.request.path.endswith("/openapi.json"):
        return
    assert not re.search(r"(sk-proj-|gsk_)[\w-]{8,}", answer.text), answer.text
    shown = set(re.findall(r"…([A-Za-z0-9]{4})\b", answer.text))
    assert shown <= tails, f"{answer.request.path} shows {shown - tails}"


# the walk

PROVIDERS = ("openai", "groq")
USERS = [f"u{number:02}" for number in range(50)]
TEAMS = [f"t{number}" for number in range(5)]


@dataclass
class Key:
    """What the model knows of a stored key."""

    owner: str
    provider: str
    slot: str
    api_key: str
    active: bool = True


@dataclass
class Model:
    """Who has what, and so who may see and use what."""

    teams: dict[str, list[str]] = field(default_factory=dict)
    admins: set[str] = field(default_factory=set)
    #: By id.
    stored: dict[str, Key] = field(default_factory=dict)
    #: By user and provider.
    session: dict[tuple[str, str], str] = field(default_factory=dict)
    #: What was saved in the session before its user signed in, and not kept since.
    waiting: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, owner: str, provider: str | None = None) -> dict[str, Key]:
        """Return an owner's keys by id."""
        its = {id: key for id, key in self.stored.items() if key.owner == owner}
        return {id: key for id, key in its.items() if provider in (None, key.provider)}

    def shared(self) -> dict[str, Key]:
        """Return all shared keys."""
        return {id: key for id, key in self.stored.items() if not key.owner.startswith("user:")}

    def present(self, user: str, provider: str) -> list[tuple[str, str | None]]:
        """Return the tiers that have a key for somebody, in order, with the key if it is usable."""
        mine = self.session.get((user, provider))
        found: list[tuple[str, str | None]] = [] if mine is None else [("session", mine)]
        teams = [f"team:{team}" for team in self.teams.get(user, [])]
        for owner in (f"user:{user}", *teams, "system"):
            keys = sorted(self.of(owner, provider).values(), key=lambda key: key.slot)
            tier = owner.partition(":")[0]
            found += [(tier, key.api_key if key.active else None) for key in keys]
        return found

    def visible(self, user: str) -> set[str]:
        """Return the ends of all keys that somebody may be shown the hints of."""
        own = [key.api_key for key in self.of(f"user:{user}").values()]
        held = [*self.session.items(), *self.waiting.items()]
        own += [api_key for (whose, _), api_key in held if whose == user]
        return {api_key[-4:] for api_key in own}


class Walk:
    """Does random things as random people, and looks at everything after each."""

    def __init__(self, host: HostApp, fake: FakeProviders, seed: int) -> None:
        self.fake = fake
        self.random = random.Random(seed)
        self.model = Model(admins=set(USERS[:3]))
        self.numbers = count()
        self.endpoints: set[str] = set()
        self.host = host
        host.byok.team_loader(lambda: self.model.teams.get(current_user.get_id(), []))
        host.byok.admin_loader(lambda: current_user.get_id() in self.model.admins)
        host.before_request(lambda: self.endpoints.add(request.endpoint or ""))
        self.clients = {user: keeper(host, user) for user in USERS}
        self.visitor = keeper(host, None)

    def run(self, rounds: int) -> None:
        """Do everything that can be done so many times, in random order."""
        steps: list[Callable[[str], None]] = [
            *(self.save, self.keep, self.clear, self.create, self.change, self.delete),
            *[partial(self.create, path=SHARED)] * 2,
            *(partial(self.change, path=SHARED), partial(self.delete, path=SHARED)),
            *(self.trespass, self.trespass, self.join, self.leave, self.appoint),
            *(self.sign_in_again, self.come_with_a_key, self.promote, self.validate),
            self.look_as_visitor,
        ]
        for _ in range(rounds):
            for step in self.random.sample(steps, len(steps)):
                # Few enough people that they have something to do with each other.
                user = self.random.choice(USERS[: self.random.choice((5, 50))])
                step(user)
                for somebody in {user, self.random.choice(USERS)}:
                    self.look(somebody)

    # what people do

    def save(self, user: str) -> None:
        """Keep a key for the session."""
        provider, api_key = self._new()
        self._ask(user, "POST", f"{STATUS}/set", {"provider": provider, "api_key": api_key})
        self.model.session[user, provider] = api_key

    def keep(self, user: str) -> None:
        """Keep a key in the account by the settings' own call."""
        provider, api_key = self._new()
        body = {"provider": provider, "api_key": api_key, "persist": True}
        self._ask(user, "POST", f"{STATUS}/set", body)
        self.model.session.pop((user, provider), None)
        self._into_account(user, provider, api_key)

    def promote(self, user: str) -> None:
        """Keep the session's key for a provider in the account."""
        self._promote(user, self.random.choice(PROVIDERS), self.random.choice(["keep", "replace"]))

    def come_with_a_key(self, user: str) -> None:
        """Save a key before signing in, which waits, and then keep it, or not."""
        self._sign_out(user)
        provider, api_key = self._new()
        answer = self.clients[user].save(api_key, provider)
        assert answer.status_code == 200
        self.clients[user].post(f"/sign-in/{user}")
        self.clients[user].load()
        self.model.waiting[user, provider] = api_key
        self.look(user)
        decided = self.random.choice(["keep", "replace", "clear", "leave"])
        if decided in ("keep", "replace"):
            self._promote(user, provider, decided)
        elif decided == "clear":
            self._ask(user, "POST", f"{STATUS}/clear", {"provider": provider, "tier": "session"})
            self.model.session.pop((user, provider), None)
            self.model.waiting.pop((user, provider))

    def _promote(self, user: str, provider: str, on_conflict: str) -> None:
        body = {"providers": [provider], "on_conflict": on_conflict}
        done = self._ask(user, "POST", f"{STATUS}/promote", body).get_json()
        place, places = (user, provider), [self.model.session, self.model.waiting]
        taken = any(not key.slot for key in self.model.of(f"user:{user}", provider).values())
        if on_conflict == "replace":
            places.reverse()
        sources = [held for held in places if place in held]
        if not sources or (taken and on_conflict == "keep"):
            assert done["promoted"] == []
            return
        assert done["promoted"] == [provider]
        self._into_account(user, provider, sources[0][place])
        for held in sources if on_conflict == "replace" else sources[:1]:
            del held[place]

    def _into_account(self, user: str, provider: str, api_key: str) -> None:
        kept = Key(f"user:{user}", provider, "", api_key)
        for id, key in self.model.of(f"user:{user}", provider).items():
            if key.slot == "":
                self.model.stored[id] = kept
                return
        listed = {record["id"] for record in self.clients[user].records()}
        (id,) = listed - set(self.model.stored)
        self.model.stored[id] = kept

    def clear(self, user: str) -> None:
        """Clear the own keys for a provider."""
        provider, tier = self.random.choice(PROVIDERS), self.random.choice(["session", "all"])
        self._ask(user, "POST", f"{STATUS}/clear", {"provider": provider, "tier": tier})
        self.model.session.pop((user, provider), None)
        self.model.waiting.pop((user, provider), None)
        for id in self.model.of(f"user:{user}", provider) if tier == "all" else ():
            del self.model.stored[id]

    def create(self, user: str, path: str = OWN) -> None:
        """Create a record, if there is room, or a shared one, if one may."""
        owner = f"user:{user}"
        if path == SHARED:
            user = self._perhaps_admin(user)
            owner = self.random.choice(["system", *(f"team:{team}" for team in TEAMS)])
        provider, api_key = self._new()
        taken = {key.slot for key in self.model.of(owner, provider).values()}
        expected = 409 if len(taken) == 2 else 201
        if path == SHARED and user not in self.model.admins:
            expected = 403
        body = {"provider": provider, "api_key": api_key}
        if path == SHARED:
            body["owner"] = owner
        answer = self._ask(user, "POST", path, body, expected)
        if expected == 201:
            slot = "2" if "" in taken else ""
            self.model.stored[answer.get_json()["id"]] = Key(owner, provider, slot, api_key)

    def change(self, user: str, path: str = OWN) -> None:
        """Change one of the own records, or a shared one, if one may."""
        user, keys = self._choose(user, path)
        if not keys:
            return
        id, key = self.random.choice(list(keys.items()))
        _, api_key = self._new(key.provider)
        body: dict[str, Any] = self.random.choice(
            [{"active": not key.active}, {"active": True}, {"api_key": api_key}, {"label": "x"}]
        )
        allowed = path == OWN or user in self.model.admins
        shown = {api_key[-4:], key.api_key[-4:]} if allowed else set()
        expected = 200 if allowed else 403
        self._ask(user, "PATCH", f"{path}/{id}", body, expected, shown)
        if allowed:
            key.active = body.get("active", key.active)
            key.api_key = body.get("api_key", key.api_key)

    def delete(self, user: str, path: str = OWN) -> None:
        """Delete one of the own records, or a shared one, if one may."""
        user, keys = self._choose(user, path)
        if not keys:
            return
        id = self.random.choice(list(keys))
        allowed = path == OWN or user in self.model.admins
        self._ask(user, "DELETE", f"{path}/{id}", None, 204 if allowed else 403)
        if allowed:
            del self.model.stored[id]

    def validate(self, user: str) -> None:
        """Check the key in use, and one of the own records."""
        used = self._used(user, provider := self.random.choice(PROVIDERS))
        body = {"provider": provider, "api_key": used[1]} if used else {"provider": provider}
        self._ask(user, "POST", f"{STATUS}/validate", body, 200 if used else 409)
        for id in list(self.model.of(f"user:{user}"))[:1]:
            self._ask(user, "POST", f"{OWN}/{id}/validate")

    def trespass(self, user: str) -> None:
        """Try whatever there is on a key that is not one's own."""
        foreign = [id for id, key in self.model.stored.items() if key.owner != f"user:{user}"]
        if not foreign:
            return
        id = self.random.choice(foreign)
        personal = self.model.stored[id].owner.startswith("user:")
        body = {"label": "taken", "active": False}
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            sent = None if method == "DELETE" else body
            self._ask(user, method, f"{OWN}/{id}", sent, 404)
            if personal or user not in self.model.admins:
                expected = 404 if user in self.model.admins else 403
                self._ask(user, method, f"{SHARED}/{id}", sent, expected)
        self._ask(user, "POST", f"{OWN}/{id}/validate", None, 404)
        if user not in self.model.admins:
            self._ask(user, "POST", f"{SHARED}/{id}/validate", None, 403)

    def join(self, user: str) -> None:
        """Join a team, as the first or the last of one's teams."""
        teams = self.model.teams.setdefault(user, [])
        team = self.random.choice(TEAMS)
        if team not in teams:
            teams.insert(self.random.choice([0, len(teams)]), team)

    def leave(self, user: str) -> None:
        """Leave a team."""
        if teams := self.model.teams.get(user):
            teams.remove(self.random.choice(teams))

    def appoint(self, user: str) -> None:
        """Become an admin, or none any more."""
        if user in USERS[2:]:
            self.model.admins ^= {user}

    def sign_in_again(self, user: str) -> None:
        """Sign out, which ends the session's keys, and in again."""
        self._sign_out(user)
        self.clients[user].post(f"/sign-in/{user}")
        self.clients[user].load()

    def _sign_out(self, user: str) -> None:
        self.clients[user].post("/sign-out")
        for provider in PROVIDERS:
            self.model.session.pop((user, provider), None)
            self.model.waiting.pop((user, provider), None)

    # what people see

    def look(self, user: str) -> None:
        """Compare all that somebody sees and uses with the model."""
        own = self.model.of(f"user:{user}")
        for status in self._ask(user, "GET", STATUS).get_json()["providers"]:
            if status["provider"] in PROVIDERS:
                self._compare(user, status)
        page = self._ask(user, "GET", OWN).get_json()["keys"]
        owners = {record["id"]: record["owner"] for record in page}
        assert owners == dict.fromkeys(own, f"user:{user}")
        stats = self._ask(user, "GET", f"{OWN}/stats").get_json()
        assert stats["total"] == len(own)
        self._ask(user, "GET", "/api/providers/settings")
        for id in self.random.sample(list(own), min(1, len(own))):
            self._ask(user, "GET", f"{OWN}/{id}")
        self._look_at_shared(user)

    def _compare(self, user: str, status: dict[str, Any]) -> None:
        provider = status["provider"]
        present, used = self.model.present(user, provider), self._used(user, provider)
        assert status["tiers"] == list(dict.fromkeys(tier for tier, _ in present))
        assert status["source"] == (used[0] if used else None)
        answer = self._ask(user, "GET", f"/used/{provider}", None, 200 if used else 409)
        if used:
            print_of_key = {"source": used[0], "fingerprint": fingerprint(used[1])}
            assert answer.get_json() == print_of_key

    def _used(self, user: str, provider: str) -> tuple[str, str] | None:
        present = self.model.present(user, provider)
        return next(((tier, api_key) for tier, api_key in present if api_key is not None), None)

    def _look_at_shared(self, user: str) -> None:
        shared = self.model.shared()
        tails = {key.api_key[-4:] for key in shared.values()}
        if user not in self.model.admins:
            self._ask(user, "GET", SHARED, None, 403)
            self._ask(user, "GET", f"{SHARED}/stats", None, 403)
            return
        page = self._ask(user, "GET", f"{SHARED}?limit=100", None, 200, tails).get_json()["keys"]
        assert {record["id"] for record in page} == set(shared)
        stats = self._ask(user, "GET", f"{SHARED}/stats").get_json()
        assert stats["total"] == len(shared)
        for id in self.random.sample(list(shared), min(1, len(shared))):
            self._ask(user, "GET", f"{SHARED}/{id}", None, 200, tails)
            self._ask(user, "POST", f"{SHARED}/{UNKNOWN}/validate", None, 404)

    def look_as_visitor(self, user: str) -> None:
        """Compare what a visitor sees and uses: the system's keys alone."""
        for provider in PROVIDERS:
            used = self._used("", provider)
            answer = self.visitor.get(f"/used/{provider}")
            assert answer.status_code == (200 if used else 409)
            if used:
                assert answer.get_json()["fingerprint"] == fingerprint(used[1])
        for path in (STATUS, "/api/providers/settings", f"{OWN}/services"):
            _assert_shows_only(self.visitor.get(path), set())
        for path in (OWN, f"{OWN}/stats", SHARED, f"{SHARED}/{UNKNOWN}", f"{OWN}/{UNKNOWN}"):
            assert self.visitor.get(path).status_code == 401

    # steps

    def _new(self, provider: str = "") -> tuple[str, str]:
        provider = provider or self.random.choice(PROVIDERS)
        prefix = {"openai": "sk-proj-", "groq": "gsk_"}[provider]
        api_key = f"{prefix}walkedby{next(self.numbers):04}"
        self.fake.add_key(provider, api_key)
        return provider, api_key

    def _choose(self, user: str, path: str) -> tuple[str, dict[str, Key]]:
        """Return who does something to records, and to which it could be."""
        if path == OWN:
            return user, self.model.of(f"user:{user}")
        return self._perhaps_admin(user), self.model.shared()

    def _perhaps_admin(self, user: str) -> str:
        return self.random.choice([user, *sorted(self.model.admins)])

    def _ask(
        self,
        user: str,
        method: str,
        path: str,
        body: Any = None,
        expected: int = 200,
        tails: set[str] | None = None,
    ) -> TestResponse:
        """Ask as somebody, and check that the answer shows nothing but what may be shown."""
        visible = self.model.visible(user) | (tails or set())
        if isinstance(body, dict) and "api_key" in body:
            visible.add(body["api_key"][-4:])
        answer = self.clients[user].ask(method, path, body)
        assert answer.status_code == expected, (user, method, path, answer.text)
        _assert_shows_only(answer, visible)
        return answer


def _walk(host: HostApp, fake: FakeProviders, seed: int, rounds: int) -> None:
    walk = Walk(host, fake, seed)
    walk.run(rounds)
    assert walk.model.shared()
    assert len(walk.model.stored) > 10
    ours = {rule.endpoint for rule in host.url_map.iter_rules() if "byok." in rule.endpoint}
    unvisited = {"byok.static", "byok.settings_action", "byok.openapi", "byok.health"}
    assert ours - walk.endpoints <= unvisited


def test_walk(host: HostApp, fake: FakeProviders) -> None:
    """Whatever 50 people in 5 teams do, everybody sees and uses what is theirs, and no more."""
    _walk(host, fake, seed=1, rounds=5)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(2, 5))
def test_long_walk(host: HostApp, fake: FakeProviders, seed: int) -> None:
    """The same over thousands of steps."""
    _walk(host, fake, seed, rounds=60)
