"""The providers as data."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok import BYOK
from flask_byok.catalog import PROVIDERS, Auth, Catalog, CheckSpec, Field, ProviderSpec, Rule, SigV4
from flask_byok.catalog.auth import names_in
from flask_byok.catalog.verdicts import Answer, judge
from flask_byok.errors import ConfigurationError, UnknownProviderError
from flask_byok.model.credential import Verdict
from flask_byok.providers.base import ADAPTERS
from flask_byok.settings import Settings
from flask_byok.testing import FakeProviders
from flask_byok.wiring import build_catalog


def test_catalog_has_the_providers() -> None:
    """The catalog has its providers once each, in the order in which people see them, and finds them by aliases."""
    ids = [spec.id for spec in Catalog()]
    assert ids[:6] == ["openai", "anthropic", "google", "groq", "xai", "openrouter"]
    assert ids[-1] == "custom"
    assert len(Catalog()) == len(set(ids)) == len(PROVIDERS)
    for alias, provider in {"gemini": "google", "google_gemini": "google", "grok": "xai"}.items():
        assert Catalog().get(alias) == Catalog().get(provider)
        assert alias in Catalog()


def test_rows_are_whole() -> None:
    """A provider of its own address has https, a variable for the operator, a page to get a key, and a model."""
    for spec in PROVIDERS:
        if spec.standalone:
            continue
        assert spec.base_url.startswith("https://")
        assert not spec.base_url.endswith("/")
        assert spec.env
        assert spec.get_key_url.startswith("https://")
        # Speech has no conversations; at Azure a model is what each person calls a deployment.
        assert spec.default_model or spec.adapter == "http" or spec.id == "azure_openai"
        assert spec.adapter in ADAPTERS
        assert not spec.personal_base_url


def test_custom_gives_its_own_address() -> None:
    """The custom provider has no address and no operator's variable: each person gives both."""
    custom = Catalog().get("custom")
    assert custom.personal_base_url
    assert custom.standalone
    assert (custom.base_url, custom.env) == ("", ())
    assert [f.name for f in custom.fields] == ["name", "base_url", "api_key", "model"]
    assert [f.name for f in custom.fields if f.secret] == ["api_key"]
    assert [f.name for f in custom.fields if f.required] == ["base_url"]


def test_a_local_server_is_the_operators() -> None:
    """The local server is offered at the operator's address only, and people are not asked for one."""
    for urls in ({}, {"local": "http://localhost:11434/v1"}):
        catalog, _ = build_catalog(Settings(base_urls=urls, allow_custom_providers=True), ())
        assert ("local" in catalog) is bool(urls)
        assert "custom" in catalog
    assert [field.name for field in catalog.get("local").fields] == ["api_key"]


def test_keys_travel_in_a_header_only() -> None:
    """A key is sent in a header, never in a URL; without a key nothing is sent."""
    for spec in PROVIDERS:
        if isinstance(spec.auth, Auth):
            headers = spec.auth.headers({"api_key": "k-1"})
            assert len(headers) == 1
            assert headers.popitem()[1] in ("k-1", "Bearer k-1", "Token k-1")
            assert spec.auth.headers({"api_key": ""}) == spec.auth.headers({}) == {}
        secrets = {field.name for field in spec.fields if field.secret}
        for path in (spec.base_url, spec.check.path, spec.check.models_path or "/"):
            assert path.startswith(("/", "https://")) or spec.standalone
            assert "key=" not in path
            assert not secrets & set(names_in(path))


def test_every_rule_can_fit() -> None:
    """A rule is in lower case, as answers are compared, and stands behind none that takes all its answers."""
    for spec in PROVIDERS:
        rules = sorted(spec.check.rules, key=lambda rule: not (rule.contains or rule.path))
        for place, rule in enumerate(rules):
            assert rule.contains == rule.contains.lower()
            assert rule.status
            assert not rule.reason or rule.reason.endswith(".")
            for earlier in rules[:place]:
                wider = set(rule.status) <= set(earlier.status)
                value = (rule.path, rule.equals, rule.place)
                same = (earlier.path, earlier.place) == ("", "both") or (
                    (earlier.path, earlier.equals, earlier.place) == value
                )
                takes_all = wider and same and earlier.contains in rule.contains
                assert not takes_all, (earlier, rule)


