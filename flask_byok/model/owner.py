"""Who is asking, and whose a credential is.

An owner is written as one string: ``session:<id>``, ``user:<id>``, ``team:<id>`` or ``system``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import AddressValueError, IPv6Address, IPv6Network

from ..errors import SessionRequiredError


class Tier(StrEnum):
    """A place in the lookup order."""

    SESSION = "session"
    USER = "user"
    TEAM = "team"
    SYSTEM = "system"
    SECRET = "secret"  # noqa: S105  (the name of a tier, not a secret)
    ENV = "env"


#: The tiers that hold one person's own keys.
PERSONAL_TIERS = (Tier.SESSION, Tier.USER)
#: The tiers that hold the operator's own keys.
OPERATOR_TIERS = frozenset({Tier.SYSTEM, Tier.SECRET, Tier.ENV})
#: The tiers that the database keeps, apart from sessions.
ACCOUNT_TIERS = frozenset({Tier.USER, Tier.TEAM, Tier.SYSTEM})


#: Characters in the id of a user or a team: what the database has room for, less the kind in front.
LONGEST_ID = 250


@dataclass(slots=True)
class Saved:
    """What the host's session knows of its keys: under which ref (None: there are none), and for which providers.

    If the store has lost keys, it still has those that no call has told of. ``write`` changes the entry of the host's
    session. ``telling`` is False if a loss is for a later call to tell.
    """

    ref: str | None
    providers: frozenset[str]
    write: Callable[[str | None, frozenset[str]], None]
    telling: bool = True

    def note(self, ref: str | None, providers: frozenset[str] = frozenset()) -> None:
        """Take in where keys are saved now, and for which providers."""
        if (ref, providers) != (self.ref, self.providers):
            self.ref, self.providers = ref, providers
            self.write(ref, providers)


@dataclass(frozen=True, slots=True)
class SessionRef:
    """A server-side session as the session store knows it.

    ``sid`` is a keyed hash of the host's session id, never the id itself; while the host's secret key is rotated
    one for each key, with spaces between. ``ref`` names what is stored for the session; it stays the same when the
    session id is renewed.
    """

    sid: str
    ref: str
    saved: Saved | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Caller:
    """The person on whose behalf a call is made, as the host's loaders say.

    ``user`` is the host's user id, None for a visitor. ``session`` is None if no session is established.
    ``address`` is the network address that a visitor's attempts are counted by. ``request_id`` links the audit
    log's rows of one request; it never comes from the client. ``command`` marks an operator's command, and ``named``
    a caller whom the host's code names: one without a session, and without a user the operator.
    """

    user: str | None = None
    session: SessionRef | None = None
    teams: tuple[str, ...] = ()
    admin: bool = False
    address: str = ""
    request_id: str | None = None
    command: bool = False
    named: bool = False

    @property
    def actor(self) -> str:
        """The caller's name in the audit log: ``user:<id>``, ``cli`` or ``system``."""
        return "cli" if self.command else self.identity or "system"

    @property
    def authenticated(self) -> bool:
        """True if a user is signed in."""
        return self.user is not None

    @property
    def identity(self) -> str:
        """Name who uses the session: ``user:<id>``, or an empty string for a visitor."""
        return identity_of(self.user)

    @property
    def counted_as(self) -> str:
        """Name whose attempts and calls are counted: the user's, else the network address's.

        A visitor can always start again.
        """
        return self.identity or f"address:{_network(self.address)}"

    def require_session(self) -> SessionRef:
        """Return the established session.

        :raises SessionRequiredError: there is none.
        """
        if self.session is None:
            raise SessionRequiredError
        return self.session

    def account_owners(self) -> list[tuple[Tier, str]]:
        """Name the owners whose keys in the database may serve this caller, with their tiers, in order."""
        mine = [(Tier.USER, self.identity)] if self.authenticated else []
        teams = [(Tier.TEAM, f"team:{team}") for team in self.teams]
        return [*mine, *teams, (Tier.SYSTEM, "system")]


def _network(address: str) -> str:
    """Return the unit that is counted: for IPv6 the first 64 bits, as each network has 2**64 addresses to use up."""
    try:
        ipv6 = IPv6Address(address)
    except AddressValueError:
        return address
    return str(ipv6.ipv4_mapped or IPv6Network((int(ipv6), 64), strict=False))


def identity_of(user: str | None) -> str:
    """Name a user, or a visitor, as sessions do: ``user:<id>``, or an empty string."""
    return "" if user is None else f"user:{user}"


def session_owner(session: SessionRef, identity: str) -> str:
    """Name the owner of a session's record: ``session:<ref>``, and the identity of a signed-in user."""
    return f"session:{session.ref}/{identity}" if identity else f"session:{session.ref}"


def tier_of(owner: str) -> Tier:
    """Return the tier that an owner's keys belong to."""
    return Tier(owner.partition(":")[0])
