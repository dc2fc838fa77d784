"""Fake providers: one real HTTP server on 127.0.0.1 that speaks every provider's wire format."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from http.cookies import CookieError, SimpleCookie
from itertools import count
from types import TracebackType
from typing import Any

from ..catalog import Catalog, ProviderSpec
from ..catalog.checked import checked
from . import anthropic_wire, google_wire, hostile, openai_wire, refusals
from .api_keys import ApiKeyBook, make_api_key, name_in, sample
from .calls import CallLog, RecordedCall
from .chat import reply_text
from .script import Refusal, Script, ScriptQueue, check_kind
from .served import DEMO, base_path, read_api_key
from .server import HOST, FakeServer, Received
from .service_accounts import account_in, account_json, certificates, email_of
from .wire import BEHAVIOURS, Answer, Reply, Request, json_answer

_FORMATS: dict[str, Callable[[Request], Reply]] = {
    "openai": openai_wire.answer,
    "anthropic": anthropic_wire.answer,
    "google": google_wire.answer,
    "http": refusals.answer,
}


#: OpenRouter lists its models to anyone.
_PUBLIC = ("openrouter", "GET", "/models")


class FakeProviders:
    """A server that behaves as the catalog's providers do, for tests and for the demo.

    ::

        with FakeProviders() as fake:
            app.config["BYOK_BASE_URLS"] = fake.base_urls
            api_key = fake.api_key("openai", "good")
            ...
            assert fake.calls_for("openai")[-1].api_key == api_key

    A key of each behaviour (``BEHAVIOURS``) is known from the start; every other key is bad.
    What comes next can be scripted: ``stream_next``, ``refuse_next``, ``answer_next``. The
    attributes may be set at any time:

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
        self._scripts = ScriptQueue()
        self._specs: dict[str, ProviderSpec] = {}
        self._cookie_numbers = count(1)
        self._server = FakeServer(self._handle, ssl_context)
        scheme = "https" if ssl_context else "http"
        self.origin = f"{scheme}://{HOST}:{self._server.server_address[1]}"
        for spec in (*Catalog.shipped, DEMO):
            self.add_provider(spec)
        self.redirect_to = self.base_url("custom")

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

    def add_provider(self, spec: ProviderSpec) -> None:
        """Serve a provider beside those of the catalog, or one of them in another way.

        :raises ConfigurationError: an app would not take it either.
        """
        checked(spec)
        self._specs[spec.id] = spec
        for behaviour in BEHAVIOURS[:-1]:
            self._register(spec, behaviour)

    def base_url(self, provider: str) -> str:
        """Return what the provider's own SDK takes as its base URL."""
        spec = self._spec(provider)
        return f"{self.origin}/{spec.id}{base_path(spec)}"

    @property
    def base_urls(self) -> dict[str, str]:
        """The base URL of every provider of the catalog, for ``app.config["BYOK_BASE_URLS"]``.

        Without those where each person names a server, and without "demo", which an app must add itself.
        """
        specs = (spec for spec in self._specs.values() if spec.id != DEMO.id)
        return {spec.id: self.base_url(spec.id) for spec in specs if not spec.personal_base_url}

    def hostile_url(self, kind: str) -> str:
        """Return the base URL of an endpoint that means harm (`hostile.KINDS`)."""
        if kind not in hostile.KINDS:
            raise ValueError(f"No hostile endpoint {kind!r}; there are {', '.join(hostile.KINDS)}.")
        return f"{self.origin}/hostile/{kind}"

    def api_key(self, provider: str, behaviour: str = "good", owner: object = None) -> str:
        """Return a key of the provider's shape and register what it does.

        The same arguments give the same key; another `owner` gives another one.
        A key that was revoked stays revoked. Of several secrets it is the one that names the
        account, such as AWS's access key ID; a service account's is the content of its file.
        """
        spec = self._spec(provider)
        name = self._register(spec, behaviour, owner)
        return account_json(name) if spec.main_field.kind == "json" else name

    def fields(
        self, provider: str, behaviour: str = "good", owner: object = None
    ) -> dict[str, str]:
        """Return a whole credential: `api_key`'s key, and what else the provider requires, such as a region."""
        spec = self._spec(provider)
        values = {spec.main_field.name: self.api_key(provider, behaviour, owner)}
        if spec.personal_base_url:
            values["base_url"] = self.base_url(provider)
        needed = (each for each in spec.fields if each.required or each.default)
        return {each.name: values.get(each.name) or sample(each) for each in needed} | values

    def add_key(self, provider: str, api_key: str, behaviour: str = "good") -> None:
        """Register a key of your own; an empty one lets calls without a key do this."""
        self._api_keys.add(self._spec(provider).id, name_in(api_key), behaviour)

    def revoke(self, provider: str, api_key: str) -> None:
        """Treat this key as a bad one from now on."""
        self.add_key(provider, api_key, "bad")

    def answer_next(self, provider: str, status: int, body: object = None, **headers: str) -> None:
        """Script the answer to the provider's next request, with any key; several calls queue up.

        :param headers: further headers, an underscore standing for a hyphen.
        """
        self._scripts.add(self._spec(provider).id, json_answer(status, body, **headers))

    def refuse_next(self, provider: str, kind: str, retry_after: float | None = None) -> None:
        """Script the refusal of the next request whose key is good, as the provider documents it.

        :param kind: see the page on testing; most are the codes of our own errors.
        :param retry_after: seconds that the provider asks to wait.
        :raises ValueError: the provider has no such refusal.
        """
        spec = self._spec(provider)
        check_kind(kind, spec.adapter)
        self._scripts.add(spec.id, Refusal(kind, retry_after))

    def stream_next(self, provider: str, *texts: str, **script: Any) -> None:
        """Script the answer to the next conversation whose key is good; several calls queue up.

        ::

            fake.stream_next("openai", "Once", " upon", finish="length", usage=(9, 2))

        :param texts: the pieces of the text.
        :param script: see :class:`~flask_byok.testing.script.Script`.
        :raises ValueError: the provider's wire format cannot say it.
        """
        spec = self._spec(provider)
        scripted = Script(texts=texts, **script)
        scripted.check(spec.adapter)
        self._scripts.add(spec.id, scripted)

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

    def _register(self, spec: ProviderSpec, behaviour: str, owner: object = None) -> str:
        """Let a key do this, and return by what the requests name it: the key itself, or a service account's email."""
        name = make_api_key(spec.id, behaviour, owner, next(iter(spec.prefixes), ""))
        if spec.main_field.kind == "json":
            name = email_of(name)
        self._api_keys.add(spec.id, name, behaviour, replace=False)
        return name

    def _spec(self, provider: str) -> ProviderSpec:
        if provider in self._specs:
            return self._specs[provider]
        named = (spec for spec in self._specs.values() if provider in spec.aliases)
        if (spec := next(named, None)) is None:
            known = ", ".join(self._specs)
            raise ValueError(f"No fake provider {provider!r}; there are {known}.")
        return spec

    def _handle(self, received: Received) -> Reply:
        provider, _, rest = received.path.lstrip("/").partition("/")
        if provider == "hostile":
            return self._answer_hostile(received, rest)
        if provider not in self._specs:
            return json_answer(404, {"error": "no such provider"})
        return self._answer_provider(received, self._specs[provider], "/" + rest)

    def _answer_hostile(self, received: Received, rest: str) -> Reply:
        kind, _, below = rest.partition("/")
        reply = hostile.answer(kind, f"/{below}", self.redirect_to, self._server.pause)
        self._record(received, "hostile", read_api_key(DEMO, received.headers), reply)
        return reply

    def _answer_provider(self, received: Received, spec: ProviderSpec, path: str) -> Reply:
        api_key = account_in(path) or read_api_key(spec, received.headers)
        behaviour = self._api_keys.behaviour(spec.id, api_key)
        reply: Reply | None = self._scripts.take(spec.id, Answer)
        if reply is None:
            request = self._request(received, spec, path, api_key, behaviour)
            reply = _answer(request)
        self._add_cookie(reply)
        self._record(received, spec.id, api_key, reply)
        wait = self.slow_seconds if behaviour == "slow" else 0.0
        self._server.pause(self.latency + wait + reply.delay)
        return reply

    def _request(
        self,
        received: Received,
        spec: ProviderSpec,
        path: str,
        api_key: str | None,
        behaviour: str,
    ) -> Request:
        good = behaviour in ("good", "slow")
        refusal = self._scripts.take(spec.id, Refusal) if good else None
        return Request(
            spec=spec,
            method=received.method,
            path=path.removeprefix(base_path(spec)),
            query=received.query,
            headers=received.headers,
            body=received.body if isinstance(received.body, dict) else {},
            api_key=api_key,
            outcome=refusal.kind if refusal else behaviour,
            retry_after=refusal.retry_after if refusal else None,
            scripted=partial(self._scripts.take, spec.id, Script),
            pause=self._server.pause,
            revoke=partial(self.revoke, spec.id, api_key or ""),
        )

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


def _answer(request: Request) -> Reply:
    if account_in(request.path):
        return certificates(request.kind)
    route = (request.provider, request.method, request.path)
    if request.kind and route != _PUBLIC:
        return refusals.refused(request, request.kind)
    return _FORMATS[request.spec.adapter](request)


def _read_cookies(received: Received) -> dict[str, str]:
    header = received.headers.get("cookie", "")
    try:
        jar = SimpleCookie(header)
    except CookieError:
        return {"": header}
    return {name: morsel.value for name, morsel in jar.items()}
