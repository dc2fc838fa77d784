"""When a key expires: as wanted, and never after the longest lifetime."""

from __future__ import annotations

from datetime import UTC, datetime

from ..errors import InvalidFieldError
from ..model.credential import CredentialRecord, utcnow
from ..settings import Settings


def read_expiry(
    wanted: datetime | None,
    provider: str,
    settings: Settings,
    saved_at: datetime | None = None,
    *,
    past: bool = False,
) -> datetime | None:
    """Return when a key expires: as wanted, but at most ``BYOK_MAX_KEY_LIFETIME`` after it was saved.

    :param saved_at: by default now.
    :param past: a time that is past is no mistake.
    :raises InvalidFieldError: the time is past or has no zone, or the key's longest lifetime is over.
    """
    now = utcnow()
    if wanted is not None:
        wanted = in_utc(wanted, "expires_at", provider)
        if wanted <= now and not past:
            raise InvalidFieldError("expires_at is in the past.", provider=provider)
    ends = capped_expiry(wanted, settings, saved_at)
    if ends is not None and ends <= now and not past:
        text = "This key has been kept for as long as keys may be. Save a new one."
        raise InvalidFieldError(text, provider=provider)
    return ends


def later_expiry(
    wanted: datetime | None, record: CredentialRecord, settings: Settings
) -> datetime | None:
    """Return the new expiry of a stored key, whose lifetime began when it was saved; see ``read_expiry``."""
    ends = capped_expiry(wanted, settings, record.saved_at)
    if wanted == record.expires_at and (ends is None or ends <= utcnow()):
        return wanted  # unchanged, so no mistake
    return read_expiry(wanted, record.provider, settings, record.saved_at)


def renewed_expiry(record: CredentialRecord, settings: Settings) -> datetime | None:
    """Return a record's expiry for a new key in its place, unless it is past."""
    ends = record.expires_at
    is_past = ends is not None and ends <= utcnow()
    return capped_expiry(None if is_past else ends, settings)


def capped_expiry(
    wanted: datetime | None, settings: Settings, saved_at: datetime | None = None
) -> datetime | None:
    """Return the earlier of a wanted expiry and the end of the longest lifetime; None if there is neither.

    :param saved_at: when the lifetime began, by default now.
    """
    lifetime, now = settings.max_key_lifetime, utcnow()
    latest = None if lifetime is None else min(saved_at or now, now) + lifetime
    return min((moment for moment in (wanted, latest) if moment is not None), default=None)


def in_utc(moment: object, name: str, provider: str) -> datetime:
    """Return a time in UTC, in whole milliseconds, as it is stored.

    :raises InvalidFieldError: it is no time, has no zone, or is out of range in UTC.
    """
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidFieldError(f"{name} needs a time zone, such as Z.", provider=provider)
    try:
        there = moment.astimezone(UTC)
    except OverflowError:
        raise InvalidFieldError(f"{name} is too far away.", provider=provider) from None
    return there.replace(microsecond=there.microsecond // 1000 * 1000)
