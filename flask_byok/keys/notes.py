"""Take in what is kept beside a key and shown: there is no key in it, and nothing that is not seen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Literal

from ..catalog import ProviderSpec
from ..errors import InvalidFieldError, MalformedApiKeyError
from ..model.credential import CredentialRecord, Secret, clean_api_key

_LONGEST = {"label": 100, "description": 500}
# Shorter words that begin as keys do ("sk-learn") are words.
_SHORTEST_REAL_KEY = 20

# Controls (C1 too), what turns the direction of text or has no width, halves of characters, line separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Letters of Hangul that have no shape, and a pattern of Braille without a dot.
_FILLERS = "\u115f\u1160\u3164\uffa0"
_BLANK = "\N{BRAILLE PATTERN BLANK}"
# What may stand between the letters of a key and leaves it readable.
_BETWEEN = {"Cf", "Mc", "Me", "Mn"}
# Emoji and some scripts are written with them.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def clean_note(
    value: str | None,
    name: Literal["label", "description"],
    fields: Mapping[str, Secret],
    specs: Iterable[ProviderSpec],
) -> str | None:
    """Return a text that is kept beside a key and shown, None where it is blank.

    :param fields: the key, which may not be in it.
    :param specs: whose keys may not be in it either, as far as they show by their beginnings.
    :raises InvalidFieldError: it is too long, has characters that are not seen, or seems to hold a key.
    """
    text, longest = _text(value, name).strip(), _LONGEST[name]
    if len(text) > longest or _has_unseen(text):
        raise InvalidFieldError(f"The field {name!r} has up to {longest} printable characters.")
    _require_keyless(text, name, fields, specs)
    return text or None


def check_place(
    owner: str, slot: str, fields: Mapping[str, Secret], specs: Iterable[ProviderSpec] = ()
) -> None:
    """Refuse a slot or a team's id that cannot be shown, as ``clean_note`` does; users' ids are the host's own.

    :raises InvalidFieldError: it has characters that are not seen, or seems to hold a key.
    """
    for name, text in _place(owner, slot).items():
        if _has_unseen(text):
            raise InvalidFieldError(f"The field {name!r} has printable characters only.")
        _require_keyless(text, name, fields, specs)


def check_shown(record: CredentialRecord, fields: Mapping[str, Secret]) -> None:
    """Refuse a new key that what is shown of its record holds.

    :raises InvalidFieldError: it does.
    """
    notes = {"label": record.label or "", "description": record.description or ""}
    for name, text in {**notes, **_place(record.owner, record.slot)}.items():
        _require_keyless(text, name, fields)


def _place(owner: str, slot: str) -> dict[str, str]:
    return {"slot": slot, "owner": owner} if owner.startswith("team:") else {"slot": slot}


def _text(value: object, name: str) -> str:
    if value is not None and not isinstance(value, str):
        raise InvalidFieldError(f"The field {name!r} is text.")
    return value or ""


def _has_unseen(text: str) -> bool:
    return any(
        char in _FILLERS or (unicodedata.category(char) in _UNSEEN and char not in _JOINERS)
        for char in text
    )


def _require_keyless(
    text: str, name: str, fields: Mapping[str, Secret], specs: Iterable[ProviderSpec] = ()
) -> None:
    typed = [secret for field, secret in fields.items() if field != "base_url"]
    read = _as_read(text)
    begun = any(_looks_like_key(seen, specs) for seen in (text, read))
    # The key itself is known, so that words of other texts are not taken for it where spaces go.
    if begun or any(_is_within(secret, read.replace(" ", "")) for secret in typed):
        raise InvalidFieldError(f"The field {name!r} seems to hold an API key, but it is shown.")


def _as_read(text: str) -> str:
    """Return a text in plain letters and spaces: what is wider, or has marks within, still reads as a key."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(map(_plain, plain))


def _plain(char: str) -> str:
    category = unicodedata.category(char)
    if category in _BETWEEN or char in _FILLERS + _BLANK:
        return ""
    return " " if category == "Zs" else char


def _looks_like_key(text: str, specs: Iterable[ProviderSpec]) -> bool:
    """Say whether a known beginning of a key stands anywhere but within a word, with enough after it."""
    known = {prefix for spec in specs for prefix in (*spec.prefixes, *spec.refused_prefixes)}
    beginning = "|".join(map(re.escape, known))
    words = re.finditer(rf"(?<![A-Za-z0-9])(?:{beginning})[\w.-]*", text) if known else ()
    return any(len(word[0]) >= _SHORTEST_REAL_KEY for word in words)


def _is_within(secret: Secret, text: str) -> bool:
    """Say whether a text holds a typed key as it would be kept; what cannot be a key is not kept."""
    try:
        return clean_api_key(secret.reveal()) in text
    except MalformedApiKeyError:
        return False
