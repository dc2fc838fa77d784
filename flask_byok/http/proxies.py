"""The proxy for calls out, and the certificate authorities that calls trust, where the operator sets them."""

from __future__ import annotations

import ssl
import time
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]  # which typeshed leaves out
    getproxies_environment,
    proxy_bypass_environment,
)

import httpcore2
import httpx2

from ..errors import ConfigurationError
from .addresses import is_local_host
from .connections import GuardedBackend
from .transport import Origin, origin_of

#: The value of a setting that takes what the environment says.
ENVIRONMENT = "environment"


class Proxies:
    """Tells which proxy, if any, a URL is called through.

    :param setting: a proxy's URL, or ``environment`` for ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and
        ``NO_PROXY`` as they are now; None: no proxy.
    :raises ConfigurationError: a variable holds something else than the URL of an HTTP proxy.
    """

    def __init__(self, setting: str | None) -> None:
        self._urls = {"all": setting} if setting else {}
        if setting == ENVIRONMENT:
            self._urls = getproxies_environment()
        for name in {"http", "https", "all"} & self._urls.keys():
            url = self._urls[name]
            self._urls[name] = url = url if "://" in url else f"http://{url}"
            if urlsplit(url).scheme not in ("http", "https"):
                variable = f"{name.upper()}_PROXY"
                raise ConfigurationError(f"BYOK_PROXY: {variable} is not the URL of an HTTP proxy.")

    def find(self, origin: Origin) -> str | None:
        """Return the proxy's URL. A local name or address is called directly: a proxy has another network."""
        if not self._urls:
            return None
        scheme, host, port = origin
        if is_local_host(host) or proxy_bypass_environment(f"{host}:{port}", self._urls):
            return None
        return self._urls.get(scheme) or self._urls.get("all")


def make_pool(
    backend: GuardedBackend, tls: ssl.SSLContext, proxy: str | None, *, by_address: bool
) -> httpcore2.ConnectionPool:
    """Return a pool of connections.

    :param proxy: its URL; None: no proxy.
    :param by_address: resolve and judge names here, and have the proxy connect to the address. A proxy that resolves
        a person's name could be led into its own network; a name of the catalog has its certificate.
    """
    options: dict[str, Any] = {
        "ssl_context": tls,
        "max_connections": 1000,
        "max_keepalive_connections": 100,
        "keepalive_expiry": 30.0,
        "network_backend": backend,
    }
    if proxy is None:
        return httpcore2.ConnectionPool(**options)
    read = httpx2.Proxy(proxy)
    scheme, host, port = origin_of(read.url)
    backend.chosen.add((host, port))
    through = httpcore2.Proxy(
        str(read.url), read.raw_auth, ssl_context=tls if scheme == "https" else None
    )
    if not by_address:
        return httpcore2.ConnectionPool(**options, proxy=through)
    return _AddressPool(backend, **options, proxy=through)


class _AddressPool(httpcore2.ConnectionPool):
    """Resolves and judges names itself, and names addresses to its proxy."""

    def __init__(self, backend: GuardedBackend, **options: Any) -> None:
        super().__init__(**options)
        self._backend = backend

    def handle_request(self, request: httpcore2.Request) -> httpcore2.Response:
        url, host = request.url, request.url.host.decode()
        port = url.port or (443 if url.scheme == b"https" else 80)
        seconds = request.extensions.get("timeout", {}).get("connect") or 5.0
        address = self._backend.addresses(host, port, time.monotonic() + seconds)[0]
        shown = f"[{address}]" if ":" in address else address
        to_address = httpcore2.Request(
            request.method,
            httpcore2.URL(scheme=url.scheme, host=shown.encode(), port=port, target=url.target),
            headers=request.headers,
            content=request.stream,
            # The certificate must still be the name's.
            extensions={**request.extensions, "sni_hostname": host},
        )
        return super().handle_request(to_address)


@cache
def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Return a TLS context, one in a process for each setting: reading the certificate authorities takes 15 ms.

    :param ca_file: a PEM file of authorities beside the system's; or ``environment`` for those of ``SSL_CERT_FILE`` or
        ``SSL_CERT_DIR`` instead of the system's.
    :raises ConfigurationError: it cannot be read.
    """
    try:
        context = httpx2.create_ssl_context(trust_env=ca_file == ENVIRONMENT)
        if ca_file not in (None, ENVIRONMENT):
            context.load_verify_locations(ca_file)
    except OSError as error:
        name = "SSL_CERT_FILE or SSL_CERT_DIR" if ca_file == ENVIRONMENT else ca_file
        raise ConfigurationError(
            f"BYOK_CA_FILE: {name} cannot be read as certificates in PEM ({type(error).__name__}). Check the path, "
            "its permissions and what is in it."
        ) from None
    return context
