"""The clouds and the speech services: addresses made of fields, and how each key travels."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from flask_byok.catalog import Catalog
from flask_byok.errors import EndpointNotAllowedError

HOSTS = {
    "azure_openai": ".openai.azure.com",
    "azure_speech": ".api.cognitive.microsoft.com",
    "bedrock": ".amazonaws.com",
    "databricks": ".azuredatabricks.net",
    "snowflake": ".snowflakecomputing.com",
    "elevenlabs": ".elevenlabs.io",
    "deepgram": ".deepgram.com",
    "assemblyai": ".assemblyai.com",
    "revai": ".rev.ai",
    "cloudflare": "api.cloudflare.com",
    "vertex": "aiplatform.googleapis.com",
}
FIELDS = {
    "azure_openai": {"resource": "my-resource"},
    "azure_speech": {"region": "westeurope"},
    "bedrock": {"region": "eu-central-1"},
    "databricks": {"host": "adb-123.4.azuredatabricks.net"},
    "snowflake": {"account": "myorg-account1"},
    "cloudflare": {"account_id": "0123456789abcdef" * 2},
    "vertex": {"project": "my-project"},
}


@pytest.mark.parametrize(
    ("provider", "name", "typed", "value"),
    [
        ("azure_openai", "resource", "https://my-res.openai.azure.com/openai/v1/", "my-res"),
        ("azure_openai", "resource", "my-res.services.ai.azure.com", "my-res"),
        ("azure_openai", "resource", "my-res", "my-res"),
        ("databricks", "host", "https://a.azuredatabricks.net/?o=1", "a.azuredatabricks.net"),
        ("databricks", "host", "https://a.azuredatabricks.net.evil.com/", None),
        ("databricks", "host", "1.2.gcp.databricks.com", "1.2.gcp.databricks.com"),
        ("snowflake", "account", "https://org-acc.snowflakecomputing.com", "org-acc"),
        ("snowflake", "account", "xy1.eu-central-1", "xy1.eu-central-1"),
        ("bedrock", "region", "us-west-2", "us-west-2"),
        ("bedrock", "region", "us-gov-west-1", None),
        ("bedrock", "region", "cn-north-1", None),
        ("aws", "region", "cn-northwest-1", None),
        ("aws", "access_key_id", "AKIA0123456789ABCDEF", "AKIA0123456789ABCDEF"),
        ("aws", "access_key_id", "AROA0123456789ABCDEF", None),
        ("cloudflare", "account_id", "cfut_0123", None),
    ],
)
def test_a_field_takes_the_name_out_of_an_address(
    provider: str, name: str, typed: str, value: str | None
) -> None:
    """A pasted address gives the part that is asked for; what cannot be one is refused."""
    field = next(each for each in Catalog().get(provider).fields if each.name == name)
    assert field.read(typed) == value


@pytest.mark.parametrize("provider", HOSTS)
def test_addresses_stay_with_the_provider(provider: str) -> None:
    """Base URL and check of a provider lead to its own host over https, whatever the choice."""
    spec = Catalog().get(provider)
    choices = next((each.choices for each in spec.fields if each.choices), ("",))
    for choice in choices:
        fields = FIELDS.get(provider) or {"region": choice}
        urls = [spec.url(spec.base_url, fields)]
        urls += [spec.url(spec.check.path, fields)] if "://" in spec.check.path else []
        for url in map(urlsplit, urls):
            assert url.scheme == "https"
            assert f".{url.hostname}".endswith(HOSTS[provider])
            assert url.port is None
            assert url.username is None


HOSTILE = (
    *("evil.com", "evil.com/", "evil.com#", "a@evil.com", "a b", "", "..", "a/../b", "[::1]"),
    *("x.openai.azure.com.evil.com", "https://evil.com/x.openai.azure.com", "evil.com\\x"),
    *("databricks.com", "cloud.databricks.com.evil.com", "evil.com?.azuredatabricks.net"),
    *("a.snowflakecomputing.com.evil.com/", "evil.com:443", "127.0.0.1:80", "x\ny", "ä", "a%2e"),
)


@pytest.mark.parametrize("provider", HOSTS)
def test_no_text_leads_to_another_host(provider: str) -> None:
    """A hostile text in any field either is refused or still makes an address of the provider."""
    spec = Catalog().get(provider)
    names = [field.name for field in spec.fields if not field.secret]
    for name in names:
        for text in HOSTILE:
            fields = {**FIELDS.get(provider, {}), name: text}
            try:
                url = urlsplit(spec.url(spec.base_url, fields))
            except EndpointNotAllowedError:
                continue
            assert f".{url.hostname}".endswith(HOSTS[provider]), (name, text)


@pytest.mark.parametrize(
    ("provider", "header"),
    [
        ("azure_openai", {"api-key": "k"}),
        ("azure_speech", {"Ocp-Apim-Subscription-Key": "k"}),
        ("elevenlabs", {"xi-api-key": "k"}),
        ("assemblyai", {"Authorization": "k"}),
        ("deepgram", {"Authorization": "Token k"}),
        ("gladia", {"x-gladia-key": "k"}),
        ("revai", {"Authorization": "Bearer k"}),
        ("bedrock", {"Authorization": "Bearer k"}),
        ("databricks", {"Authorization": "Bearer k"}),
        ("cloudflare", {"Authorization": "Bearer k"}),
        ("snowflake", {"Authorization": "Bearer k"}),
        ("local", {"Authorization": "Bearer k"}),
    ],
)
def test_each_key_travels_as_its_provider_wants(provider: str, header: dict[str, Any]) -> None:
    """The key is in one header, in the provider's form, and in no address; without a key there is none."""
    spec = Catalog().get(provider)
    assert spec.auth.headers({"api_key": "k"}) == header
    assert spec.auth.headers({}) == {}
    assert "{api_key}" not in spec.base_url + spec.check.path
