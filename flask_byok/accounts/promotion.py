"""Move keys out of a session to the user who signed in: into the account, or where there is none within the session."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..catalog import ProviderSpec
from ..errors import SessionRequiredError
from ..keys.lookup import Resolver
from ..model.credential import CredentialRecord
from ..model.owner import Caller, SessionRef, Tier
from .promotion_work import Promotion, PromotionParts, ToAccount, WithinSession

if TYPE_CHECKING:
    from .store.keys import AccountStore


class Promoter:
    """Promotes keys.

    :param accounts: where they go; None where users have no keys beyond their session.
    """

    def __init__(
        self, parts: PromotionParts, accounts: AccountStore | None, resolver: Resolver
    ) -> None:
        self._parts = parts
        self._accounts = accounts
        self._resolver = resolver

    def promote(
        self,
        caller: Caller,
        session: SessionRef,
        specs: Sequence[ProviderSpec],
        *,
        replace: bool,
        own: bool,
    ) -> Promotion:
        """Make what waits for these providers the user's, beyond the session where there are accounts.

        A key that only the operator may set, or that does not open, is left where it is; with
        ``BYOK_PROMOTE="never"`` nothing of a visitor's is taken.

        :param replace: put it in the place of a key that the user has already.
        :param own: promote what the user has in the session too; with ``replace`` what waits comes before it, else
            it comes before what waits.
        :raises SessionRequiredError: the session has ended.
        """
        view = self._parts.sessions.read(session, caller.identity, [spec.id for spec in specs])
        if not view.alive:
            raise SessionRequiredError
        if self._parts.settings.promote == "never":
            view = dataclasses.replace(view, visitor_records={})
        if self._accounts is None:
            providers = self._free(caller, specs, view.visitor_records, None)
            return WithinSession(self._parts, caller, session, view, replace).run(providers)
        candidates = {**view.visitor_records, **(view.records if own else {})}
        providers = self._free(caller, specs, candidates, Tier.USER)
        work = ToAccount(
            self._parts,
            caller,
            session,
            view,
            replace,
            accounts=self._accounts,
            own=own,
            specs={spec.id: spec for spec in specs},
        )
        return work.run(providers)

    def _free(
        self,
        caller: Caller,
        specs: Sequence[ProviderSpec],
        there: Mapping[str, CredentialRecord],
        tier: Tier | None,
    ) -> list[str]:
        """Return those that there is something for, and whose keys are not the operator's alone to set."""
        found = (spec for spec in specs if spec.id in there)
        return [spec.id for spec in found if not self._resolver.locked_for(caller, spec, tier)]
