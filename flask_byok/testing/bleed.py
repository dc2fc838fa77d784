"""Assert that no call was made with another owner's key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .calls import RecordedCall

OWNER_MARKER = re.compile(r"\bowner:([A-Za-z0-9_.@-]+)")


def assert_no_key_bleed(
    calls: Iterable[RecordedCall], api_key_by_owner: Mapping[str, str | None]
) -> None:
    """Assert that each owner's calls went out with that owner's key alone, and no cookie.

    Let each owner's chat message name its owner, as in "owner:7 hello"; then::

        assert_no_key_bleed(fake.calls, {"7": key_of_7, "8": key_of_8, "nobody": None})

    A call counts for the owner whose marker its body holds; None means that it must carry no key.
    Calls without a marker (a check of a key, say) are searched for cookies only.

    :raises AssertionError: naming owners, never a key: when a call was made with a key other than
        its owner's, holds the marker or the key of two owners, brought a cookie or names an
        unknown owner; or when an owner made no call, as then nothing is proven.
    """
    faults: list[str] = []
    seen: set[str] = set()
    for number, call in enumerate(calls):
        owners = set(OWNER_MARKER.findall(call.content))
        seen |= owners
        faults += [f"call {number}: {fault}" for fault in _faults(call, owners, api_key_by_owner)]
    unseen = sorted(set(api_key_by_owner) - seen)
    if unseen:
        faults.append(f"no call of owner {', '.join(unseen)} was seen")
    if faults:
        raise AssertionError("Keys or cookies bled:\n" + "\n".join(faults))


def _faults(
    call: RecordedCall, owners: set[str], api_key_by_owner: Mapping[str, str | None]
) -> Iterable[str]:
    if call.cookies or "cookie" in call.headers:
        yield f"{_whose(owners)} brought a cookie"
    if len(owners) > 1:
        yield f"holds messages of {_whose(owners)}"
    for owner in owners:
        yield from _key_faults(call, owner, api_key_by_owner)


def _key_faults(
    call: RecordedCall, owner: str, api_key_by_owner: Mapping[str, str | None]
) -> Iterable[str]:
    if owner not in api_key_by_owner:
        yield f"owner {owner} is not among the expected ones"
        return
    expected = api_key_by_owner[owner]
    if call.api_key != expected:
        used = [other for other, api_key in api_key_by_owner.items() if api_key == call.api_key]
        whose = f"the key of {_whose(used)}" if used else "an unknown key"
        yield f"owner {owner} was served with {whose if call.api_key else 'no key'}"
    sent = _everything(call)
    for other, api_key in api_key_by_owner.items():
        if api_key and api_key != expected and api_key in sent:
            yield f"a call of owner {owner} holds the key of owner {other}"


def _whose(owners: Iterable[str]) -> str:
    return "owner " + (", ".join(sorted(owners)) or "unknown")


def _everything(call: RecordedCall) -> str:
    parts = (call.path, *call.headers.values(), *call.query.values(), call.content)
    return "\n".join(parts)
