"""What may be said about a provider's key: the ``status`` of the HTTP interface, without any key in it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ..catalog import ProviderSpec
from ..model.credential import CredentialRecord, isoformat, utcnow
from ..model.owner import PERSONAL_TIERS, Caller, Tier
from ..settings import MAX_SESSION_LIFETIMES, Settings
from .lookup import Candidate, Lookup


def build_status(
    spec: ProviderSpec,
    candidates: Sequence[Candidate],
    *,
    caller: Caller,
    lookup: Lookup,
    settings: Settings,
) -> dict[str, Any]:
    """Return the status of one provider as a JSON-able mapping.

    ``source`` is the tier of the very candidate that a call would use. Where none is usable, state and times are of
    the first that is there (an expired key, say), and ``source`` is None.
    """
    chosen = lookup.choose(candidates)
    waiting = next((c for c in candidates if c.state == "waiting"), None)
    present = [c for c in candidates if c.state != "waiting"]
    shown = chosen or (present[0] if present else None)
    locked = lookup.locked(caller, spec, candidates=candidates)
    offered = waiting or _own_in_session(caller, spec, candidates, lookup)
    status: dict[str, Any] = {
        "provider": spec.id,
        "name": spec.name,
        "has_key": chosen is not None,
        "source": None if chosen is None else chosen.tier.value,
        "tiers": list(dict.fromkeys(c.tier.value for c in present)),
        "can_override": not locked and bool(lookup.personal_tiers(caller)),
        "locked": locked,
        "standalone": spec.standalone,
        "state": None if shown is None else shown.state,
        "promotable": offered is not None,
        "promotable_hint": offered.record.hint if offered and offered.record else None,
        "fields": [f.to_dict() for f in spec.fields],
        "get_key_url": spec.get_key_url,
    }
    status |= _record_facts(_shown_record(shown, waiting))
    if caller.admin:
        status["operator_names"] = [c.operator_name for c in present if c.operator_name]
    return status


def _own_in_session(
    caller: Caller, spec: ProviderSpec, candidates: Sequence[Candidate], lookup: Lookup
) -> Candidate | None:
    """Return a key of the user's own that ends with the session, and could be kept in the account."""
    if Tier.USER not in lookup.personal_tiers(caller):
        return None
    if lookup.locked(caller, spec, Tier.USER, candidates):
        return None
    mine = (c for c in candidates if c.tier is Tier.SESSION and c.state != "unreadable")
    return next(mine, None)


def storage_sentence(settings: Settings, caller: Caller, session_store: str) -> str:
    """Say honestly where this caller's keys go and how long they stay, made from the configuration."""
    elsewhere = " or to the address set for it" if _may_go_elsewhere(settings) else ""
    kept = _kept(settings, caller, session_store)
    if kept is None:
        return "This site uses its operator's keys. It keeps no keys of yours."
    return (
        f"Your keys are sent to this site's server{kept} "
        f"Each key is sent only to its own provider{elsewhere}."
    )


def _kept(settings: Settings, caller: Caller, session_store: str) -> str | None:
    """Say where and how long keys are kept, None where none are."""
    in_session = Tier.SESSION in settings.precedence
    in_account = Tier.USER in settings.precedence and caller.authenticated
    unused, latest = settings.session_ttl, settings.session_ttl * MAX_SESSION_LIFETIMES
    longest = settings.max_key_lifetime
    limit = "" if longest is None else f", for {_duration(longest)} at most"
    stay = f"in the database until you remove them{limit}."
    end = f"{_duration(unused)} without use, at the latest after {_duration(latest)}."
    if in_session and in_account:
        return (
            f" and kept there, encrypted. Those in your account stay {stay} Those for this session only are kept in "
            f"{session_store}; they are deleted when you sign out, and expire after {end}"
        )
    if in_account:
        return f", encrypted, and kept {stay}"
    if not in_session:
        return None
    return (
        f", encrypted, and kept in {session_store} for this session only: they are deleted when you sign out, and "
        f"expire after {end}"
    )


def _may_go_elsewhere(settings: Settings) -> bool:
    return bool(settings.base_urls) or settings.allow_custom_providers


def _shown_record(shown: Candidate | None, waiting: Candidate | None) -> CredentialRecord | None:
    # A shared key shows no hint: members see that it exists, nothing more.
    if shown is not None and shown.tier in PERSONAL_TIERS:
        return shown.record
    return waiting.record if shown is None and waiting is not None else None


def _record_facts(record: CredentialRecord | None) -> dict[str, Any]:
    validity = record.current_validity() if record else None
    return {
        "hint": record.hint if record else None,
        "label": record.label if record else None,
        "validity": validity.to_dict() if validity else None,
        "created_at": isoformat(record.created_at) if record else None,
        "updated_at": isoformat(record.updated_at) if record else None,
        "expires_at": isoformat(record.expires_at) if record else None,
        "expires_soon": record is not None and record.expires_soon(utcnow()),
        "last_used_at": isoformat(record.last_used_at) if record else None,
        "usage_count": record.usage_count if record else 0,
    }


def _duration(span: timedelta) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count, rest = divmod(int(span.total_seconds()), size)
        if count and not rest and (unit != "day" or count > 1):
            return f"{count} {unit}{'s' if count > 1 else ''}"
    count = int(span.total_seconds())
    return f"{count} second{'s' if count > 1 else ''}"
