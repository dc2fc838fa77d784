"""Every row of the catalog, and a host's own, is served by the fake providers without code of its own."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from dataclasses import replace

import httpx2
import pytest

from flask_byok import Auth, CheckSpec, Field, ProviderSpec, Rule, Verdict
from flask_byok.catalog import Catalog, SigV4
from flask_byok.catalog.verdicts import Answer, Place, judge
from flask_byok.testing import FakeProviders
from flask_byok.testing.refusals import documented
from tests.providers.conftest import SDKS
from tests.testing.sdks import sdk

ACME = ProviderSpec(
    id="acme",
    name="Acme",
    base_url="https://{resource}.acme.example/{resource}/openai/v1",
    fields=(Field("resource", secret=False, pattern="[a-z]+"), Field()),
    auth=Auth("X-Acme-Key", "Token {api_key};"),
    prefixes=("acme_",),
    aliases=("acme_inc",),
    default_model="acme-small",
    check=CheckSpec(rules=(Rule((401,), Verdict.INVALID),)),
)
SPEECH = ProviderSpec(
    id="speech",
    name="Speech",
    base_url="https://speech.example/v2",
    adapter="http",
    auth=Auth("Authorization", "{api_key}"),
    check=CheckSpec(
        path="https://who.example/me", method="POST", good="user.id|id", models_path=None
    ),
)
PLACES: tuple[Place, ...] = ("check", "call")


def check(fake: FakeProviders, http: httpx2.Client, spec: ProviderSpec, path: str, key: str) -> str:
    """Check a key at this path below the base URL; return the verdict."""
    headers = {"anthropic-version": "2", **spec.auth.headers({"api_key": key})}
    answer = http.request(spec.check.method, fake.base_url(spec.id) + path, headers=headers)
    return judge(
        spec, Answer(answer.status_code, answer.content), "check", {"api_key": key}
    ).verdict


@pytest.mark.parametrize("spec", Catalog.shipped, ids=lambda spec: spec.id)
def test_every_row_has_an_address_and_a_key(fake: FakeProviders, spec: ProviderSpec) -> None:
    """A row's keys begin as its own do, and its address is offered unless each person gives one."""
    assert (spec.id in fake.base_urls) is not spec.personal_base_url
    assert fake.api_key(spec.id).startswith(spec.prefixes or "")
    assert fake.base_url(spec.id).startswith(f"{fake.origin}/{spec.id}")


def test_bad_keys_are_refused_as_documented(fake: FakeProviders, http: httpx2.Client) -> None:
    """A key that a provider does not know is answered in its own words, and its row knows them; some tell nothing."""
    silent = {"cloudflare", "nvidia", "deepinfra"}
    for spec in (spec for spec in Catalog.shipped if documented(spec.id)):
        url = fake.base_url(spec.id) + "/anything"
        answer = http.get(url, headers=spec.auth.headers(fake.fields(spec.id, "bad"), "GET", url))
        for place in PLACES:
            found = judge(spec, Answer(answer.status_code, answer.content), place)
            told = "unchecked" if spec.id in silent else "invalid"
            assert (spec.id, found.verdict) == (spec.id, told)


@pytest.mark.parametrize("spec", Catalog.shipped, ids=lambda spec: spec.id)
def test_a_whole_credential(fake: FakeProviders, spec: ProviderSpec) -> None:
    """`fake.fields` gives every field that the row requires, each in the form that the row wants, and the key."""
    fields = fake.fields(spec.id)
    required = {each.name for each in spec.fields if each.required or each.default}
    assert fields.keys() == required | {spec.main_field.name}
    assert fields[spec.main_field.name] == fake.api_key(spec.id)
    for each in spec.fields:
        if each.name in fields:
            assert each.read(fields[each.name]) == fields[each.name] != ""


@pytest.mark.parametrize("pattern", ["", "[a-z]+", "[0-9]{6,12}", "[0-9a-f]{8}", r"https://\S+"])
def test_a_credential_of_a_hosts_own_fields(fake: FakeProviders, pattern: str) -> None:
    """A field without a default or an example gets a value too, which its pattern takes."""
    fields = (Field("project", "Project", kind="text", pattern=pattern), Field())
    spec = replace(ACME, id="twofield", base_url="https://two.example/v1", fields=fields)
    fake.add_provider(spec)
    values = fake.fields("twofield")
    assert values["project"] == fields[0].read(values["project"]) != ""


def test_refusals_follow_from_the_rules(fake: FakeProviders, http: httpx2.Client) -> None:
    """A row without a table of its own is refused with the words, the status or the value that its rules name."""
    rules = (
        Rule((402,), Verdict.VALID_NO_CREDIT, contains="wallet is empty"),
        Rule((200,), Verdict.DISABLED, path="state.closed"),
        Rule((409,), contains="too_long", kind="context_too_long", place="call"),
    )
    fake.add_provider(replace(ACME, check=CheckSpec(good="state.id", rules=rules)))
    spec = fake._spec("acme")
    told = {"broke": "valid_no_credit", "disabled": "disabled", "good": "unchecked"}
    for behaviour, verdict in told.items():
        key = fake.api_key("acme", behaviour)
        assert check(fake, http, spec, "/models", key) == verdict
    url, headers = fake.base_url("acme"), spec.auth.headers(fake.fields("acme"))
    fake.refuse_next("acme", "context_too_long")
    answer = http.post(url + "/chat/completions", headers=headers, json={})
    assert (answer.status_code, answer.json()["error"]["message"]) == (409, "too_long")
    headers = spec.auth.headers(fake.fields("acme", "disabled"))
    answer = http.post(url + "/chat/completions", headers=headers, json={})
    assert answer.status_code == 401, "a 200 would be no refusal of a call"