def test_unknown_provider_is_not_repeated() -> None:
    """A key that was pasted as the provider's id is not repeated."""
    with pytest.raises(UnknownProviderError) as caught:
        Catalog().get("sk-proj-CANARY")
    assert "CANARY" not in f"{caught.value!r}{caught.value.__dict__}"
    assert caught.value.provider is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [("opnai", "openai"), ("OpenIA", "openai"), ("antropic", "anthropic"), ("zzz", None)],
)
def test_a_misspelt_provider_is_answered_with_the_one_that_is_meant(
    name: str, meant: str | None
) -> None:
    """Of a near id the right one is said, and never what was given."""
    with pytest.raises(UnknownProviderError) as caught:
        Catalog(PROVIDERS).get(name)
    advice = f". Did you mean {meant!r}?" if meant else ""
    assert str(caught.value) == f"This provider is not available here{advice}"


def test_some_providers_only() -> None:
    """The operator's choice keeps its order, an alias in it will do, and for a misspelt name the nearest is named."""
    catalog = Catalog().only(["grok", "openai"])
    assert [spec.id for spec in catalog] == ["xai", "openai"]
    with pytest.raises(UnknownProviderError):
        catalog.get("groq")
    misspelt = r"BYOK_PROVIDERS: there is no provider 'opnai'. .* 'openai'\?"
    for name, words in (("opnai", misspelt), ("zzz", r"'zzz'\. There are openai, .*custom\.$")):
        with pytest.raises(ConfigurationError, match=words):
            Catalog().only([name])


def test_registered_provider() -> None:
    """A host's own provider is in its catalog only; a taken id or alias is refused, and leaves nothing behind."""
    catalog = Catalog()
    for id, aliases in (("openai", ()), ("gemini", ()), ("mine", ("groq",))):
        with pytest.raises(ConfigurationError, match="is registered twice"):
            catalog.register(ProviderSpec(id=id, name="Another", aliases=aliases))
    assert len(catalog) == len(PROVIDERS)
    assert "mine" not in catalog
    catalog.register(ProviderSpec(id="mine", name="Mine", aliases=("own",)))
    assert catalog.get("own").name == "Mine"
    assert "mine" not in Catalog()


def test_malformed_ids() -> None:
    """An id has lower-case letters, digits and underscores: it stands in URLs, names and contexts."""
    for bad in ("", "OpenAI", "1st", "my-provider", "a b", "x" * 41, "é", "a/b"):
        with pytest.raises(ConfigurationError, match="Provider id"):
            Catalog([ProviderSpec(id=bad, name="Bad")])


def check(status: int, body: bytes, api_key: str = "") -> Verdict:
    """Judge an answer to a check by one rule."""
    rule = Rule((401, 403), Verdict.INVALID, contains='"code":"invalid_api_key"')
    spec = ProviderSpec(id="mine", name="Mine", check=CheckSpec(rules=(rule,)))
    return judge(spec, Answer(status, body), "check", {"api_key": api_key}).verdict


def test_a_rule_fits_by_status_and_text() -> None:
    """White space and case do not matter in JSON; the status and the text do."""
    body = b'{"error": {"code" : "INVALID_api_key"}}'
    assert check(401, body) is check(403, body) is Verdict.INVALID
    assert check(400, body) is check(401, b'{"code": "other"}') is Verdict.UNCHECKED
    assert check(401, b'no JSON: "code":"INVALID_API_KEY"') is Verdict.INVALID


def test_no_body_breaks_the_judge() -> None:
    """Web pages, bytes and bombs of brackets are no verdict on a key, in a check or in a call."""
    for body in (b"<html>NO</html>", b"\xff\xfe", b"[" * 100_000, b"", b"null"):
        for status in (200, 401, 500):
            assert check(status, body).valid is None
            for spec in PROVIDERS:
                judged = judge(spec, Answer(status, body), "call", elsewhere=True)
                assert judged.verdict.valid is not False
                assert judged.reason.endswith(".")


