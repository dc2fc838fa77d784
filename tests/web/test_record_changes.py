"""``/api/keys/<id>``: a user's own key, changed, checked and deleted, on each database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from flask_byok import Field, ProviderSpec
from flask_byok.accounts.store import AuditEvent
from flask_byok.model.credential import isoformat
from flask_byok.storage.rates import RateLimiter
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import HostApp, fingerprint, problem_of
from tests.keeper import OWN, Keeper, accounts_of, keeper, logged

from .conftest import MakeHost


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
        assert problem_of(ann.ask("PATCH", path, nothing, If_Match='"3"')) == (
            412,
            "version_conflict",
        )
    actions = [action for _, action, _ in logged(host, "user:ann")]
    assert actions == ["set", "change", "change", "change"]


def test_a_replaced_key(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """A new key is checked, takes the old one's place with a verdict of its own, and serves."""
    before = ann.keep(fake.api_key("openai"), label="mine")
    path, api_key = f"{OWN}/{before['id']}", fake.api_key("openai", "restricted")
    after = ann.ask("PATCH", path, {"api_key": api_key}).get_json()
    assert after["validation"]["verdict"] == after["validity"]["verdict"] == "valid_restricted"
    assert (after["hint"][-4:], after["label"], after["version"]) == (api_key[-4:], "mine", 2)
    assert ann.get("/used/openai").get_json()["fingerprint"] == fingerprint(api_key)
    refused = ann.ask("PATCH", path, {"api_key": fake.api_key("openai", "bad"), "label": "new"})
    assert problem_of(refused) == (422, "key_refused")
    assert ann.get(path).get_json() == {
        k: v for k, v in after.items() if k not in ("validation", "warnings")
    }
    assert logged(host, "user:ann")[1:] == [
        ("user:ann", "set", "done"),
        ("user:ann", "set", "invalid"),
    ]


def test_a_key_that_is_not_typed_stays(ann: Keeper, fake: FakeProviders) -> None:
    """An empty key input changes nothing of the key or its verdict, and a hint that is sent back replaces no key."""
    api_key = fake.api_key("openai")
    record = ann.ask("POST", OWN, {"provider": "openai", "api_key": api_key}).get_json()
    path = f"{OWN}/{record['id']}"
    bodies: list[dict[str, Any]] = [{"api_key": blank} for blank in ("", "  ", None)]
    for body in (*bodies, {"fields": {}}, {}):
        changed = ann.ask("PATCH", path, {**body, "label": "x"}).get_json()
        same = (changed["hint"], changed["validity"], changed["validation"])
        assert same == (record["hint"], record["validity"], None), body
    for sent in (record["hint"], f" {record['hint']} ", "•" * 24):
        assert problem_of(ann.ask("PUT", path, {"api_key": sent})) == (422, "malformed_api_key")
    assert ann.get("/used/openai").get_json()["fingerprint"] == fingerprint(api_key)


def test_a_key_is_no_slot(make_host: MakeHost, fake: FakeProviders) -> None:
    """A key pasted as the name of a slot is refused, and nowhere to be seen."""
    host = make_host(BYOK_KEYS_PER_PROVIDER=2)
    ann = keeper(host, "ann")
    for pasted in ("own-gateway-PASTEDKEY0123456789", "sk-proj-PASTEDKEY0123456789"):
        body = {"provider": "openai", "api_key": pasted, "slot": pasted, "validate": "off"}
        answer = ann.ask("POST", OWN, body)
        assert problem_of(answer) == (422, "invalid_field")
        assert "PASTEDKEY" not in answer.text
    assert (ann.records(), logged(host, "user:ann")) == ([], [])


def test_a_stored_key_is_no_label(ann: Keeper, fake: FakeProviders) -> None:
    """The key that is stored cannot become its own label either."""
    api_key = "own-gateway-PLAINKEY0123456789"
    path = f"{OWN}/{ann.keep(api_key)['id']}"
    for name in ("label", "description"):
        answer = ann.ask("PATCH", path, {name: f"it is {api_key}"})
        assert problem_of(answer) == (422, "invalid_field")


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
    for body in ({}, {"api_key": fake.api_key("openai")}):
        answer = ann.ask("PATCH", path, {"expires_at": "2999-01-01T00:00:00", **body})
        assert problem_of(answer) == (422, "invalid_field"), body


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
    for sent in ('"1"', "*", '"0", "1"', 'W/"0","1",'):
        path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
        assert ann.ask("PATCH", path, {"label": "x"}, If_Match=sent).status_code == 200, sent
        if sent != "*":
            late = ann.ask("PATCH", path, {"label": "y"}, If_Match=sent)
            assert problem_of(late) == (412, "version_conflict"), sent
            late = ann.ask("DELETE", path, If_Match=sent)
            assert problem_of(late) == (412, "version_conflict"), sent
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
        assert problem_of(answer) == (412, "version_conflict"), method
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
            assert problem_of(answer) == (412, "version_conflict"), (method, sent)
    assert ann.get(path).get_json()["version"] == 1