def test_service_accounts(fake: FakeProviders, http: httpx2.Client) -> None:
    """A service account's file can be revoked and registered; its certificates are listed without any key."""
    account = fake.api_key("vertex")
    email = json.loads(account)["client_email"]
    url = f"{fake.origin}/vertex/robot/v1/metadata/x509/{email}"
    assert list(http.get(url).json()) == [json.loads(account)["private_key_id"]]
    fake.revoke("vertex", account)
    assert http.get(url).status_code == 404
    fake.add_key("vertex", account)
    assert http.get(url).status_code == 200


def test_a_hosts_row(fake: FakeProviders, http: httpx2.Client) -> None:
    """A row that a host adds has its own header, path, prefix and alias, and every script."""
    assert "acme" not in fake.base_urls
    fake.add_provider(ACME)
    url = fake.base_urls["acme"]
    assert url == fake.base_url("acme_inc") == f"{fake.origin}/acme/resource/openai/v1"
    key = fake.api_key("acme")
    assert key.startswith("acme_")
    assert check(fake, http, ACME, "/models", key) == "valid"
    assert check(fake, http, ACME, "/models", "acme_unknown") == "invalid"
    assert http.get(url + "/models", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    listed = http.get(url + "/models", headers={"X-Acme-Key": f"Token {key};"}).json()
    assert [model["id"] for model in listed["data"]] == ["acme-small", "fake-large"]
    fake.stream_next("acme", "Scripted")
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    found = http.post(url + "/chat/completions", headers={"X-Acme-Key": f"Token {key};"}, json=body)
    assert found.json()["choices"][0]["message"]["content"] == "Scripted"
    assert fake.calls_for("acme")[-1].api_key == key


def test_a_service_without_conversations(fake: FakeProviders, http: httpx2.Client) -> None:
    """The adapter `http` answers 200 with JSON to a good key, a check at another host with its documented success."""
    fake.add_provider(SPEECH)
    key = fake.api_key("speech")
    assert check(fake, http, SPEECH, "/eu-1/me", key) == "valid"
    url = f"{fake.origin}/speech/eu-1/me"  # where a check of another host is sent to
    assert http.post(url, headers={"Authorization": key}).json() == {"user": {"id": True}}
    statuses = {"bad": 401, "restricted": 403, "broke": 402, "rate_limited": 429, "slow": 200}
    for behaviour, status in statuses.items():
        headers = {"Authorization": fake.api_key("speech", behaviour)}
        answer = http.get(fake.base_url("speech") + "/transcripts", headers=headers)
        assert (answer.status_code, isinstance(answer.json(), dict)) == (status, True)
    with pytest.raises(ValueError, match="no conversations"):
        fake.stream_next("speech", "Hi")


def test_documented_answers(fake: FakeProviders, http: httpx2.Client) -> None:
    """A fake answers as documented: by the place, with the caller's key in place of the one that the document shows."""
    url, key = fake.base_url("xai"), fake.api_key("xai", "disabled")
    headers = {"Authorization": f"Bearer {key}"}
    answer = http.get(url + "/api-key", headers=headers)
    assert (answer.status_code, answer.json()["api_key_disabled"]) == (200, True)
    assert http.post(url + "/chat/completions", headers=headers, json={}).status_code == 401
    headers = {"Authorization": "Bearer sk-mine"}
    told = http.get(fake.base_url("openai") + "/models", headers=headers).json()["error"]["message"]
    assert "sk-mine" in told
    shown = [row["body"] for row in documented("deepgram") if row["verdict"] == Verdict.VALID]
    headers = {"Authorization": f"Token {fake.api_key('deepgram')}"}
    assert http.get(fake.base_url("deepgram") + "/v1/projects", headers=headers).json() == shown[0]


def test_signatures_and_tokens(fake: FakeProviders, http: httpx2.Client) -> None:
    """Of AWS's signature the access key counts, of a signed token its issuer."""
    fake.add_provider(
        ProviderSpec(
            id="cloud", name="Cloud", adapter="http", auth=SigV4("sts", "x"), prefixes=("AKIA",)
        )
    )
    claims = urlsafe_b64encode(json.dumps({"iss": "me@cloud.example"}).encode()).decode()
    fake.add_key("cloud", "me@cloud.example")
    signed = f"AWS4-HMAC-SHA256 Credential={fake.api_key('cloud')}/20261130/us-east-1/sts, Signed"
    sent = {signed: 200, f"Bearer a.{claims.strip('=')}.c": 200, "Bearer nobody": 401}
    for header, status in sent.items():
        answer = http.get(fake.base_url("cloud") + "/", headers={"Authorization": header})
        assert answer.status_code == status


def test_a_server_without_keys(fake: FakeProviders, http: httpx2.Client) -> None:
    """An empty key that was added lets calls without a key through."""
    url = fake.base_url("custom") + "/models"
    assert http.get(url).status_code == 401
    fake.add_key("custom", "")
    assert http.get(url).status_code == 200


@pytest.mark.parametrize("provider", SDKS)
def test_models_are_listed(fake: FakeProviders, provider: str) -> None:
    """Each wire lists the fakes' models to its SDK."""
    first = next(iter(sdk(fake, provider).models.list()))
    known = {"openai": "gpt-4o-mini", "anthropic": "claude-sonnet-4-5"}
    name = first.name if provider == "google" else first.id
    assert name == known.get(provider, "models/gemini-2.5-flash")