@given(api_key=st.text("abcXYZ019-_", min_size=8, max_size=40))
def test_a_key_does_not_decide_its_own_verdict(api_key: str) -> None:
    """An answer that repeats the key is judged without it."""
    rule = Rule((400,), Verdict.INVALID, contains=api_key.lower())
    spec = ProviderSpec(id="mine", name="Mine", check=CheckSpec(rules=(rule,)))
    answer = Answer(400, f'{{"message": "{api_key}"}}'.encode())
    for place in ("check", "call"):
        assert judge(spec, answer, place).verdict is Verdict.INVALID
        assert judge(spec, answer, place, {"api_key": api_key}).verdict is Verdict.UNCHECKED


def test_a_name_is_no_secret() -> None:
    """What a person calls a server of their own is not taken out of what the server says."""
    answer = Answer(429, b'{"error": {"message": "No.", "code": "insufficient_quota"}}')
    found = judge(Catalog().get("custom"), answer, "call", {"name": "quota", "api_key": "sk-1"})
    assert found.verdict is Verdict.VALID_NO_CREDIT


@pytest.mark.parametrize(
    ("named", "seconds"),
    [
        ("90", 90),
        ("0.2", 1),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Mon, 99999999999999 Jan 2020 00:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("1e400", None),
        ("soon", None),
    ],
)
def test_when_to_ask_again(named: str, seconds: int | None) -> None:
    """Seconds and dates are read, never rounded down; what makes no sense is no answer and no error."""
    assert Answer(429, b"", {"retry-after": named}).retry_after == seconds


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "moment"), (3, "moment"), (30, "30 seconds"), (600, "10 minutes"), (83451, "24 hours")],
)
def test_the_time_to_wait_is_told(seconds: int | None, told: str) -> None:
    """The sentence for people says how long to wait, where the provider says so."""
    answer = Answer(429, b"{}", {"retry-after": str(seconds)} if seconds else {})
    judged = judge(Catalog().get("openai"), answer, "call")
    assert told in str(judged.error("openai", "user", answer.retry_after))


@pytest.mark.parametrize("place", ["check", "call"])
@pytest.mark.parametrize("status", [403, 404])
def test_a_page_is_no_api(place: Any, status: int) -> None:
    """A web page in place of an answer is about the address, not about the model or the key's permissions."""
    answer = Answer(status, b"<!doctype html><title>Not here</title>")
    judged = judge(Catalog().get("mistral"), answer, place)
    assert (judged.verdict, judged.kind) == (Verdict.UNCHECKED, "request_refused")
    assert "web page" in judged.reason


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("together", {"message": "Unexpected endpoint"}),
        ("together", {}),
        ("custom", {"data": [], "error": "Unexpected endpoint"}),
    ],
)
def test_a_success_has_the_documented_shape(provider: str, body: object) -> None:
    """An answer of status 200 that is another thing says nothing about the key."""
    answer = Answer(200, json.dumps(body).encode())
    assert judge(Catalog().get(provider), answer, "check").verdict is Verdict.UNCHECKED


@pytest.mark.parametrize("left", [0, -0.01, -3])
def test_less_than_nothing_is_no_credit(left: float) -> None:
    """A limit that is overdrawn is no credit either."""
    answer = Answer(200, json.dumps({"data": {"limit_remaining": left}}).encode())
    found = judge(Catalog().get("openrouter"), answer, "check")
    assert found.verdict is Verdict.VALID_NO_CREDIT


def test_addresses_are_pinned_and_hold_no_secret() -> None:
    """A field that leads to a host has a pattern or choices, in the check's address too, and a secret is in none."""
    server = Field("server", secret=False)
    for wrong in (
        {"check": CheckSpec(path="https://{server}/me")},
        {"base_url": "https://{server}/v1"},
        {"base_url": "https://example.com/{api_key}"},
    ):
        with pytest.raises(ConfigurationError, match="'mine'"):
            Catalog([ProviderSpec(id="mine", name="Mine", fields=(Field(), server), **wrong)])


