"""What the core asks of the wing of accounts: the one interface between them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..catalog import ProviderSpec
from ..errors import NotAllowedError, OwnerRequiredError
from ..model.credential import Credential, Fields, RecordedVerdict
from ..model.owner import Caller, Tier

if TYPE_CHECKING:
    from .lookup import Found, Specs
    from .save import Destination
    from .service import Service

_NO_ACCOUNTS = "No keys are kept in accounts here."


@dataclass(frozen=True, slots=True)
class Promotion:
    """Provider ids by what happened to the session's keys.

    ``promoted``: the key is the user's own now, or was before; then only the session's copy goes.
    ``kept``: another key of the user's own stayed, and the visitor's stays pending. A provider is in both if
    the user's own session key was promoted and the visitor's was not.
    """

    promoted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


class Accounts:
    """Keys that outlive the session, with their audit log and usage counts.

    As it stands this is an app that keeps keys in sessions only: nothing is found, logged or counted. The wing
    overrides it. Methods that act on more than the database are given the core. Every method raises
    ``StoreError`` if the database does not answer.
    """

    #: The tiers that are kept here.
    tiers: tuple[Tier, ...] = ()

    def probe(self) -> None:
        """Raise if keys cannot be found here.

        :raises ConfigurationError: the encryption key is a wrong one, or the tables are outdated.
        """

    def find(self, caller: Caller, specs: Specs) -> Found:
        """Return the keys of these tiers that may serve the caller, read in one statement."""
        return {}

    def over(self, owner: str, versions: Collection[str]) -> set[str]:
        """Return those versions of the owner's session records that were promoted, replaced or cleared."""
        return set()

    def note(
        self,
        caller: Caller,
        action: str,
        provider: str,
        fields: Fields | None = None,
        *,
        outcome: str = "done",
        ended: Collection[str] = (),
    ) -> set[str]:
        """Log what a signed-in caller does in the session or at a provider, before it is done; a removal afterwards.

        A visitor has no name that a log could keep, so visitors' actions are not logged.

        :param ended: versions of session records that are over with this event.
        :return: those of them that were not over before.
        :raises StoreError: the event could not be written; an action that is not yet done must not go ahead.
        """
        return set()

    def main_place(self, core: Service, caller: Caller, spec: ProviderSpec) -> Destination:
        """Return where a key goes that the caller keeps in the account."""
        raise NotAllowedError(_NO_ACCOUNTS)

    def clear(self, caller: Caller, provider: str) -> bool:
        """Delete the caller's keys for a provider, and return True if there were any."""
        return False

    def record_verdict(
        self, credential: Credential, verdict: RecordedVerdict, asked_by: Caller | None = None
    ) -> None:
        """Store a verdict about a key of these tiers.

        :param asked_by: the caller who asked for the check, which is then logged.
        """

    def count(self, use: Any) -> None:
        """Add uses to the owner's statistics."""

    def promote(
        self, core: Service, caller: Caller, specs: Specs, *, replace: bool, own: bool
    ) -> Promotion:
        """Move keys from the caller's session into the account.

        :param replace: also in the place of a key that the account has already.
        :param own: the caller asks for it: also what was saved in the session since signing in.
        """
        raise NotAllowedError(_NO_ACCOUNTS)

    def forget(self, caller: Caller, owner: str) -> list[str]:
        """Delete everything of an owner but the audit log, and return the providers that had keys."""
        return []

    def own(self, core: Service, caller: Caller) -> Any:
        """Return the caller's own records.

        :raises OwnerRequiredError: the caller is not signed in.
        :raises NotAllowedError: users have no keys in accounts here.
        """
        if not caller.authenticated:
            raise OwnerRequiredError("Sign in to see the keys in your account.")
        raise NotAllowedError(_NO_ACCOUNTS)

    def shared(self, core: Service, caller: Caller) -> Any:
        """Return all teams' and the system's records, for an admin.

        :raises OwnerRequiredError: the caller is not signed in.
        :raises NotAllowedError: the caller is no admin, or there are no shared keys here.
        """
        if not caller.authenticated:
            raise OwnerRequiredError("Sign in as an admin to see shared keys.")
        if not caller.admin:
            raise NotAllowedError("Only admins see and change shared keys.")
        raise NotAllowedError("No shared keys are kept in the database here.")
