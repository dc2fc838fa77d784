"""The ``status`` of a provider: what may be shown of its key, and never the key itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, NotRequired, TypedDict, cast

from msgspec import Meta

from ..catalog import ProviderSpec
from ..catalog.endpoints import is_named
from ..catalog.spec import FieldFacts
from ..model.credential import State, Timestamp, ValidityFacts, isoformat, utcnow
from ..model.owner import PERSONAL_TIERS, Caller, Tier
from ..settings import MAX_SESSION_LIFETIMES, Settings
from .lookup import Candidate, Lookup


class ProviderFacts(TypedDict):
    """What people see of a provider."""

    provider: str
    name: str
    aliases: list[str]
    standalone: bool
    fields: list[FieldFacts]
    get_key_url: Annotated[str | None, Meta(extra_json_schema={"format": "uri"})]


class PassedOver(TypedDict):
    """A key that would have come first. ``state`` says why it did not serve; others see no hint of a shared key."""

    tier: Tier
    hint: str | None
    state: str


class Status(ProviderFacts):
    """Which key serves a provider's calls for the present caller.

    ``promotable_hint`` is the hint of the key that can be kept in the account. ``operator_names`` are the environment
    variables and files with the operator's keys, for admins only. A key ``expires_soon`` if it works, but expires
    within a week.
    """

    has_key: bool
    source: Tier | None
    tiers: list[Tier]
    can_override: bool
    locked: bool
    hint: str | None
    label: str | None
    state: State | None
    validity: ValidityFacts | None
    created_at: Timestamp | None
    updated_at: Timestamp | None
    expires_at: Timestamp | None
    expires_soon: bool
    last_used_at: Timestamp | None
    usage_count: Annotated[int, Meta(ge=0)]
    promotable: bool
    promotable_hint: str | None
    passed_over: PassedOver | None
    operator_names: NotRequired[list[str]]


class KeyList(TypedDict):
    """The status of every provider, and what applies to all of them.

    ``storage`` describes where keys are kept, in sentences made from the configuration. ``can_persist`` is true if keys
    can be kept in the caller's account.
    """

    providers: list[Status]
    precedence: list[Tier]
    authenticated: bool
    can_persist: bool
    storage: str


def provider_facts(spec: ProviderSpec) -> ProviderFacts:
    """Return what people see of a provider."""
    return {
        "provider": spec.id,
        "name": spec.name,
        "aliases": list(spec.aliases),
        "standalone": spec.standalone,
        # An endpoint keeps its name.
        "fields": [f.to_dict() for f in spec.fields if f.name != "name" or not is_named(spec.id)],
        "get_key_url": spec.get_key_url,
    }


def build_status(
    caller: Caller, spec: ProviderSpec, candidates: Sequence[Candidate], lookup: Lookup
) -> Status:
    """Return the status of one provider.

    ``source`` is the tier of the very candidate that a call would use. If no candidate is usable, ``source`` is None,
    and state and times are those of the first one (an expired key, say).
    """
    chosen = lookup.choose(candidates)
    waiting = next((c for c in candidates if c.state == "waiting"), None)
    present = [c for c in candidates if c.state != "waiting"]
    shown = chosen or (present[0] if present else None)
    locked = lookup.locked(caller, spec, candidates=candidates)
    offered = waiting if waiting and waiting.offered else None
    offered = offered or _own_in_session(caller, spec, candidates, lookup)
    # Members see that a shared key exists, and nothing else about it.
    told = shown or waiting
    record = told.record if told and told.tier in PERSONAL_TIERS else None
    validity = record.current_validity() if record else None
    status: Status = {
        **provider_facts(spec),  # type: ignore[typeddict-item]  # they have no operator_names
        "name": next((c.name for c in candidates if c.name), spec.name),
        "has_key": chosen is not None,
        "source": None if chosen is None else chosen.tier,
        "tiers": list(dict.fromkeys(c.tier for c in present)),
        "can_override": not locked and bool(lookup.personal_tiers(caller)),
        "locked": locked,
        "hint": record.hint if record else None,
        "label": record.label if record else None,
        "state": None if shown is None else cast(State, shown.state),
        "validity": validity.to_dict() if validity else None,
        "created_at": isoformat(record.created_at) if record else None,
        "updated_at": isoformat(record.updated_at) if record else None,
        "expires_at": isoformat(record.expires_at) if record else None,
        "expires_soon": record is not None and record.expires_soon(utcnow()),
        "last_used_at": isoformat(record.last_used_at) if record else None,
        "usage_count": record.usage_count if record else 0,
        "promotable": offered is not None,
        "promotable_hint": offered.record.hint if offered and offered.record else None,
        "passed_over": _passed_over(present, chosen, lookup),
    }
    if caller.admin:
        status["operator_names"] = [c.operator_name for c in present if c.operator_name]
    return status


def _passed_over(
    present: Sequence[Candidate], chosen: Candidate | None, lookup: Lookup
) -> PassedOver | None:
    first = lookup.passed_over(present, chosen)
    if first is None:
        return None
    record = first.record if first.tier in PERSONAL_TIERS else None
    fault = lookup.fault_of(first) or first.state
    return {"tier": first.tier, "hint": record.hint if record else None, "state": fault}


def _own_in_session(
    caller: Caller, spec: ProviderSpec, candidates: Sequence[Candidate], lookup: Lookup
) -> Candidate | None:
    """Return the user's own session key if it works and could be kept in the account."""
    if Tier.USER not in lookup.personal_tiers(caller):
        return None
    if lookup.locked(caller, spec, Tier.USER, candidates):
        return None
    mine = (c for c in candidates if c.tier is Tier.SESSION and c.state == "active")
    return next(mine, None)


def storage_sentence(settings: Settings, caller: Caller, session_store: str) -> str:
    """Describe where this caller's keys are kept and for how long, from the configuration."""
    kept = []
    if Tier.USER in settings.precedence and caller.authenticated:
        longest = settings.max_key_lifetime
        limit = "" if longest is None else f", for {_duration(longest)} at most"
        kept.append(f"Keys in your account stay in the database until you remove them{limit}.")
    if Tier.SESSION in settings.precedence:
        unused = settings.session_ttl
        kept.append(
            f"Keys for this session are kept in {session_store}; they are deleted when you sign out, after "
            f"{_duration(unused)} without use, and after {_duration(unused * MAX_SESSION_LIFETIMES)} at the latest."
        )
    if not kept:
        return "This site uses its own keys. It stores no keys of yours."
    elsewhere = settings.base_urls or settings.allow_custom_providers
    address = " or the address set for it" if elsewhere else ""
    return (
        "Your keys are stored encrypted on this site, and each is used only to call its own provider"
        f"{address}. {' '.join(kept)}"
    )


def _duration(span: timedelta) -> str:
    """Write a time in the largest unit that it has whole, and more than one of."""
    seconds = int(span.total_seconds())
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds % size == 0 and seconds > size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"
