"""Move what a visitor saved to the user who signed in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from .catalog import ProviderSpec
from .credentials import CredentialRecord
from .errors import SessionRequiredError, UnreadableCredentialError
from .keyring import Context, Keyring
from .owners import Caller, SessionRef
from .resolver import Resolver
from .sealing import open_record, seal, session_owner
from .stores.base import SessionStore


@dataclass(frozen=True, slots=True)
class Promotion:
    """Provider ids by what became of the visitor's key; ``kept`` means that the user's own key stayed."""

    promoted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def promote_waiting(
    caller: Caller,
    session: SessionRef,
    specs: Iterable[ProviderSpec],
    *,
    replace: bool,
    sessions: SessionStore,
    keyring: Keyring,
    resolver: Resolver,
) -> Promotion:
    """Make what waits for these providers the user's own, each in the very step that deletes the visitor's.

    A key that only the operator may set, or that does not open, is left where it is.

    :param replace: put it in the place of a key that the user has already.
    :raises SessionRequiredError: the session has ended.
    """
    wanted = {spec.id: spec for spec in specs}
    view = sessions.read(session, caller.identity, list(wanted))
    if not view.alive:
        raise SessionRequiredError
    result = Promotion()
    for provider, spec in wanted.items():
        record = view.visitor_records.get(provider)
        if record is None or resolver.locked_for(caller, spec):
            continue
        adopted = _adopt(keyring, session, caller, record)
        if adopted is None:
            result.unreadable.append(provider)
            continue
        outcome = sessions.adopt(session, caller.identity, adopted, replace=replace)
        if outcome == "adopted":
            result.promoted.append(provider)
        elif outcome == "kept":
            result.kept.append(provider)
    return result


def _adopt(
    keyring: Keyring, session: SessionRef, caller: Caller, record: CredentialRecord
) -> CredentialRecord | None:
    """Return the record sealed for the user; None where it does not open."""
    owner = session_owner(session, caller.identity)
    try:
        fields, base_url = open_record(keyring, "session", session_owner(session, ""), record)
    except UnreadableCredentialError:
        return None
    context = Context("session", owner, record.provider)
    # The key is the same, so its version and what is known about it stay.
    return dataclasses.replace(
        record, owner=owner, ciphertext=seal(keyring, context, fields, base_url)
    )
