"""Fake providers: one real HTTP server on 127.0.0.1 that speaks every provider's wire format."""

from __future__ import annotations

import ssl
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.cookies import CookieError, SimpleCookie
from itertools import count
from types import TracebackType

from . import anthropic_wire, google_wire, hostile, openai_wire
from .api_keys import SHAPES, ApiKeyBook, make_api_key
from .calls import CallLog, RecordedCall
from .chat import reply_text
from .server import HOST, FakeServer, Received
from .wire import BEHAVIOURS, Answer, Reply, Request, json_answer


@dataclass(frozen=True)
class _Provider:
    base_path: str
    #: Where the key is looked for, in this order.
    api_key_headers: tuple[str, ...]
    answer: Callable[[Request], Reply]


_BEARER = ("authorization",)

# Anthropic's documents say x-api-key; its Python SDK sends a bearer token from version 2 on.
_PROVIDERS = {
    "openai": _Provider("/v1", _BEARER, openai_wire.answer),
    "anthropic": _Provider("", ("x-api-key", "authorization"), anthropic_wire.answer),
    "google": _Provider("", ("x-goog-api-key",), google_wire.answer),
    "groq": _Provider("/openai/v1", _BEARER, openai_wire.answer),
    "xai": _Provider("/v1", _BEARER, openai_wire.answer),
    "openrouter": _Provider("/api/v1", _BEARER, openai_wire.answer),
    "custom": _Provider("/v1", _BEARER, openai_wire.answer),
    "demo": _Provider("/v1", _BEARER, openai_wire.answer),
}


