"""``/api/keys``: a user's own keys, one by one, on each database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cachelib import FileSystemCache
from flask import Flask, Response, session
from flask_session import Session
from sqlalchemy import text

from flask_byok import BYOK, Field, ProviderSpec, signals
from flask_byok.keys.ports import AuditEvent
from flask_byok.model.credential import isoformat
from flask_byok.storage.rates import RateLimiter
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import HostApp, fingerprint
from tests.keeper import OWN, Keeper, accounts_of, keeper, logged

from .conftest import MakeHost

UNKNOWN = "0" * 32
RECORD = {
    *("id", "provider", "slot", "label", "description", "hint", "owner", "active", "state"),
    *("expires_at", "expires_soon", "created_at", "updated_at", "last_used_at", "usage_count"),
    *("validity", "version"),
}


@pytest.fixture
def ann(host: HostApp) -> Keeper:
    """Sign in as ann."""
    return keeper(host, "ann")


@pytest.fixture
def heard(host: HostApp) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Listen to the signals."""
    events: list[tuple[str, dict[str, Any]]] = []

    def on_set(sender: Flask, **facts: Any) -> None:
        events.append(("key_set", facts))

    def on_cleared(sender: Flask, **facts: Any) -> None:
        events.append(("key_cleared", facts))

    with signals.key_set.connected_to(on_set), signals.key_cleared.connected_to(on_cleared):
        yield events


def _code(answer: Any) -> tuple[int, str]:
    assert answer.mimetype == "application/problem+json"
    return answer.status_code, answer.get_json()["code"]


# create and show


def test_a_new_key_is_shown_and_used(ann: Keeper, fake: FakeProviders) -> None:
    """A key is created at an address of its own, shown by its hint alone, and serves at once."""
    api_key = fake.api_key("openai")
    body = {"provider": "openai", "api_key": api_key, "label": "work", "description": "mine"}
    made = ann.ask("POST", OWN, body)
    assert made.status_code == 201
    record = made.get_json()
    assert record.pop("validation")["verdict"] == "valid"
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


def test_a_refused_key_is_not_stored(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """A key that its provider rejects is not stored, and the log records the attempt."""
    answer = ann.ask("POST", OWN, {"provider": "openai", "api_key": fake.api_key("openai", "bad")})
    assert _code(answer) == (422, "key_refused")
    assert answer.get_json()["validation"]["verdict"] == "invalid"
    assert ann.records() == []
    assert logged(host, "user:ann") == [("user:ann", "set", "invalid")]


def test_a_second_key_needs_room(ann: Keeper, fake: FakeProviders) -> None:
    """An owner has one key for a provider, unless the operator allows more; no provider is asked first."""
    ann.keep(fake.api_key("openai"))
    fake.clear_calls()
    body = {"provider": "openai", "api_key": fake.api_key("openai", owner=2)}
    for slot in ({}, {"slot": ""}, {"slot": "other"}):
        assert _code(ann.ask("POST", OWN, {**body, **slot})) == (409, "key_exists")
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
    assert _code(ann.ask("POST", OWN, {"provider": "openai", "api_key": keys[4]}))[0] == 409
    ann.ask("DELETE", f"{OWN}/{made[1]['id']}")
    assert ann.keep(keys[4])["slot"] == "2"
    assert ann.get("/used/openai").get_json()["fingerprint"] == fingerprint(keys[0])
    ann.ask("PATCH", f"{OWN}/{made[0]['id']}", {"active": False})
    assert ann.get("/used/openai").get_json()["fingerprint"] == fingerprint(keys[4])
    for slot in ("with space", "x" * 41, "a/b", "ü"):
        body = {"provider": "openai", "api_key": keys[0], "slot": slot}
        assert _code(ann.ask("POST", OWN, body)) == (422, "invalid_field")


def test_a_locked_provider(make_host: MakeHost, fake: FakeProviders) -> None:
    """A locked provider takes no new or changed key; a stored one can be deleted."""
    ann = keeper(make_host(), "ann")
    there = ann.keep(fake.api_key("openai"))
    ann = keeper(make_host(BYOK_LOCKED_PROVIDERS=["openai"]), "ann")
    body = {"provider": "openai", "api_key": fake.api_key("openai")}
    assert _code(ann.ask("POST", OWN, body)) == (403, "provider_locked")
    change = {"api_key": fake.api_key("openai", owner=2)}
    path = f"{OWN}/{there['id']}"
    assert _code(ann.ask("PATCH", path, change)) == (403, "provider_locked")
    assert ann.ask("DELETE", path).status_code == 204


def test_bodies_that_are_refused(ann: Keeper) -> None:
    """An invalid body is refused with its own code, and nothing of it is repeated."""
    typed = {"provider": "openai", "api_key": "k-12345678"}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"provider": "openai"}, 422, "malformed_api_key"),
        (typed | {"provider": "nobody"}, 404, "unknown_provider"),
        (typed | {"api_key": "short"}, 422, "malformed_api_key"),
        (typed | {"owner": "user:b"}, 422, "invalid_field"),
        (typed | {"id": UNKNOWN}, 422, "invalid_field"),
        (typed | {"active": None}, 422, "invalid_field"),
        (typed | {"label": "k-12345678"}, 422, "invalid_field"),
        (typed | {"description": "x" * 501}, 422, "invalid_field"),
        (typed | {"expires_at": "2001-01-01T00:00:00Z"}, 422, "invalid_field"),
        (typed | {"base_url": "https://x.example/v1"}, 422, "endpoint_not_allowed"),
    ]
    for body, status, code in cases:
        answer = ann.ask("POST", OWN, body)
        assert _code(answer) == (status, code), body
        assert "12345678" not in answer.text, body
    assert ann.records() == []


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
        assert _code(ann.get(f"{OWN}?{query}")) == (422, "invalid_field"), query
    assert _code(ann.get(f"{OWN}?cursor={'G' * 32}")) == (422, "invalid_field")
    for provider in ("nobody", "", "%00", "a'b"):
        answer = ann.get(f"{OWN}?provider={provider}")
        assert _code(answer) == (404, "unknown_provider"), provider


