"""Turn a provider's status into the row that the settings show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from ..model.owner import PERSONAL_TIERS, Tier
from ..settings import Settings
from . import text

#: A key expires with the end of the day that was chosen, in UTC.
_END_OF_DAY = time(23, 59, 59, tzinfo=UTC)


def build_row(
    status: Mapping[str, Any], found: Mapping[str, Any], settings: Settings, now: datetime
) -> dict[str, Any]:
    """Return a status with the texts of its row.

    :param found: the list that the status is from.
    """
    badges, source = text.BADGES[settings.labels], status["source"] or ""
    clear_tier = _clear_tier(status)
    several = clear_tier == "user" and settings.keys_per_provider > 1
    if _offered(status) == "waiting":
        # The question shows its hint; the row's facts are about keys in use.
        status = {**status, "hint": None, "label": None, "validity": None, "expires_at": None}
    return {
        **status,
        "badge": badges[source],
        "standalone_badge": badges["standalone"],
        "place": text.PLACES.get(source),
        "reason": None if status["can_override"] else text.TEXT["locked"],
        "clear_tier": clear_tier,
        "confirm_question": text.TEXT["confirm_several" if several else "confirm_question"],
        "can_persist": found["can_persist"] and _account_counts(status, found["precedence"]),
        "described_tier": described_tier(status),
        "changeable": described_tier(status) == Tier.USER,
        "offer": _offer(status),
        "fields": [field | {"type": _input_type(field)} for field in status["fields"]],
        **_state(status),
        **_checked(status["validity"]),
        **_expiry(status["expires_at"], now),
    }


def described_tier(status: Mapping[str, Any]) -> str | None:
    """Return the tier of the key whose label and expiry the row shows."""
    return status["source"] or next(iter(status["tiers"]), None)


def expiry_dates(now: datetime, longest: timedelta | None) -> dict[str, Any]:
    """Return the first and the last day that can be chosen, as ``YYYY-MM-DD``, and the rule as text."""
    first = now.date().isoformat()
    if longest is None:
        return {"first": first, "last": None, "rule": text.TEXT["expires_never"]}
    last = _last_day(now, longest).isoformat()
    return {"first": first, "last": last, "rule": text.TEXT["expires_cap"].format(date=last)}


def end_of_day(day: str) -> datetime:
    """Return the expiry of a key that works through a day, ``YYYY-MM-DD``.

    :raises ValueError: the text is no day.
    """
    return datetime.combine(date.fromisoformat(day), _END_OF_DAY)


def _last_day(now: datetime, longest: timedelta) -> date:
    try:
        return (now + longest).date()
    except OverflowError:
        return date.max


def _state(status: Mapping[str, Any]) -> dict[str, Any]:
    soon = status["state"] == "active" and status["expires_soon"]
    # The state of another owner's key would read as that of the person's own.
    is_theirs = not status["source"] and described_tier(status) not in PERSONAL_TIERS
    state = "" if is_theirs else status["state"] or ""
    return {"soon": soon, "chip": text.CHIPS.get("soon" if soon else state)}


def _checked(validity: Mapping[str, Any] | None) -> dict[str, Any]:
    if validity is None:
        return {"verdict": None, "checked": None}
    return {
        "verdict": text.VERDICTS[validity["verdict"]],
        "checked": f"{validity['checked_at'][:16].replace('T', ' ')} UTC",
    }


def _expiry(expires_at: str | None, now: datetime) -> dict[str, Any]:
    if expires_at is None:
        return {"expiry": None, "expires_on": "", "is_to_expire": False}
    ahead = datetime.fromisoformat(expires_at) > now
    return {
        "expiry": text.TEXT["expires_on" if ahead else "expired_on"],
        "expires_on": expires_at[:10],
        "is_to_expire": ahead,
    }


def _offer(status: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the question about a key that could be kept, with its answers."""
    kind = _offered(status)
    if kind is None or not status["can_override"]:
        return None
    question, answers = text.OFFERS[kind]
    return {"question": question, "answers": answers}


def _offered(status: Mapping[str, Any]) -> str | None:
    """Return the key in ``OFFERS`` for the key that could be kept and the one beside it."""
    tiers = status["tiers"]
    if not status["promotable"]:
        return None
    if "session" not in tiers:
        beside = "waiting_beside_user" if "user" in tiers else "waiting"
        return "waiting_in_account" if status["promotable_in_account"] else beside
    if status["promotable_hint"] != status["hint"]:
        return "waiting_beside_session"
    if status["source"] != "session" or status["state"] != "active":
        return None  # a key that does not work is not worth keeping
    if status["promotable_in_account"]:
        return None
    return "own_beside_user" if "user" in tiers else "own"


def _account_counts(status: Mapping[str, Any], precedence: Sequence[str]) -> bool:
    """Return True if no shared key comes before the account's."""
    before = precedence[: precedence.index("user")]
    return not any(tier in before for tier in status["tiers"] if tier != "session")


def _clear_tier(status: Mapping[str, Any]) -> str | None:
    """Return the tier that Remove acts on: the one in use, else one with a key of the caller's own."""
    own = [tier for tier in ("session", "user") if tier in status["tiers"]]
    if status["source"] in own:
        return str(status["source"])
    return "session" if status["promotable"] else next(iter(own), None)


def _input_type(field: Mapping[str, Any]) -> str:
    if field["secret"]:
        return "password"
    return "url" if field["name"] == "base_url" else "text"