# clear, validate


def test_delete(host: HostApp, ann: Keeper, fake: FakeProviders) -> None:
    """A deleted key is gone at once, and deleting it again says so."""
    path = f"{OWN}/{ann.keep(fake.api_key('openai'))['id']}"
    answer = ann.ask("DELETE", path)
    assert (answer.status_code, answer.data, answer.mimetype) == (204, b"", None)
    assert answer.headers["Cache-Control"] == "no-store"
    assert problem_of(ann.ask("DELETE", path)) == (404, "key_not_found")
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
            assert problem_of(answer) == (415, "unsupported_media_type"), (method, sent)
        answer = ann.ask(method, url, {"base_url": "https://x.example"})
        assert problem_of(answer) == (422, "invalid_field"), method
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
    assert problem_of(late) == (429, "rate_limited")
    assert 0 < int(late.headers["Retry-After"]) <= 60
    body = {"provider": "groq", "api_key": fake.api_key("groq")}
    assert problem_of(ann.ask("POST", OWN, body)) == (429, "rate_limited")
    assert problem_of(ann.ask("PATCH", path, {"label": "no key"})) == (429, "rate_limited")
    assert problem_of(ann.ask("DELETE", path)) == (429, "rate_limited")
    assert problem_of(ann.call("clear", provider="openai")) == (429, "rate_limited")
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
            assert problem_of(answer) == (422, "malformed_api_key")
    kept = {"api_key": "k-custom-87654321", "validate": "off"}
    assert ann.ask("PATCH", path, kept).status_code == 200
    moved = {**kept, "base_url": there}
    assert ann.ask("PATCH", path, moved).status_code == 200
    host.view_functions["plain"] = lambda: host.byok.resolve("custom").base_url
    assert ann.get("/plain").text == there


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
    assert problem_of(refused) == (422, "malformed_api_key")
    assert "type the key too" in refused.get_json()["detail"]
    blank = {"api_key": "", "secret": "secret-87654321", "region": ""}
    changed = ann.ask("PATCH", path, {"fields": blank, "validate": "off"})
    assert changed.get_json()["version"] == 2
    shown = ann.get(f"{path}?include_value=1").get_json()
    assert shown["fields"] == {**first, "secret": "secret-87654321"}
    assert shown["value"] == "id-12345678"
    missing = {"provider": "cloud", "fields": {**elsewhere, "api_key": "id-12345678"}}
    assert problem_of(ann.ask("POST", OWN, missing)) == (422, "malformed_api_key")


def test_what_is_kept_is_of_the_version_that_is_written(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of one field never brings back another that was replaced meanwhile."""
    host = make_host()
    host.byok.register_provider(CLOUD)
    ann = keeper(host, "ann")
    fields = {"api_key": "id-12345678", "secret": "secret-12345678", "region": "north"}
    body = {"provider": "cloud", "fields": fields, "validate": "off"}
    path = f"{OWN}/{ann.ask('POST', OWN, body).get_json()['id']}"
    state = get_state(host)
    unhurried = state.service.checks.before_set

    def replace(**fields: str) -> int:
        return ann.ask("PATCH", path, {"fields": fields, "validate": "off"}).status_code

    def replace_meanwhile(*checked: Any, **how: Any) -> Any:
        monkeypatch.undo()
        assert replace(secret="replaced-12345678") == 200
        return unhurried(*checked, **how)

    monkeypatch.setattr(state.service.checks, "before_set", replace_meanwhile)
    assert replace(api_key="late-12345678") == 200
    (record,) = accounts_of(host).find(["user:ann"])
    stored, _ = state.service.keyring.open_record("user:ann", record)
    found = {name: secret.reveal() for name, secret in stored.items()}
    assert found == fields | {"secret": "replaced-12345678", "api_key": "late-12345678"}