class FakeProviders:
    """A server that behaves as the catalog's providers do, for tests and for the demo.

    ::

        with FakeProviders() as fake:
            app.config["BYOK_BASE_URLS"] = fake.base_urls
            api_key = fake.api_key("openai", "good")
            ...
            assert fake.calls_for("openai")[-1].api_key == api_key

    A key of each behaviour (``BEHAVIOURS``) is known from the start; every other key is bad.
    A stream ends badly on demand: see ``chat.ENDINGS``. The attributes may be set at any time:

    - ``latency``: seconds before each answer.
    - ``slow_seconds``: seconds that a "slow" key waits before a good answer. The default is over
      five, as a check with a shorter time limit would fail good keys.
    - ``set_cookie``: whether each answer sets a cookie of its own.
    - ``redirect_to``: base URL to which ``hostile_url("redirect")`` redirects; the default is the
      custom provider's.

    :param ssl_context: serve https with this server-side context.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None = None) -> None:
        self.latency = 0.0
        self.slow_seconds = 6.0
        self.set_cookie = False
        self._log = CallLog()
        self._api_keys = ApiKeyBook()
        self._scripts: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self._cookie_numbers = count(1)
        self._server = FakeServer(self._handle, ssl_context)
        scheme = "https" if ssl_context else "http"
        self.origin = f"{scheme}://{HOST}:{self._server.server_address[1]}"
        self.redirect_to = self.base_url("custom")
        for provider in SHAPES:
            for behaviour in BEHAVIOURS[:-1]:
                self.api_key(provider, behaviour)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self) -> None:
        """Cut all connections and free the port.

        :raises RuntimeError: when a request met a defect of this server.
        """
        self._server.stop()
        if self._server.faults:
            raise RuntimeError("A fake provider failed.") from self._server.faults[0]

    def __enter__(self) -> FakeProviders:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def chunk_delay(self) -> float:
        """Seconds after each event of a stream."""
        return self._server.chunk_delay

    @chunk_delay.setter
    def chunk_delay(self, seconds: float) -> None:
        self._server.chunk_delay = seconds

    def base_url(self, provider: str) -> str:
        """Return what the provider's own SDK takes as its base URL."""
        return f"{self.origin}/{provider}{_PROVIDERS[provider].base_path}"

    @property
    def base_urls(self) -> dict[str, str]:
        """The base URL of every provider of the catalog, for ``app.config["BYOK_BASE_URLS"]``.

        Without "custom", where each person names a server, and "demo", which an app must add itself.
        """
        offered = _PROVIDERS.keys() - {"custom", "demo"}
        return {provider: self.base_url(provider) for provider in sorted(offered)}

    def hostile_url(self, kind: str) -> str:
        """Return the base URL of an endpoint that means harm (`hostile.KINDS`)."""
        if kind not in hostile.KINDS:
            raise ValueError(f"No hostile endpoint {kind!r}; there are {', '.join(hostile.KINDS)}.")
        return f"{self.origin}/hostile/{kind}"

    def api_key(self, provider: str, behaviour: str = "good", owner: object = None) -> str:
        """Return a key of the provider's shape and register what it does.

        The same arguments give the same key; another `owner` gives another one.
        A key that was revoked stays revoked.
        """
        api_key = make_api_key(provider, behaviour, owner)
        self._api_keys.add(provider, api_key, behaviour, replace=False)
        return api_key

    def add_key(self, provider: str, api_key: str, behaviour: str = "good") -> None:
        """Register a key of your own."""
        self._api_keys.add(provider, api_key, behaviour)

    def revoke(self, provider: str, api_key: str) -> None:
        """Treat this key as a bad one from now on."""
        self._api_keys.add(provider, api_key, "bad")

    def answer_next(self, provider: str, status: int, body: object = None, **headers: str) -> None:
        """Script the answer to the provider's next request, with any key; several calls queue up.

        :param headers: further headers, an underscore standing for a hyphen.
        """
        self._scripts[provider].append(json_answer(status, body, **headers))

    def reply_text(self, provider: str, message: str) -> str:
        """Return the text with which the provider answers a message."""
        return reply_text(provider, message)

    @property
    def calls(self) -> list[RecordedCall]:
        """Every request so far, in order of arrival. Hostile endpoints count as "hostile"."""
        return self._log.all()

    def calls_for(self, provider: str) -> list[RecordedCall]:
        """Every request to this provider so far."""
        return [call for call in self.calls if call.provider == provider]

    def clear_calls(self) -> None:
        """Forget the requests so far."""
        self._log.clear()

    def _handle(self, received: Received) -> Reply:
        provider, _, rest = received.path.lstrip("/").partition("/")
        if provider == "hostile":
            return self._answer_hostile(received, rest)
        if provider not in _PROVIDERS:
            return json_answer(404, {"error": "no such provider"})
        return self._answer_provider(received, provider, "/" + rest)

    def _answer_hostile(self, received: Received, rest: str) -> Reply:
        kind, _, below = rest.partition("/")
        reply = hostile.answer(kind, f"/{below}", self.redirect_to, self._server.pause)
        api_key = _read_api_key(received, _BEARER)
        self._record(received, "hostile", api_key, reply)
        return reply

    def _answer_provider(self, received: Received, provider: str, path: str) -> Reply:
        facts = _PROVIDERS[provider]
        api_key = _read_api_key(received, facts.api_key_headers)
        behaviour = self._api_keys.behaviour(provider, api_key)
        request = Request(
            provider=provider,
            method=received.method,
            path=path.removeprefix(facts.base_path),
            query=received.query,
            headers=received.headers,
            body=received.body if isinstance(received.body, dict) else {},
            api_key=api_key,
            behaviour=behaviour,
            revoke=partial(self.revoke, provider, api_key or ""),
        )
        reply = self._scripted(provider) or facts.answer(request)
        self._add_cookie(reply)
        self._record(received, provider, api_key, reply)
        self._server.pause(self.latency + (self.slow_seconds if behaviour == "slow" else 0))
        return reply

    def _scripted(self, provider: str) -> Answer | None:
        try:
            return self._scripts[provider].popleft()
        except IndexError:
            return None

    def _add_cookie(self, reply: Reply) -> None:
        if self.set_cookie:
            reply.headers["Set-Cookie"] = f"fake_session={next(self._cookie_numbers)}; Path=/"

    def _record(self, received: Received, provider: str, api_key: str | None, reply: Reply) -> None:
        self._log.add(
            RecordedCall(
                provider=provider,
                method=received.method,
                path=received.path,
                api_key=api_key,
                cookies=_read_cookies(received),
                headers=received.headers,
                query=received.query,
                body=received.body,
                status=reply.status,
            )
        )


def _read_api_key(received: Received, headers: tuple[str, ...]) -> str | None:
    name = next((name for name in headers if name in received.headers), "")
    value = received.headers.get(name)
    if name == "authorization" and value is not None:
        scheme, _, value = value.partition(" ")
        return value if scheme.lower() == "bearer" else None
    return value


def _read_cookies(received: Received) -> dict[str, str]:
    header = received.headers.get("cookie", "")
    try:
        jar = SimpleCookie(header)
    except CookieError:
        return {"": header}
    return {name: morsel.value for name, morsel in jar.items()}