def test_one_bad_row_never_breaks_the_list(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """A key that does not open is shown as unreadable, can be replaced, and leaves the others alone."""
    bad, good = ann.keep(fake.api_key("openai")), ann.keep(fake.api_key("groq"), "groq")
    with accounts_of(host).engine.begin() as connection:
        swap = "UPDATE byok_credentials SET ciphertext = :sealed WHERE id = :id"
        connection.execute(text(swap), {"sealed": "byok1.x.fernet.y", "id": bad["id"]})
    states = {record["id"]: record["state"] for record in ann.records()}
    assert states == {bad["id"]: "unreadable", good["id"]: "active"}
    path = f"{OWN}/{bad['id']}"
    assert _code(ann.ask("POST", f"{path}/validate")) == (409, "key_unreadable")
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
        status = ann.get("/api/providers/keys").get_json()["providers"]
        rows = {row["provider"]: row["state"] for row in status}
        assert (rows["openai"], rows["groq"]) == ("unreadable", "active"), column
        assert ann.get("/used/groq").get_json()["source"] == "user", column
        path = f"{OWN}/{bad['id']}"
        assert _code(ann.ask("POST", f"{path}/validate")) == (409, "key_unreadable"), column
        assert ann.ask("DELETE", path).status_code == 204, column


def test_a_provider_that_was_switched_off(make_host: MakeHost, fake: FakeProviders) -> None:
    """Keys of a provider that is offered no more are listed still, and can be deleted."""
    there = keeper(make_host(), "ann").keep(fake.api_key("openai"))
    ann = keeper(make_host(BYOK_PROVIDERS=["groq"]), "ann")
    assert [record["id"] for record in ann.records()] == [there["id"]]
    path = f"{OWN}/{there['id']}"
    change = {"api_key": fake.api_key("openai")}
    assert _code(ann.ask("PATCH", path, change)) == (404, "unknown_provider")
    assert ann.ask("PATCH", path, {"active": False}).status_code == 200
    assert ann.ask("DELETE", path).status_code == 204


# who


def test_signed_out(host: HostApp) -> None:
    """A visitor has no keys in the database, and gets 401."""
    visitor = keeper(host, None)
    answers = [visitor.ask(method, OWN, {}) for method in ("GET", "POST")]
    answers += [visitor.ask(m, f"{OWN}/{UNKNOWN}", {}) for m in ("GET", "PATCH", "PUT", "DELETE")]
    answers += [visitor.get(f"{OWN}/stats"), visitor.ask("POST", f"{OWN}/{UNKNOWN}/validate")]
    assert {_code(answer) for answer in answers} == {(401, "owner_required")}


def test_no_accounts(make_host: MakeHost) -> None:
    """Without account tiers there are no records."""
    ann = keeper(make_host(BYOK_PRECEDENCE=["session", "env"]), "ann")
    answer = ann.get(OWN)
    assert _code(answer) == (403, "not_allowed")
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


def test_foreign_ids(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """Another user's key is not there: it is neither shown, changed, checked nor deleted."""
    record = ann.keep(fake.api_key("openai"))
    bob = keeper(host, "bob")
    path = f"{OWN}/{record['id']}"
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        for body in ({"label": "x"}, {"nonsense": 1}, None):
            assert _code(bob.ask(method, path, body)) == (404, "key_not_found")
    assert _code(bob.ask("POST", f"{path}/validate", {"x": 1})) == (404, "key_not_found")
    assert bob.records() == []
    assert ann.get(path).get_json()["version"] == 1


# change


def test_changes(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """Sent fields change, omitted fields stay, and null empties a field that may be empty."""
    path = f"{OWN}/{ann.keep(fake.api_key('openai'), label='a', description='b')['id']}"
    changed = ann.ask("PATCH", path, {"label": "c"})
    assert (changed.status_code, changed.headers["ETag"]) == (200, '"2"')
    body = changed.get_json()
    assert (body["label"], body["description"], body["version"]) == ("c", "b", 2)
    body = ann.ask("PUT", path, {"description": None, "active": False}).get_json()
    assert (body["label"], body["description"]) == ("c", None)
    assert (body["active"], body["state"]) == (False, "inactive")
    assert ann.get("/used/openai").status_code == 409
    assert ann.ask("PATCH", path, {"active": True}).get_json()["state"] == "active"
    for nothing in ({}, {"label": "c", "description": " ", "active": True, "expires_at": None}):
        unchanged = ann.ask("PATCH", path, nothing, If_Match='"4"')
        assert (unchanged.get_json()["version"], unchanged.headers["ETag"]) == (4, '"4"')
        assert _code(ann.ask("PATCH", path, nothing, If_Match='"3"')) == (412, "version_conflict")
    actions = [action for _, action, _ in logged(host, "user:ann")]
    assert actions == ["set", "change", "change", "change"]


def test_changes_that_are_refused(ann: Keeper, fake: FakeProviders) -> None:
    """An invalid change is refused, and the record keeps its version."""
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"label": "a\nb"}, "invalid_field"),
        ({"active": None}, "invalid_field"),
        ({"provider": "groq"}, "invalid_field"),
        ({"owner": "user:bob"}, "invalid_field"),
        ({"version": 7}, "invalid_field"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "invalid_field"),
        ({"api_key": "k-12345678", "fields": {}}, "invalid_field"),
        ({"fields": {"other": "k-12345678"}}, "invalid_field"),
        ({"base_url": "https://elsewhere.example/v1"}, "malformed_api_key"),
        ({"api_key": "short"}, "malformed_api_key"),
    ]
    for body, code in cases:
        assert _code(ann.ask("PATCH", path, body)) == (422, code), body
    assert ann.get(path).get_json()["version"] == 1


