"""The shared clients: who shares what, and what they never hold."""

from __future__ import annotations

import os
import warnings

import httpx2
import pytest

from flask_byok.errors import RateLimitedError
from flask_byok.http.outbound import RETRY_SECONDS, Endpoint, Outbound, Slots
from flask_byok.testing import FakeProviders

OPENAI = Endpoint("https://api.openai.com/v1", "catalog")
GROQ = Endpoint("https://api.groq.com/openai/v1", "catalog")
MINE = Endpoint("https://llm.example.com/v1", "personal")


def call(client: httpx2.Client, fake: FakeProviders, owner: int) -> None:
    """Make a chat call with an owner's key."""
    api_key = fake.api_key("openai", owner=owner)
    client.post(
        fake.base_url("openai") + "/chat/completions",
        headers={"Authorization": f"Bearer {api_key}"},
        json={"model": "m", "messages": [{"role": "user", "content": f"owner:{owner}"}]},
    )


def test_catalog_endpoints_share_one_client() -> None:
    """One pool serves the catalog and the operator's endpoints; a person's endpoint has one of its own."""
    outbound = Outbound()
    operators = Endpoint("http://gateway:8080/v1", "operator")
    pools = [outbound.client_for(e)._transport for e in (OPENAI, GROQ, operators, MINE, MINE)]
    assert len(set(map(id, pools[:3]))) == 1
    assert len(set(map(id, pools))) == 3


def test_a_client_is_keyless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No header that could hold a key, no credentials, no proxy of the environment, no cookie."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
    client = Outbound().client_for(OPENAI)
    assert set(client.headers) == {"accept", "accept-encoding", "connection", "user-agent"}
    assert client.auth is None
    assert client._mounts == {}
    client.cookies.set("session", "1", domain="api.openai.com")
    assert len(client.cookies.jar) == 0


def test_closing_a_client_leaves_others_working(fake: FakeProviders) -> None:
    """An SDK's `with` or `close()` does not end other people's calls."""
    outbound = Outbound()
    client = outbound.client_for(Endpoint(fake.base_url("openai"), "operator"))
    with client:
        call(client, fake, 1)
    client.close()
    call(client, fake, 2)
    assert [made.status for made in fake.calls] == [200, 200]
    assert len(client._transport._pool.connections) == 1, "which is used again"


def test_a_forked_process_opens_its_own_connections(fake: FakeProviders) -> None:
    """A child never writes into a connection that it shares with its parent."""
    outbound = Outbound()
    endpoint = Endpoint(fake.base_url("openai"), "operator")
    parents = outbound.client_for(endpoint)
    call(parents, fake, 1)
    fake.api_key("openai", owner=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads; the child uses none of them
        child = os.fork()
    if not child:
        status = 1
        try:
            own = outbound.client_for(endpoint)
            call(own, fake, 2)
            status = 0 if own is not parents else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    call(parents, fake, 3)
    assert [made.status for made in fake.calls] == [200, 200, 200]


def test_an_owner_has_a_few_slots_and_all_have_some() -> None:
    """The third of one owner and the fifth of all are rejected; a call that ended counts no more."""
    slots = Slots(4, 2, "calls")
    taken = [slots.take(owner) for owner in ("a", "a", "b", None)]
    for owner in ("a", "c", None):
        with pytest.raises(RateLimitedError) as caught:
            slots.take(owner)
        assert caught.value.retry_after == RETRY_SECONDS
    for give_back in taken:
        give_back()
    for owner in ("a", "b"):
        taken = [slots.take(owner) for _ in range(2)]
        with pytest.raises(RateLimitedError):
            slots.take(owner)
    assert len(slots._running) == 4
