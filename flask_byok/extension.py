"""The Flask extension: wires one app, and gives views the verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from flask import Flask, Response

from .catalog import Catalog, ProviderSpec
from .errors import (
    ByokError,
    ConfigurationError,
    InvalidFieldError,
    MissingCredentialError,
    SessionRequiredError,
)
from .keys.typed import NewKey
from .model.credential import Credential, Secret, Validation
from .model.owner import identity_of
from .redaction import install_log_redaction
from .settings import Settings, ValidateOnSet
from .web.bodies import typed_fields
from .web.caller import (
    EXTENSION,
    ByokState,
    Loaders,
    current_caller,
    established_caller,
    get_state,
    name_sources,
    note_use,
    user_of,
)
from .web.host_database import find_database, warn_if_late
from .web.keys_api import create_blueprint
from .web.login import at_sign_out, is_login_fresh, signed_in_user
from .web.problems import problem_response
from .web.session_binding import SessionBinding, app_name, check_session_interface, index_key
from .web.sse import stream_response
from .web.ui import UI, register_pages
from .wiring import build_service

if TYPE_CHECKING:
    from .providers import BaseProvider

_F = TypeVar("_F", bound=Callable[..., Any])


class BYOK:
    """Bring your own API key, for Flask apps.

    One object serves any number of apps; what belongs to an app lies in ``app.extensions["byok"]``.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._registered: list[ProviderSpec] = []
        self._catalogs: WeakSet[Catalog] = WeakSet()
        self._loaders = Loaders(
            owner=signed_in_user, team=tuple, admin=bool, fresh_login=is_login_fresh
        )
        if app is not None:
            self.init_app(app)

    def __repr__(self) -> str:
        return f"BYOK({len(self._catalogs)} apps)"

    def init_app(self, app: Flask) -> None:
        """Set up an app: read its settings, build its parts, add routes, hooks and the template global.

        :raises ConfigurationError: a setting is missing, malformed or unsafe; the message says what to do.
        """
        if EXTENSION in app.extensions:
            raise ConfigurationError(
                "flask-byok is set up for this app already: call init_app once."
            )
        settings = Settings.from_config(app.config)
        check_session_interface(app)
        state = self._build_state(app, settings)
        app.extensions[EXTENSION] = state
        self._catalogs.add(state.service.catalog)
        state.binding.init_app(app)
        if state.uses_database:
            warn_if_late(app, state.database)
        blueprint = create_blueprint(settings.url_prefix)
        register_pages(blueprint)
        app.register_blueprint(blueprint)
        app.register_error_handler(ByokError, problem_response)
        app.after_request(name_sources)
        app.jinja_env.globals["byok"] = UI(state)
        install_log_redaction()
        at_sign_out(app, state.binding.end)

    def _build_state(self, app: Flask, settings: Settings) -> ByokState:
        if not app.secret_key:
            raise ConfigurationError("SECRET_KEY is not set: sessions and CSRF tokens need it.")
        index = index_key(app.secret_key)
        database = find_database(app, settings)
        name = app_name(index)
        service = build_service(app, settings, self._registered, database, name=name)
        return ByokState(
            app,
            settings,
            service,
            SessionBinding(service.sessions, index, self._identity),
            self._loaders,
            database,
        )

    def _identity(self) -> str:
        return identity_of(user_of(self._loaders))

    # what the host tells us

    def owner_loader(self, loader: Callable[[], str | None]) -> Callable[[], str | None]:
        """Register the function that returns the signed-in user's id, or None for a visitor.

        It must answer the same throughout a session, whatever the path or the headers: another answer means that
        somebody else is there, and the session's keys are deleted.

        An id is text or a number, of up to 250 characters; another is a mistake that the log names, and answered 500.
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
        """Register the function that says whether the signed-in user administers shared keys."""
        self._loaders.admin = loader
        return loader

    def fresh_login_loader(self, loader: Callable[[], bool]) -> Callable[[], bool]:
        """Register the function that says whether the user has just signed in, by default Flask-Login's word.

        Only then is the value of a key shown, where ``BYOK_ALLOW_REVEAL`` allows that at all.
        """
        self._loaders.fresh_login = loader
        return loader

    def register_provider(self, spec: ProviderSpec) -> None:
        """Offer a provider beside the catalog's, in apps set up before and after.

        :raises ConfigurationError: its id or an alias is taken.
        """
        for catalog in self._catalogs:
            catalog.register(spec)
        self._registered.append(spec)

    # the verbs

    def resolve(self, provider: str) -> Credential:
        """Return the credential that serves the present caller.

        :raises MissingCredentialError: no tier has a key.
        :raises RejectedCredentialError: the provider refused the key that would be used.
        :raises UnreadableCredentialError: the key that would be used does not open.
        """
        state = get_state()
        return note_use(state.service.resolve(current_caller(state), provider))

    def get_api_key(self, provider: str) -> str:
        """Return the API key itself; empty where a provider can do without. For its errors see ``resolve``.

        :raises InvalidFieldError: the provider has no field ``api_key``; ``get_service_config`` has those it has.
        """
        spec = get_state().service.catalog.get(provider)
        if all(field.name != "api_key" for field in spec.fields):
            raise InvalidFieldError(f"{spec.name} has no field 'api_key'.", provider=spec.id)
        return self.resolve(provider).api_key

    def get_api_keys(self, providers: Iterable[str]) -> dict[str, str]:
        """Return the API keys by provider; one round of look-ups.

        Providers without a key are left out, and those whose credential has other fields than ``api_key``.

        :raises RejectedCredentialError: a provider refused the key that would be used.
        :raises UnreadableCredentialError: a key that would be used does not open.
        """
        state = get_state()
        caller = current_caller(state)
        found = state.service.resolve_many(caller, list(providers), field="api_key")
        return {provider: note_use(one).api_key for provider, one in found.items()}

    def get_service_config(self, provider: str) -> Mapping[str, str]:
        """Return every field of the credential as a mapping; for its errors see ``resolve``."""
        credential = self.resolve(provider)
        spec = get_state().service.catalog.get(provider)
        fields = {name: secret.reveal() for name, secret in credential.fields.items()}
        # The base URL that a person typed is a field too, kept apart because it decides where the key goes.
        return {**fields, "base_url": credential.base_url} if spec.personal_base_url else fields

    def missing_keys(self, providers: Iterable[str]) -> list[str]:
        """Return those of these providers that have no key; one round of look-ups.

        :raises RejectedCredentialError: a provider refused the key that would be used.
        :raises UnreadableCredentialError: a key that would be used does not open.
        """
        state = get_state()
        return state.service.missing(current_caller(state), list(providers))

    def require_keys(self, *providers: str) -> Callable[[_F], _F]:
        """Decorate a view: without a key for each of these providers it answers 409 ``key_missing``."""

        def decorate(view: _F) -> _F:
            @wraps(view)
            def guarded(*args: Any, **kwargs: Any) -> Any:
                if missing := self.missing_keys(providers):
                    raise MissingCredentialError(
                        f"An API key is needed for: {', '.join(missing)}. Add it in the API key settings.",
                        provider=missing[0],
                    )
                return view(*args, **kwargs)

            return guarded  # type: ignore[return-value]  # the same signature

        return decorate

    def list_keys(self) -> list[dict[str, Any]]:
        """Return the status of every provider for the present caller."""
        state = get_state()
        providers: list[dict[str, Any]] = state.service.get(
            current_caller(state), need_session=False
        )["providers"]
        return providers

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
        validate: ValidateOnSet | None = None,
    ) -> dict[str, Any]:
        """Store a key for the present caller.

        :param fields: instead of ``api_key``, for a provider with other fields.
        :param persist: keep it in the account of the signed-in user, beyond the session.
        :param expires_at: with a time zone.
        :param base_url: the person's own, for a provider that takes one.
        :param validate: how strictly to check it: ``"off"``, ``"warn"`` or ``"require"``; by default as
            ``BYOK_VALIDATE_ON_SET`` says, which cannot be loosened where it is ``"require"``.
        :return: the provider's status, as ``list_keys`` has it, and under ``validation`` what the check found
            (``Validation.to_dict``), None where there was none.
        :raises InvalidFieldError: one of these cannot be used, or the key is in the label or description.
        :raises MalformedApiKeyError: this cannot be a key.
        :raises KeyRefusedError: the check forbids storing; what was there before stays.
        """
        state = get_state()
        new = NewKey(
            fields=_typed(api_key, fields) or {},
            base_url=base_url,
            label=label,
            description=description,
            expires_at=expires_at,
            validate=validate,
            persist=persist,
        )
        try:
            status, found = state.service.set(established_caller(state), provider, new)
        except SessionRequiredError:  # it has expired: begin anew, as loading the list does
            anew = established_caller(state, anew=True)
            status, found = state.service.set(anew, provider, new)
        return {**status, "validation": None if found is None else found.to_dict()}

    def clear(self, provider: str, tier: str = "all") -> list[str]:
        """Delete the present caller's key and return the tiers it was in.

        :param tier: ``"session"``, ``"user"`` (the account) or ``"all"``.
        :raises InvalidFieldError: it is another word.
        """
        state = get_state()
        return state.service.clear(current_caller(state), provider, tier)[0]

    def forget_user(self, user_id: str) -> list[str]:
        """Delete all that is kept of a user whom you delete, or whoever gets this id later has their keys.

        These are the account's keys, each noted in the audit log, and what was counted of them. The log stays; keys
        of a session end with it.

        :return: the providers that there were keys for.
        """
        state = get_state()
        return state.service.forget(current_caller(state), identity_of(user_id))

    def validate(
        self,
        provider: str,
        api_key: str | None = None,
        *,
        fields: Mapping[str, str] | None = None,
        base_url: str | None = None,
    ) -> Validation:
        """Ask the provider about a key, by default the one in use."""
        state = get_state()
        typed = _typed(api_key, fields)
        return state.service.validate(current_caller(state), provider, typed, base_url)

    def promote(
        self, providers: list[str] | None = None, on_conflict: str = "keep"
    ) -> dict[str, list[str]]:
        """Keep for the signed-in user what was saved before signing in; by default for all providers.

        :param on_conflict: where the user has a key already, ``"keep"`` that one or ``"replace"`` it.
        :return: the providers under ``promoted`` and ``kept``.
        :raises InvalidFieldError: ``on_conflict`` is another word.
        """
        state = get_state()
        return state.service.promote(current_caller(state), providers, on_conflict)

    def end_session(self) -> None:
        """Delete the present session's keys; call it where you sign somebody out.

        Flask-Login's ``logout_user()``, ``session.clear()`` and a changed owner are noticed without it.
        """
        get_state().binding.end()

    def stream_response(
        self,
        provider: BaseProvider,
        messages: Iterable[Mapping[str, Any]],
        model: str | None = None,
    ) -> Response:
        """Return a ``text/event-stream`` answer with the provider's reply; see ``web.sse``."""
        return stream_response(provider, messages, model)


def _typed(api_key: str | None, fields: Mapping[str, str] | None) -> dict[str, Secret] | None:
    return typed_fields(
        None if api_key is None else Secret(api_key),
        None if fields is None else {name: Secret(value) for name, value in fields.items()},
    )