def test_a_replaced_key(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """A new key is checked, takes the old one's place with a verdict of its own, and serves."""
    before = ann.keep(fake.api_key("openai"), label="mine")
    path, api_key = f"{OWN}/{before['id']}", fake.api_key("openai", "restricted")
    after = ann.ask("PATCH", path, {"api_key": api_key}).get_json()
    assert after["validation"]["verdict"] == after["validity"]["verdict"] == "valid_restricted"
    assert (after["hint"][-4:], after["label"], after["version"]) == (api_key[-4:], "mine", 2)
    assert ann.get("/used/openai").get_json()["fingerprint"] == fingerprint(api_key)
    refused = ann.ask("PATCH", path, {"api_key": fake.api_key("openai", "bad"), "label": "new"})
    assert _code(refused) == (422, "key_refused")
    assert ann.get(path).get_json() == {k: v for k, v in after.items() if k != "validation"}
    assert logged(host, "user:ann")[1:] == [
        ("user:ann", "set", "done"),
        ("user:ann", "set", "invalid"),
    ]


def test_a_blank_key_keeps_the_stored_one(ann: Keeper, fake: FakeProviders) -> None:
    """A form that sends its empty key input along changes nothing of the key or its verdict."""
    api_key = fake.api_key("openai")
    record = ann.ask("POST", OWN, {"provider": "openai", "api_key": api_key}).get_json()
    bodies: list[dict[str, Any]] = [{"api_key": blank} for blank in ("", "  ", None)]
    for body in (*bodies, {"fields": {}}, {}):
        changed = ann.ask("PATCH", f"{OWN}/{record['id']}", {**body, "label": "x"}).get_json()
        same = (changed["hint"], changed["validity"], changed["validation"])
        assert same == (record["hint"], record["validity"], None), body
    assert ann.get("/used/openai").get_json()["fingerprint"] == fingerprint(api_key)


def test_the_hint_is_no_key(ann: Keeper, fake: FakeProviders) -> None:
    """A hint that is sent back never replaces the key."""
    record = ann.keep(fake.api_key("openai"))
    path = f"{OWN}/{record['id']}"
    for sent in (record["hint"], f" {record['hint']} ", "•" * 24):
        assert _code(ann.ask("PUT", path, {"api_key": sent})) == (422, "malformed_api_key")
    assert ann.get(path).get_json()["version"] == 1


def test_a_key_is_no_slot(make_host: MakeHost, fake: FakeProviders) -> None:
    """A key pasted as the name of a slot is refused, and nowhere to be seen."""
    host = make_host(BYOK_KEYS_PER_PROVIDER=2)
    ann = keeper(host, "ann")
    for pasted in ("own-gateway-PASTEDKEY0123456789", "sk-proj-PASTEDKEY0123456789"):
        body = {"provider": "openai", "api_key": pasted, "slot": pasted, "validate": "off"}
        answer = ann.ask("POST", OWN, body)
        assert _code(answer) == (422, "invalid_field")
        assert "PASTEDKEY" not in answer.text
    assert (ann.records(), logged(host, "user:ann")) == ([], [])


def test_a_stored_key_is_no_label(ann: Keeper, fake: FakeProviders) -> None:
    """The key that is stored cannot become its own label either."""
    api_key = "own-gateway-PLAINKEY0123456789"
    path = f"{OWN}/{ann.keep(api_key)['id']}"
    for name in ("label", "description"):
        answer = ann.ask("PATCH", path, {name: f"it is {api_key}"})
        assert _code(answer) == (422, "invalid_field")


def test_expiry(make_host: MakeHost, fake: FakeProviders) -> None:
    """An expiry is chosen, taken back, and never later than the operator allows."""
    ann = keeper(make_host(), "ann")
    soon = isoformat(datetime.now(UTC) + timedelta(days=3))
    record = ann.keep(fake.api_key("openai"), expires_at=soon)
    path = f"{OWN}/{record['id']}"
    assert (record["expires_at"], record["expires_soon"]) == (soon, True)
    never = ann.ask("PATCH", path, {"expires_at": None}).get_json()
    assert (never["expires_at"], never["expires_soon"]) == (None, False)
    ann = keeper(make_host(BYOK_MAX_KEY_LIFETIME=timedelta(days=30)), "ann")
    for wanted in (None, "2999-01-01T00:00:00Z"):
        capped = ann.ask("PATCH", path, {"expires_at": wanted}).get_json()["expires_at"]
        left = datetime.fromisoformat(capped) - datetime.now(UTC)
        assert timedelta(days=29) < left <= timedelta(days=30)


def test_a_new_key_for_an_expired_one(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """A new key in the place of an expired one does not expire at once."""
    record = ann.keep(fake.api_key("openai"), expires_at="2999-01-01T00:00:00Z")
    with accounts_of(host).engine.begin() as connection:
        connection.execute(text("UPDATE byok_credentials SET expires_at = 1000"))
    path = f"{OWN}/{record['id']}"
    assert ann.ask("PATCH", path, {"label": "old"}).get_json()["state"] == "expired"
    changed = ann.ask("PATCH", path, {"api_key": fake.api_key("openai", owner=2)}).get_json()
    assert (changed["state"], changed["expires_at"]) == ("active", None)


# versions


def test_if_match(ann: Keeper, fake: FakeProviders) -> None:
    """A change that names the version it was meant for is made while that is the present one."""
    for sent in ('"1"', "*", '"0", "1"', ' "1" ', 'W/"0","1",'):
        path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
        assert ann.ask("PATCH", path, {"label": "x"}, If_Match=sent).status_code == 200, sent
        if sent != "*":
            late = ann.ask("PATCH", path, {"label": "y"}, If_Match=sent)
            assert _code(late) == (412, "version_conflict"), sent
            late = ann.ask("DELETE", path, If_Match=sent)
            assert _code(late) == (412, "version_conflict"), sent
        assert ann.get(path).get_json()["label"] == "x", sent
        assert ann.ask("DELETE", path, If_Match='"2"').status_code == 204, sent


def test_if_match_until_it_is_written(
    host: HostApp, ann: Keeper, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change by another request between the check of the version and the write is a conflict too."""
    record, check = ann.keep(fake.api_key("openai")), RateLimiter.check

    def come_between(limiter: RateLimiter, owner: str) -> None:
        check(limiter, owner)
        theirs = AuditEvent("cli", "change")
        accounts_of(host).change(record["id"], [owner], {"label": method}, theirs)

    monkeypatch.setattr(RateLimiter, "check", come_between)
    for method in ("PATCH", "PUT", "DELETE"):
        body = None if method == "DELETE" else {"label": "mine"}
        path, seen = f"{OWN}/{record['id']}", f'"{record["version"]}"'
        answer = ann.ask(method, path, body, If_Match=seen)
        assert _code(answer) == (412, "version_conflict"), method
        before, (record,) = record, ann.records()
        assert (record["label"], record["version"]) == (method, before["version"] + 1)


def test_if_match_that_does_not_match(ann: Keeper, fake: FakeProviders) -> None:
    """Another version's tag is 412, and so is a malformed one; nothing is changed."""
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    others = ('W/"1"', '"01"', '""', '"x"', '"2", W/"1"')
    malformed = ('"', "", "x", '"1', '"1" "2"', "**", "'1'")
    for method in ("PATCH", "PUT", "DELETE"):
        body = None if method == "DELETE" else {}
        for sent in others + malformed:
            answer = ann.ask(method, path, body, If_Match=sent)
            assert _code(answer) == (412, "version_conflict"), (method, sent)
    assert ann.get(path).get_json()["version"] == 1


# clear, validate


def test_delete(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """A deleted key is gone at once, and deleting it again says so."""
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    answer = ann.ask("DELETE", path)
    assert (answer.status_code, answer.data, answer.mimetype) == (204, b"", None)
    assert answer.headers["Cache-Control"] == "no-store"
    assert _code(ann.ask("DELETE", path)) == (404, "key_not_found")
    assert ann.get("/used/openai").status_code == 409
    assert [action for _, action, _ in logged(host, "user:ann")] == ["set", "clear"]


def test_validate(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """A stored key is checked even if another is in use, and the verdict is stored and logged."""
    stored = ann.keep(fake.api_key("openai", "broke"))
    ann.call("set", provider="openai", api_key=fake.api_key("openai"))
    ann.ask("PATCH", f"{OWN}/{stored['id']}", {"active": False})
    checked = ann.ask("POST", f"{OWN}/{stored['id']}/validate")
    assert (checked.status_code, checked.get_json()["verdict"]) == (200, "valid_no_credit")
    assert ann.records()[0]["validity"]["verdict"] == "valid_no_credit"
    assert ann.records()[0]["version"] == 2
    assert logged(host, "user:ann")[-1] == ("user:ann", "validate", "valid_no_credit")
    assert ann.status()["validity"]["verdict"] == "valid"


def test_calls_without_a_body(ann: Keeper, fake: FakeProviders) -> None:
    """A check and a removal take an empty object, but no field, no form and no other type: nothing is done."""
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    token, form = {"X-CSRFToken": ann.token}, "application/x-www-form-urlencoded"
    bodies: list[dict[str, Any]] = [
        {"data": {"csrf_token": ann.token}},
        {"headers": token, "content_type": form},
        {"headers": token, "content_type": "text/plain", "data": "{}"},
        {"headers": token, "data": b"{}"},
    ]
    for method, url in (("POST", f"{path}/validate"), ("DELETE", path)):
        for sent in bodies:
            answer = ann.open(url, method=method, **sent)
            assert _code(answer) == (415, "unsupported_media_type"), (method, sent)
        answer = ann.ask(method, url, {"base_url": "https://x.example"})
        assert _code(answer) == (422, "invalid_field"), method
    assert ann.get(path).get_json()["validity"] is None
    assert ann.ask("POST", f"{path}/validate", {}).status_code == 200


# rates


def test_rates(make_host: MakeHost, fake: FakeProviders) -> None:
    """Keys are stored, replaced and checked no faster than the operator allows."""
    host = make_host(BYOK_SET_RATE="2/minute", BYOK_VALIDATE_RATE="1/minute")
    ann = keeper(host, "ann")
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    change = {"api_key": fake.api_key("openai", owner=2)}
    assert ann.ask("PATCH", path, change).status_code == 200
    late = ann.ask("PATCH", path, change)
    assert _code(late) == (429, "rate_limited")
    assert 0 < int(late.headers["Retry-After"]) <= 60
    body = {"provider": "groq", "api_key": fake.api_key("groq")}
    assert _code(ann.ask("POST", OWN, body)) == (429, "rate_limited")
    assert _code(ann.ask("PATCH", path, {"label": "no key"})) == (429, "rate_limited")
    assert _code(ann.ask("DELETE", path)) == (429, "rate_limited")
    assert _code(ann.call("clear", provider="openai")) == (429, "rate_limited")
    assert ann.get(path).get_json()["version"] == 2
    checks = [ann.ask("POST", f"{path}/validate").status_code for _ in range(2)]
    assert checks == [200, 429]


# several fields, addresses


def test_base_url_needs_the_key(make_host: MakeHost, fake: FakeProviders) -> None:
    """A stored key goes to no other address: a new address wants the key again."""
    host = make_host(BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_ALLOW_PRIVATE_ENDPOINTS=True)
    ann = keeper(host, "ann")
    here, there = fake.base_urls["openai"], fake.base_urls["groq"]
    path = f"{OWN}/{ann.keep('k-custom-12345678', 'custom', base_url=here)['id']}"
    for body in ({"base_url": there}, {"fields": {"base_url": there}}):
        for blank in ({}, {"label": "x"}):
            answer = ann.ask("PATCH", path, {**body, **blank, "validate": "off"})
            assert _code(answer) == (422, "malformed_api_key")
    kept = {"api_key": "k-custom-87654321", "validate": "off"}
    assert ann.ask("PATCH", path, kept).status_code == 200
    moved = {**kept, "base_url": there}
    assert ann.ask("PATCH", path, moved).status_code == 200
    with host.test_request_context(headers={"Cookie": f"session={_cookie(ann)}"}):
        assert host.byok.resolve("custom").base_url == there


def _cookie(client: Keeper) -> str:
    held = client.get_cookie("session")
    assert held is not None
    return held.value


CLOUD = ProviderSpec(
    id="cloud",
    name="Cloud",
    base_url="https://cloud.example/v1",
    fields=(
        Field("api_key", "Key id"),
        Field("secret", "Secret"),
        Field("region", "Region", secret=False),
        Field("project", "Project", secret=False, required=False),
    ),
)


def test_blank_fields_keep_what_they_have(make_host: MakeHost) -> None:
    """Of a key with several fields those change that are typed, and the others stay; what is no secret, with all."""
    host = make_host(BYOK_ALLOW_REVEAL=True)
    host.byok.register_provider(CLOUD)
    ann = keeper(host, "ann")
    first = {"api_key": "id-12345678", "secret": "secret-12345678", "region": "north"}
    body = {"provider": "cloud", "fields": first, "validate": "off"}
    path = f"{OWN}/{ann.ask('POST', OWN, body).get_json()['id']}"
    elsewhere = {"api_key": "", "secret": " ", "region": "south"}
    refused = ann.ask("PATCH", path, {"fields": elsewhere, "validate": "off"})
    assert _code(refused) == (422, "malformed_api_key")
    assert "type the key too" in refused.get_json()["detail"]
    blank = {"api_key": "", "secret": "secret-87654321", "region": ""}
    changed = ann.ask("PATCH", path, {"fields": blank, "validate": "off"})
    assert changed.get_json()["version"] == 2
    shown = ann.get(f"{path}?include_value=1").get_json()
    assert shown["fields"] == {**first, "secret": "secret-87654321"}
    assert shown["value"] == "id-12345678"
    missing = {"provider": "cloud", "fields": {**elsewhere, "api_key": "id-12345678"}}
    assert _code(ann.ask("POST", OWN, missing)) == (422, "malformed_api_key")


@pytest.mark.parametrize(
    ("seen", "status", "api_key"),
    [({}, 200, "late-12345678"), ({"If_Match": '"1"'}, 412, "id-12345678")],
)
def test_what_is_kept_is_of_the_version_that_is_written(
    make_host: MakeHost,
    monkeypatch: pytest.MonkeyPatch,
    seen: dict[str, str],
    status: int,
    api_key: str,
) -> None:
    """A change of one field never brings back another that was replaced meanwhile, and is 412 only with If-Match."""
    host = make_host()
    host.byok.register_provider(CLOUD)
    ann = keeper(host, "ann")
    fields = {"api_key": "id-12345678", "secret": "secret-12345678", "region": "north"}
    body = {"provider": "cloud", "fields": fields, "validate": "off"}
    path = f"{OWN}/{ann.ask('POST', OWN, body).get_json()['id']}"
    verdicts, answers = get_state(host).service.checks, []
    unhurried = verdicts.before_set

    def replace_meanwhile(*checked: Any, **how: Any) -> Any:
        monkeypatch.undo()
        other = {"fields": {"secret": "replaced-12345678"}, "validate": "off"}
        answers.append(keeper(host, "ann").ask("PATCH", path, other).status_code)
        return unhurried(*checked, **how)

    monkeypatch.setattr(verdicts, "before_set", replace_meanwhile)
    late = ann.ask(
        "PATCH", path, {"fields": {"api_key": "late-12345678"}, "validate": "off"}, **seen
    )
    assert (answers, late.status_code) == ([200], status)
    (record,) = accounts_of(host).find(["user:ann"])
    stored, _ = get_state(host).service.keyring.open_record("account", "user:ann", record)
    assert {name: secret.reveal() for name, secret in stored.items()} == fields | {
        "secret": "replaced-12345678",
        "api_key": api_key,
    }


# reveal


def test_no_value_by_default(ann: Keeper, fake: FakeProviders) -> None:
    """A key is not shown unless the operator allows people to read back their own."""
    api_key = fake.api_key("openai")
    path = f"{OWN}/{ann.keep(api_key)['id']}"
    for asked in ("true", "1", "TRUE", "yes"):
        answer = ann.get(f"{path}?include_value={asked}")
        assert _code(answer) == (403, "reveal_disabled"), asked
        assert api_key not in answer.text, asked


def test_reveal(make_host: MakeHost, fake: FakeProviders) -> None:
    """If reveals are allowed, a freshly signed-in user sees the own key, and the log records it first."""
    host = make_host(BYOK_ALLOW_REVEAL=True)
    ann, api_key = keeper(host, "ann"), fake.api_key("openai")
    path = f"{OWN}/{ann.keep(api_key)['id']}"
    shown = ann.get(f"{path}?include_value=true")
    assert (shown.get_json()["value"], shown.get_json()["fields"]) == (
        api_key,
        {"api_key": api_key},
    )
    assert shown.headers["Cache-Control"] == "no-store"
    assert logged(host, "user:ann")[-1] == ("user:ann", "reveal", "done")
    assert "value" not in ann.get(path).get_json()
    assert "value" not in ann.get(f"{path}?include_value=false").get_json()
    host.byok.fresh_login_loader(lambda: False)
    stale = ann.get(f"{path}?include_value=true")
    assert _code(stale) == (403, "fresh_login_required")
    assert api_key not in stale.text
    bob = keeper(host, "bob")
    assert _code(bob.get(f"{path}?include_value=true")) == (404, "key_not_found")
    assert [action for _, action, _ in logged(host, "user:ann")] == ["set", "reveal"]


def test_reveal_after_a_remembered_sign_in(make_host: MakeHost, fake: FakeProviders) -> None:
    """By default Flask-Login decides who has just signed in: not a user whom a cookie remembered."""
    host = make_host(BYOK_ALLOW_REVEAL=True)

    @host.get("/remembered")
    def remembered() -> str:
        session["_fresh"] = False  # as Flask-Login does
        return ""

    ann = keeper(host, "ann")
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}?include_value=1"
    assert ann.get(path).status_code == 200
    ann.get("/remembered")
    assert _code(ann.get(path)) == (403, "fresh_login_required")
    ann.post("/sign-in/ann")
    assert ann.get(path).status_code == 200


def test_reveal_where_nobody_knows(tmp_path: Path) -> None:
    """Without Flask-Login and without a loader no sign-in counts as fresh."""
    app = Flask("host", instance_path=str(tmp_path))
    app.config.update(
        SECRET_KEY="x",
        SESSION_TYPE="cachelib",
        SESSION_CACHELIB=FileSystemCache(str(tmp_path / "sessions")),
        WTF_CSRF_ENABLED=False,
        BYOK_ENCRYPTION_KEY="11" * 32,
        BYOK_ALLOW_REVEAL=True,
    )
    Session(app)
    byok = BYOK(app)
    byok.owner_loader(lambda: "ann")
    ann = Keeper(app, Response, use_cookies=True)
    path = f"{OWN}/{ann.keep('sk-key-of-anns-0001')['id']}?include_value=1"
    assert _code(ann.get(path)) == (403, "fresh_login_required")
    byok.fresh_login_loader(lambda: True)
    assert ann.get(path).get_json()["value"] == "sk-key-of-anns-0001"


def test_reveal_from_elsewhere(make_host: MakeHost, fake: FakeProviders) -> None:
    """Another site can have no key shown, and no reveal logged; without the key it may read."""
    host = make_host(BYOK_ALLOW_REVEAL=True)
    ann = keeper(host, "ann")
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    sites = ("cross-site", "same-site")
    elsewhere = [{"Sec-Fetch-Site": site} for site in sites] + [{"Origin": "https://x.example"}]
    for headers in elsewhere:
        answer = ann.get(f"{path}?include_value=1", headers=headers)
        assert _code(answer) == (400, "csrf"), headers
        assert ann.get(path, headers=headers).status_code == 200, headers
    assert [action for _, action, _ in logged(host, "user:ann")] == ["set"]
    own_page = {"Sec-Fetch-Site": "same-origin"}
    assert ann.get(f"{path}?include_value=1", headers=own_page).status_code == 200


def test_reveal_of_a_key_that_does_not_open(make_host: MakeHost, fake: FakeProviders) -> None:
    """A key that does not open is not shown, and nothing says that it was."""
    host = make_host(BYOK_ALLOW_REVEAL=True)
    ann = keeper(host, "ann")
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    with accounts_of(host).engine.begin() as connection:
        connection.execute(text("UPDATE byok_credentials SET ciphertext = 'byok1.x.fernet.y'"))
    assert _code(ann.get(f"{path}?include_value=true")) == (409, "key_unreadable")
    assert [action for _, action, _ in logged(host, "user:ann")] == ["set"]


def test_no_value_elsewhere(make_host: MakeHost, fake: FakeProviders) -> None:
    """No other call shows a key, even if reveals are allowed; it answers 403 and does nothing."""
    ann = keeper(make_host(BYOK_ALLOW_REVEAL=True), "ann")
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    calls: list[tuple[str, str, Any]] = [
        ("GET", OWN, None),
        ("POST", OWN, {"provider": "groq", "api_key": fake.api_key("groq")}),
        ("PATCH", path, {"label": "x"}),
        ("DELETE", path, None),
        ("POST", f"{path}/validate", None),
        ("GET", f"{OWN}/stats", None),
        ("GET", "/api/providers/keys", None),
    ]
    for method, url, sent in calls:
        answer = ann.ask(method, f"{url}?include_value=true", sent)
        assert _code(answer) == (403, "reveal_disabled"), (method, url)
    (record,) = ann.records()
    assert (record["version"], record["label"], record["validity"]) == (1, None, None)


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
    assert _code(closed.test_client().get(f"{OWN}/services")) == (401, "owner_required")


def test_stats(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """The statistics count one's own keys and no others."""
    ann.keep(fake.api_key("openai"), active=False)
    ann.keep(fake.api_key("groq"), "groq")
    stats = ann.get(f"{OWN}/stats").get_json()
    assert (stats["total"], stats["active"], stats["expired"]) == (2, 1, 0)
    assert set(stats["by_provider"]) == {"openai", "groq"}
    assert keeper(host, "bob").get(f"{OWN}/stats").get_json()["total"] == 0


def test_signals(ann: Keeper, fake: FakeProviders, heard: list[tuple[str, dict[str, Any]]]) -> None:
    """Signals report keys that are set, replaced and deleted, by safe facts that name no person."""
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
    assert _code(other) == (400, "csrf")
    token = {"X-CSRFToken": ann.token or ""}
    form = ann.post(OWN, data={"provider": "openai"}, headers=token)
    assert _code(form) == (415, "unsupported_media_type")
    form = ann.patch(path, data='{"label": "x"}', content_type="text/plain", headers=token)
    assert _code(form) == (415, "unsupported_media_type")
    big = ann.ask("PATCH", path, {"label": "x" * 70_000})
    assert _code(big) == (413, "too_large")
    assert ann.get(path).get_json()["version"] == 1


def test_answers_name_their_request(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """Each answer has the id under which the log knows its request; it is never one that a client sent."""
    names = ("X-BYOK-Request-ID", "X-Request-ID", "Request-Id")
    headers = {name.replace("-", "_"): "a-name-of-the-clients" for name in names}
    body = {"provider": "openai", "api_key": fake.api_key("openai"), "validate": "off"}
    answer = ann.ask("POST", OWN, body, **headers)
    (entry,) = accounts_of(host).audit.entries("user:ann")
    assert entry.event.request_id == answer.headers["X-BYOK-Request-ID"]
    assert "a-name-of-the-clients" not in f"{entry} {answer.headers}"
    assert accounts_of(host).audit.verify() == []
