"""Many people's calls over TLS: on the shared pool, against a new SDK client for each call.

The provider is a process of its own, so that the processor time is the caller's.
"""

from __future__ import annotations

import multiprocessing
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import certifi
from cryptography import x509
from openai import OpenAI

from flask_byok.catalog import Catalog
from flask_byok.http import Outbound
from flask_byok.model.credential import Credential, Secret
from flask_byok.model.owner import Tier
from flask_byok.providers import BaseProvider, make_provider
from flask_byok.testing import FakeProviders
from tests.http.certificates import make_certificate

from .measure import show

PEOPLE = 400
MODEL = "gpt-4o-mini"
HELLO: Any = [{"role": "user", "content": "Hello"}]


def bench_keys() -> None:
    """Call 400 times with 400 keys, in one thread and in 16."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as fake:
        tls = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        outbound, base_url = Outbound(tls=tls), fake.base_url("openai")
        keys = [fake.api_key("openai", owner=str(number)) for number in range(PEOPLE)]
        fresh = "a new SDK client for each call"
        kinds: dict[str, dict[str, Callable[[str], object]]] = {
            "calls": {
                "provider.client": lambda key: call_client(made(outbound, base_url, key)),
                fresh: partial(call_fresh, base_url),
            },
            "streams": {
                "stream_chat": lambda key: stream(made(outbound, base_url, key)),
                fresh: partial(stream_fresh, base_url),
            },
        }
        for kind, ways in kinds.items():
            for threads in (1, 16):
                times = {name: measure(call, keys, threads) for name, call in ways.items()}
                for which, clock in enumerate(("wall time", "processor time")):
                    title = (
                        f"{PEOPLE} {kind} with {PEOPLE} keys over TLS, {threads} at once, {clock}"
                    )
                    each = {name: taken[which] for name, taken in times.items()}
                    show(title, each, against=next(iter(ways)), goal="≥ × 10")


@contextmanager
def served(folder: Path) -> Iterator[FakeProviders]:
    """Serve fake providers over https from another process, which this one's environment trusts.

    The certificate stands among those of a system: a client that reads them all takes as long as on a real host.
    """
    own, bundle = folder / "own.pem", folder / "all.pem"
    make_certificate(own, x509.IPAddress(ip_address("127.0.0.1")))
    bundle.write_bytes(Path(certifi.where()).read_bytes() + own.read_bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own)
    fake = FakeProviders(context)
    for number in range(PEOPLE):
        fake.api_key("openai", owner=str(number))  # the server knows them from now on
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(fake,), daemon=True)
    process.start()
    os.environ["SSL_CERT_FILE"] = str(bundle)
    try:
        yield fake
    finally:
        del os.environ["SSL_CERT_FILE"]
        process.kill()


def _serve(fake: FakeProviders) -> None:
    fake.start()
    while True:
        time.sleep(60)


def measure(call: Callable[[str], object], keys: list[str], threads: int) -> tuple[float, float]:
    """Return the wall time and the processor time of a call, in microseconds."""
    call(keys[0])
    wall, own = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(call, keys))
    return (
        (time.perf_counter() - wall) / len(keys) * 1e6,
        (time.process_time() - own) / len(keys) * 1e6,
    )


def made(outbound: Outbound, base_url: str, api_key: str) -> BaseProvider:
    """Return what a view is given."""
    fields = {"api_key": Secret(api_key)}
    owner = f"session:{api_key}"
    credential = Credential("openai", Tier.SESSION, owner, fields, base_url, trust="operator")
    return make_provider(Catalog().get("openai"), credential, outbound)


def call_fresh(base_url: str, api_key: str) -> object:
    """Ask as a host without flask-byok does."""
    with OpenAI(api_key=api_key, base_url=base_url) as client:
        return client.chat.completions.create(model=MODEL, messages=HELLO).choices


def stream_fresh(base_url: str, api_key: str) -> object:
    """Stream as a host without flask-byok does."""
    with OpenAI(api_key=api_key, base_url=base_url) as client:
        return list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))


def call_client(provider: BaseProvider) -> object:
    """Ask with the SDK's client that flask-byok makes."""
    return provider.client.chat.completions.create(model=MODEL, messages=HELLO).choices


def stream(provider: BaseProvider) -> object:
    """Stream without an SDK."""
    return list(provider.stream_chat(HELLO, MODEL))


if __name__ == "__main__":
    bench_keys()