RULE = Rule((401,), Verdict.INVALID)


def ruled(**wrong: Any) -> CheckSpec:
    """Return a check with a rule of which something is wrong."""
    return CheckSpec(rules=(replace(RULE, **wrong),))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        *(
            ({"check": CheckSpec(**{name: path})}, "one slash")
            for name in ("path", "models_path")
            for path in (
                "m/list",
                ".evil.example/x",
                "@evil.example",
                "//evil.example/x",
                "",
                "/\\evil",
            )
        ),
        ({"check": CheckSpec(path="http://evil.example/x")}, "https://"),
        ({"check": CheckSpec(path="https://acme.co\\@evil.example/x")}, "https://"),
        ({"check": CheckSpec(path="https://acme.co@evil.example/x")}, "https://"),
        ({"check": CheckSpec(path="/{nope}")}, "'nope'.*api_key"),
        ({"base_url": "https://api.acme.co/{nope}"}, "'nope'.*api_key"),
        ({"base_url": "https://api.acme.co/{}"}, "no field is called ''"),
        ({"base_url": "https://api.acme.co/{"}, "braces"),
        ({"base_url": "api.acme.co/v1"}, "https://api.example.com/v1"),
        ({"base_url": "http://api.acme.co/v1"}, "https://api.example.com/v1"),
        ({"base_url": "https://"}, "https://api.example.com/v1"),
        ({"base_url": None}, "base_url"),
        ({"auth": Auth("X-Key", "{token}")}, "'token'.*api_key"),
        ({"auth": SigV4("polly")}, "'region'.*api_key"),
        ({"auth": "X-Key"}, "auth.*Auth"),
        ({"adapter": "openia"}, "openai, anthropic, google, http"),
        ({"shape": "("}, "shape"),
        ({"fields": (Field(pattern="["),)}, "api_key"),
        ({"fields": (Field(), Field())}, "api_key, api_key"),
        ({"fields": ()}, "one field"),
        ({"fields": Field()}, "fields is a tuple"),
        ({"fields": (Field(kind="hidden"),)}, "secret, text, choice, json"),  # type: ignore[arg-type]
        ({"env": "ACME_KEY"}, "env is a tuple"),
        ({"prefixes": "spk-"}, "prefixes is a tuple"),
        ({"check": ruled(status=401)}, r"status is a tuple.*\(401,\)"),
        ({"check": ruled(verdict="rejected")}, "verdict is one of valid, .*invalid"),
        ({"check": ruled(kind="no_money")}, "no_credit.*not 'no_money'"),
        ({"check": ruled(place="calls")}, "place is one of both, check, call"),
        ({"check": CheckSpec(method="PUT")}, "method is one of GET, POST"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_row_is_refused(fake: FakeProviders, wrong: dict[str, Any], told: str) -> None:
    """What is wrong with a host's own provider is told at its registration, and by the fakes, with what to write."""
    spec = ProviderSpec(**{"id": "mine", "name": "Mine", "base_url": "https://api.acme.co"} | wrong)
    for register in (BYOK().register_provider, Catalog().register, fake.add_provider):
        with pytest.raises(ConfigurationError, match=f"Provider 'mine': .*{told}"):
            register(spec)


def test_lists_and_words_will_do() -> None:
    """A row with lists for tuples and a verdict's word for the verdict is as good as one with them."""
    lists: dict[str, Any] = {
        "env": ["ACME_KEY"],
        "prefixes": ["spk-"],
        "check": ruled(verdict="invalid"),
    }
    spec = Catalog([ProviderSpec(id="mine", name="Mine", **lists)]).get("mine")
    assert (spec.env, spec.prefixes) == (("ACME_KEY",), ("spk-",))
    assert judge(spec, Answer(401, b"{}"), "check").verdict.valid is False


def test_one_variable_may_be_two_providers() -> None:
    """Two providers may name the same variable."""
    rows = [ProviderSpec(id=name, name=name, env=("ACME_KEY",)) for name in ("one", "two")]
    assert len(Catalog(rows)) == 2
