"""The Flask extension: sets up apps, and offers the verbs to views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial, wraps
from typing import Any, TypeVar
from weakref import WeakSet

from flask import Flask, before_render_template

from .catalog import Catalog, ProviderSpec
from .catalog.checked import checked
from .errors import ByokError, ConfigurationError, InvalidFieldError, MissingCredentialError
from .factory import stream_response
from .keys.health import HealthFacts
from .keys.service import Service
from .keys.status import Status
from .keys.typed import NewKey
from .metrics import switch_on
from .model.credential import Credential, Secret, Validation
from .model.owner import Caller, Tier, identity_of
from .redaction import install_log_redaction
from .settings import Settings, ValidateOnSet
from .web import caller, host_setup
from .web.blueprint import answer_health, create_blueprint
from .web.caller import for_caller, get_state
from .web.gateway import create_gateway
from .web.guards import go_first, refuse_unrouted
from .web.keys_api import HEALTH, TypedKey, judged
from .web.problems import problem_response
from .web.session_binding import SessionBinding, check_session_interface, index_key, secret_keys
from .web.session_guard import guard_sessions
from .web.ui import UI
from .wiring import build_service

_F = TypeVar("_F", bound=Callable[..., Any])

_UNSIGNED = (
    "SECRET_KEY is not set: sessions and CSRF tokens need it. Set app.config['SECRET_KEY'] to a secret of this host's "
    "that stays the same, such as one that 'python -c \"import secrets; print(secrets.token_hex())\"' prints."
)


class BYOK:
    """Bring your own API key, for Flask apps.

    One object serves any number of apps; the state of each is in ``app.extensions["byok"]``.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._registered: list[ProviderSpec] = []
        self._catalogs: WeakSet[Catalog] = WeakSet()
        self._loaders = caller.Loaders()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set up an app: read its settings, build its parts, add routes, hooks and the template global.

        :raises ConfigurationError: a setting is missing, invalid or unsafe; the message says what to do.
        """
        host_setup.refuse_taken_names(app, caller.EXTENSION)
        settings = Settings.from_config(app.config)
        keeps_sessions = Tier.SESSION in settings.precedence
        if keeps_sessions:
            check_session_interface(app)
        if not app.secret_key:
            raise ConfigurationError(_UNSIGNED)
        if settings.metrics:
            switch_on(settings.metrics)
        database, loaders = host_setup.find_database(app, settings), self._loaders
        service = build_service(app, settings, self._registered, database)
        index_keys = [index_key(one) for one in secret_keys(app)]
        binding = SessionBinding(service.sessions, index_keys, loaders.identity, keeps_sessions)
        state = caller.ByokState(settings, service, binding, loaders, database)
        app.extensions[caller.EXTENSION] = state
        self._catalogs.add(service.catalog)
        app.jinja_env.globals["byok"] = UI()
        used = database if state.uses_database else None
        first = partial(host_setup.warn_of_late_setup, app, used)
        guard_sessions(app, settings.url_prefix + HEALTH.path, answer_health, first)
        app.register_blueprint(create_blueprint(settings.url_prefix))
        if settings.gateway:
            app.register_blueprint(create_gateway(settings.url_prefix))
        for sentence in host_setup.collisions(app):
            raise ConfigurationError(sentence)
        unrouted = refuse_unrouted(settings.url_prefix, gateway=settings.gateway)
        caller.follow_requests(app, binding, go_first, unrouted)
        if ByokError not in app.error_handler_spec[None][None]:  # the host may show errors itself
            app.register_error_handler(ByokError, problem_response)
        before_render_template.connect(host_setup.warn_of_hidden, app)
        install_log_redaction()

    # what the host tells us

    def owner_loader(self, loader: Callable[[], str | None]) -> Callable[[], str | None]:
        """Register the function that returns the signed-in user's id, or None for a visitor.

        It must return the same id throughout a session, for any path and headers: another id means another person, and
        deletes the session's keys. An id is text of up to 250 characters, a whole number or a UUID; anything else
        is answered 500, and the log names the loader.
        """
        self._loaders.owner = loader
        return loader

    def team_loader(self, loader: Callable[[], Iterable[str]]) -> Callable[[], Iterable[str]]:
        """Register the function that returns the ids of the signed-in user's teams, as a list.

        A team whose id is no text of up to 250 characters is left out, and the log says so.
        """
        self._loaders.team = loader
        return loader

    def admin_loader(self, loader: Callable[[], bool]) -> Callable[[], bool]:
        """Register the function that returns True if the signed-in user administers shared keys."""
        self._loaders.admin = loader
        return loader

    def fresh_login_loader(self, loader: Callable[[], bool]) -> Callable[[], bool]:
        """Register the function that returns True if the user has just signed in; by default Flask-Login's.

        Only then, and only with ``BYOK_ALLOW_REVEAL``, is the value of a key shown.
        """
        self._loaders.fresh_login = loader
        return loader

    def register_provider(self, spec: ProviderSpec) -> None:
        """Add a provider to the catalog, in apps set up before and after.

        :raises ConfigurationError: its id or an alias is taken, or its description cannot be used.
        """
        spec = checked(spec)
        for catalog in self._catalogs:
            catalog.register(spec)
        self._registered.append(spec)

    # whose keys, where no request tells

    def acting_for(self, user_id: str, teams: Iterable[str] = ()) -> AbstractContextManager[None]:
        """Use this user's account keys within a ``with`` block, then the shared ones.

        For jobs, threads and commands; it needs an app context. Uses are counted and logged as this user's. It wins
        over the present request, and an inner block over an outer one. Keys in sessions are not found.

        :param user_id: as the owner loader returns it.
        :param teams: as the team loader returns them.
        :raises ConfigurationError: the id or the list of teams is invalid, or there is no app context.
        """
        return caller.naming(caller.person(user_id, teams))

    def as_operator(self) -> AbstractContextManager[None]:
        """Use the operator's own keys within a ``with`` block; see ``acting_for``."""
        return caller.naming(Caller(named=True))

    # the verbs

    def resolve(self, provider: str) -> Credential:
        """Return the credential that serves the present caller.

        :raises MissingCredentialError: no tier has a key.
        :raises RejectedCredentialError: the provider rejected the key that would be used.
        :raises UnreadableCredentialError: the key that would be used does not open.
        :raises SessionRequiredError: the session store has lost the session's keys; the next call goes on without.
        :raises OwnerRequiredError: there is no request, and neither ``acting_for`` nor ``as_operator``.
        """
        return caller.note_use(for_caller(Service.resolve, provider))

    def get_api_key(self, provider: str) -> str:
        """Return the API key itself; empty if the provider works without. See ``resolve`` for the errors.

        :raises InvalidFieldError: the provider has no field ``api_key``; ``get_service_config`` returns its fields.
        """
        spec = get_state().service.catalog.get(provider)
        if all(field.name != "api_key" for field in spec.fields):
            raise InvalidFieldError(f"{spec.name} has no field 'api_key'.", provider=spec.id)
        return self.resolve(provider).api_key

    def get_api_keys(self, providers: Iterable[str]) -> dict[str, str]:
        """Return the API keys by provider, with one round of look-ups.

        Leaves out providers without a key, and those whose credential has other fields than ``api_key``.

        :raises RejectedCredentialError: a provider rejected the key that would be used.
        :raises UnreadableCredentialError: a key that would be used does not open.
        """
        found = for_caller(Service.resolve_many, list(providers))
        return {provider: caller.note_use(one).api_key for provider, one in found.items()}

    def get_service_config(self, provider: str) -> Mapping[str, str]:
        """Return every field of the credential as a mapping. See ``resolve`` for the errors."""
        credential = self.resolve(provider)
        spec = get_state().service.catalog.get(provider)
        fields = {name: secret.reveal() for name, secret in credential.fields.items()}
        # A personal base URL is a field too, stored apart because it decides where the key goes.
        return {**fields, "base_url": credential.base_url} if spec.personal_base_url else fields

    def missing_keys(self, providers: Iterable[str]) -> list[str]:
        """Return those of the providers that have no key, with one round of look-ups.

        :raises RejectedCredentialError: a provider rejected the key that would be used.
        :raises UnreadableCredentialError: a key that would be used does not open.
        """
        return for_caller(Service.missing, list(providers))

    def require_keys(self, *providers: str) -> Callable[[_F], _F]:
        """Decorate a view: without a key for each of the providers it answers 409 ``key_missing``."""

        def decorate(view: _F) -> _F:
            @wraps(view)
            def guarded(*args: Any, **kwargs: Any) -> Any:
                if missing := self.missing_keys(providers):
                    text = f"An API key is needed for: {', '.join(missing)}. Add it in the API key settings."
                    raise MissingCredentialError(text, provider=missing[0])
                return view(*args, **kwargs)

            return guarded  # type: ignore[return-value]  # the same signature

        return decorate

    def list_keys(self) -> list[Status]:
        """Return the status of every provider for the present caller."""
        return for_caller(Service.get, need_session=False)["providers"]

    def set(
        self,
        provider: str,
        api_key: str | None = None,
        *,
        fields: Mapping[str, str] | None = None,
        persist: bool = False,
        label: str | None = None,
        description: str | None = None,
        expires_at: datetime | None = None,
        base_url: str | None = None,
        name: str | None = None,
        model: str | None = None,
        validate: ValidateOnSet | None = None,
    ) -> dict[str, Any]:
        """Store a key for the present caller.

        :param fields: instead of ``api_key``, for a provider with other fields.
        :param persist: keep it in the signed-in user's account, beyond the session.
        :param expires_at: with a time zone.
        :param base_url: the person's own, for a provider that takes one.
        :param name: of an endpoint of the person's own: ``custom`` with the name "My vLLM" is ``custom/my-vllm``.
        :param model: the endpoint's default model.
        :param validate: how to check it: ``"off"``, ``"warn"`` or ``"require"``; by default ``BYOK_VALIDATE_ON_SET``,
            which a call cannot loosen if it is ``"require"``.
        :return: the provider's status, as in ``list_keys``, with the check's result (``Validation.to_dict``) or None
            under ``validation``, and as HTTP answers it what ``looks_like`` tells under ``warnings``. If a store is
            away that the status needs and the saving did not: these two alone.
        :raises InvalidFieldError: a value is invalid, or the label or description contains the key.
        :raises MalformedApiKeyError: the text cannot be a key.
        :raises KeyRefusedError: the check forbids storing it; the key that was there stays.
        """
        state = get_state()
        new = NewKey(
            fields=_typed(api_key, fields, name=name, model=model) or {},
            base_url=base_url,
            label=label,
            description=description,
            expires_at=expires_at,
            validate=validate,
            persist=persist,
        )
        status, found = caller.in_session(state, lambda who: state.service.set(who, provider, new))
        return {**(status or {}), **judged(found, provider, new.fields)}

    def clear(self, provider: str, tier: str = "all") -> list[str]:
        """Remove the present caller's key and return the tiers it was in.

        :param tier: ``"session"``, ``"user"`` (the account) or ``"all"``.
        :raises InvalidFieldError: it is another word.
        """
        return for_caller(Service.clear, provider, tier)[0]

    def forget_user(self, user_id: str) -> list[str]:
        """Delete all data of a user whom you delete, so that a later user with the same id does not inherit the keys.

        Deletes the account's keys, each with an entry in the audit log, and their usage counts. The log itself stays;
        session keys end with their session.

        :return: the providers of the deleted keys.
        """
        state = get_state()
        return state.service.accounts.forget(caller.actor(state), identity_of(user_id))

    def validate(
        self,
        provider: str,
        api_key: str | None = None,
        *,
        fields: Mapping[str, str] | None = None,
        base_url: str | None = None,
    ) -> Validation:
        """Ask the provider about a key, by default the one in use."""
        return for_caller(Service.validate, provider, _typed(api_key, fields), base_url)

    def looks_like(
        self, provider: str, api_key: str | None = None, *, fields: Mapping[str, str] | None = None
    ) -> str | None:
        """Return the id of another provider whose key this clearly is, if any. Nobody is asked, nothing is stored.

        :raises MalformedApiKeyError: the text holds several keys, or is code without one.
        """
        found = get_state().service.warnings(provider, _typed(api_key, fields))
        return found[0]["provider"] if found else None

    def report_rejected(self, provider: str) -> Validation | None:
        """Say that a call of your own, with the key from ``get_api_key``, was refused for its key.

        The provider is asked before the key is marked as rejected.

        :return: what the provider says of the key; None if it was asked too often (``BYOK_VALIDATE_RATE``).
        :raises MissingCredentialError: no tier has a key.
        """
        return for_caller(Service.report_rejected, provider)

    def promote(
        self, providers: list[str] | None = None, on_conflict: str = "keep"
    ) -> dict[str, list[str]]:
        """Keep in the signed-in user's account what was saved before signing in; by default for all providers.

        :param on_conflict: if the account has a key already, ``"keep"`` that one or ``"replace"`` it.
        :return: the providers under ``promoted`` and ``kept``.
        :raises InvalidFieldError: ``on_conflict`` is another word.
        """
        return for_caller(Service.promote, providers, on_conflict)

    def end_session(self) -> None:
        """Delete the present session's keys; call it where you sign a user out.

        Flask-Login's ``logout_user()``, ``session.clear()`` and a changed owner are noticed without it.
        """
        get_state().binding.end()

    def health(self) -> HealthFacts:
        """Return if keys can be found here, and the state of each store; asked at most once a second.

        ``status`` is ``"ok"``, ``"degraded"`` or ``"down"``. See :ref:`health`.
        """
        return get_state().service.health.look()

    stream_response = staticmethod(stream_response)


def _typed(
    api_key: str | None, fields: Mapping[str, str] | None, **shown: str | None
) -> dict[str, Secret] | None:
    return TypedKey(
        **shown,
        api_key=None if api_key is None else Secret(api_key),
        fields=None if fields is None else {name: Secret(value) for name, value in fields.items()},
    ).typed()
