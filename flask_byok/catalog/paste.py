"""Clean a typed key, take it out of what was pasted with it, and tell whose it looks like, before anything is sent.

People paste a line of a ``.env`` file, a piece of JSON or code, a header or a whole curl command. The key's own
characters are never changed. A text with two possible keys is refused.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple, TypedDict
from urllib.parse import unquote

from ..errors import InvalidFieldError, MalformedApiKeyError
from ..model.credential import (
    SHORTEST_KEY,
    Fields,
    Secret,
    Validation,
    Verdict,
    clean_api_key,
    is_placeholder,
    utcnow,
)
from .endpoints import shown
from .spec import Catalog, Field, ProviderSpec

#: Shorter words that begin as keys do ("sk-learn") are words.
SHORTEST_REAL_KEY = 20
# Longer texts are no paste of a key.
_LONGEST_PASTE = 16_384
# Of a service account's file, in characters: they have about 2,400.
_LONGEST_JSON = 16_384
_HEADER_TEXT = re.compile(r"[ -~]{1,500}")
_ADMIN_KEY = "This is an admin key, which can do too much. Make an ordinary API key and use that."
# OpenAI's old keys begin like those of DeepSeek and of many compatible servers.
_SHARED_PREFIXES = ("sk-",)

# A key with nothing around it, as most are typed. Base64 ends in "=".
_PLAIN = re.compile(r"[\w.~+/-]*[\w~+/-]={0,2}", re.ASCII)
# What begins as a key, has no space in it and ends as one is a key, whatever else it has.
_ONE_WORD = re.compile(r"[!-~]*[\w=-]", re.ASCII)
# Quotes, brackets, commas and white space are in no key that has something around it.
_NOT_IN_KEY = r"\s\"'`(){}<>\[\],;\\|"
_KEY = re.compile(rf"[^{_NOT_IN_KEY}]+")
_QUOTED = " \t\n\"'`"
_QUOTES = str.maketrans(dict.fromkeys("“”„‟«»", '"') | dict.fromkeys("‘’‚‛", "'"))
# In a string of a shell, or of a JSON writer that escapes "/"; PowerShell's variables.
_ESCAPES = re.compile(r"\\(?=[\"'/])|\$env:", re.IGNORECASE)
# Fences, comments, and the marks of lists, quotations and prompts.
_MARGIN = re.compile(r"^[ \t]*(?:(?:```|~~~)\w*[ \t]*$|(?:#|//).*|[-*>$•]+[ \t]+)", re.MULTILINE)

# Or a space of another kind; the settings' script sends line breaks as such, which an input would drop.
_LINE_BREAK = re.compile(r"[^\S \t]\s*")
_WORD_ENDS = re.compile(r"[\s\"'`=:,({]")
# How a wrapped key goes on: letters and digits that are no word or name ("org-1", "production"), date or UUID.
_CONTINUATION = re.compile(
    r"(?![a-z]+[-_]|[\W\d_]*$|[\da-f]{8}-[\da-f]{4}-)(?=.*\d)[\w+/.~-]+={0,2}[\"'`,;)}\]]*",
    re.ASCII,
)
# Mail programs and terminals break no shorter lines than this.
_NARROWEST = 60
# A shorter line with a digit can be a word ("gpt4o", "claude3").
_LONGEST_WORD = 8

# OPENAI_API_KEY, apiKey, HF_TOKEN_2, Authorization: the word ends the name, or begins its ending.
_NAMES_KEY = re.compile(
    r"[\w.-]*?(?:key|token|secret|authorization|(?<![a-z0-9])pat)(?:[_.-][\w.-]*)?", re.IGNORECASE
)
# What may stand beside the only value, whatever its name is.
_AROUND_VALUE = re.compile(
    r"(?:\W|\b(?:export|set|env|const|let|var|os|environ|process)\b)*", re.IGNORECASE
)
# "name:value" without a space may be a key of two parts, unless the name is one of these.
_NAMES_API_KEY = re.compile(r".*(?:api[-_]?key|authorization)", re.IGNORECASE)
_SCHEME = r"(?: (?: bearer | token | key | api-?key ) \s+ )?"
_PAIR = re.compile(
    rf"""
    (?: ^ | (?<= [\s"'`({{\[,;?&|>] ) )
    (?: -{{0,2}} (?P<name> [a-z_] [\w.-]{{0,99}} ) ["'`\])]* (?: \s* : \s* \w+ (?= \s* = ) )?
            (?: \s* (?P<sign> => | := | [=:] ) (?P<space> \s* ) | \s+ is:? \s+ )
        | (?P<word> -- [a-z] [\w-]{{0,99}} | (?-i: [A-Z][A-Z0-9]*_[A-Z0-9_]{{1,99}} ) ) [ \t]+
        | (?P<scheme> bearer | token ) \s+ )
    (?: (?P<quote> ["'`] ) \s*+ {_SCHEME} (?P<quoted> [^"'`]+ ) (?P=quote)
        | {_SCHEME} (?P<bare> (?! = | // ) [^\s"'`;(]+ ) )
    """,
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)


def clean_pasted(spec: ProviderSpec, f: Field, value: Secret | None) -> Secret | None:
    """Clean one field of a credential as it was typed or pasted; None if it is empty and may be.

    :raises InvalidFieldError: a field that is no secret is missing or malformed.
    :raises MalformedApiKeyError: a secret is missing or cannot be a key. Nothing of it is repeated.
    """
    if value is None or f.kind != "secret":
        return clean_field(spec, f, value)
    cleaned = clean_field(spec, f, Secret(unwrap(value.reveal().strip(), spec, f).text))
    if cleaned is not None:
        refuse_other_kinds(cleaned.reveal(), spec)
    return cleaned


def clean_field(spec: ProviderSpec, f: Field, value: Secret | None) -> Secret | None:
    """Clean one field of a credential with nothing around it; see :func:`clean_pasted`."""
    text = value.reveal().strip() if value is not None else ""
    text = text or f.default
    if not text and f.required:
        kind = MalformedApiKeyError if f.secret else InvalidFieldError
        raise kind(f"{f.label} is missing.", provider=spec.id)
    if not text:
        return None
    if f.kind == "json":
        return Secret(_clean_json(spec, f, text))
    # A server of one's own may want any word.
    own = _takes_any_word(spec)
    if f.secret and is_placeholder(text) and not own:
        said = f"This is a placeholder, not an API key. Copy your own key from {spec.name}."
        raise MalformedApiKeyError(said, provider=spec.id)
    if f.secret:
        text = clean_api_key(text, spec.id, shortest=1 if own else SHORTEST_KEY)
    # It may travel in a header; the others are checked by their own rules.
    elif f.name not in {"base_url", *shown(spec)} and not _HEADER_TEXT.fullmatch(text):
        raise InvalidFieldError(f"{f.label} has up to 500 ASCII characters.", provider=spec.id)
    if (value_in := f.read(text)) is None:
        raise _not_taken(spec, f)
    value = Secret(value_in)
    return value if f.secret or f.name == "base_url" else value.show()


def _not_taken(spec: ProviderSpec, f: Field) -> InvalidFieldError | MalformedApiKeyError:
    said = f"{f.label} is one of {', '.join(f.choices)}."
    if not f.choices:
        like = f", such as {f.placeholder}" if f.placeholder else ""
        said = f"{f.label} does not have the form that {spec.name} gives it{like}."
    kind = MalformedApiKeyError if f.secret else InvalidFieldError
    return kind(said, provider=spec.id)


def _clean_json(spec: ProviderSpec, f: Field, text: str) -> str:
    """Return a file's JSON object on one line, in ASCII.

    :raises MalformedApiKeyError: it is none, or not of the form that the provider gives it.
    """
    with suppress(ValueError, RecursionError):
        # The dialog's script writes such a space in the place of a line break.
        data = json.loads(text.replace("\N{NO-BREAK SPACE}", " "))
        compact = json.dumps(data, separators=(",", ":"))
        if isinstance(data, dict) and len(compact) <= _LONGEST_JSON and f.read(compact):
            return compact
    said = f"{f.label} is the whole content of the JSON file that {spec.name} gave you."
    raise MalformedApiKeyError(said, provider=spec.id)


# what was pasted around it


class Pasted(NamedTuple):
    """A key, and the name of the variable or entry that it was the value of."""

    text: str
    name: str = ""


def unwrap(text: str, spec: ProviderSpec, f: Field) -> Pasted:
    """Return the key in a text that was pasted into a field; the text itself if no key can be told in it.

    :raises MalformedApiKeyError: there are several keys, or code without one. Nothing of it is repeated.
    """
    if _PLAIN.fullmatch(text) or len(text) > _LONGEST_PASTE or "-----BEGIN" in text:
        return Pasted(text)
    known = beginnings([spec])
    if text.startswith(tuple(known)) and _ONE_WORD.fullmatch(text):
        return Pasted(text)
    tidy = _tidy(text, tuple(known), f.pattern or spec.shape)
    if tidy is None:
        said = (
            "This key seems to go on in the next line. Copy the key alone, all of it in one line."
        )
        raise MalformedApiKeyError(said, provider=spec.id)
    if found := _find(tidy, known):
        return _choose(found, spec, f, known)
    word = _without_ends(tidy)
    if _KEY.fullmatch(word):
        return Pasted(word)
    # The other texts are refused where keys are cleaned.
    if _takes_any_word(spec) or is_placeholder(text) or len(word.split()) != 1:
        return Pasted(text)
    said = "No API key was found in this text. Copy the key alone and paste it again."
    raise MalformedApiKeyError(said, provider=spec.id)


def _tidy(text: str, prefixes: tuple[str, ...], shape: str) -> str | None:
    """Return a text without what no screen shows, with a wrapped key in one line; None if that cannot be told.

    :param shape: of the provider's keys, if it is known.
    """
    visible = (c for c in text.translate(_QUOTES) if unicodedata.category(c) != "Cf")
    plain = _LINE_BREAK.sub("\n", _ESCAPES.sub("", "".join(visible)))
    lines, begun, width = list[str](), "", 0
    for line in (_MARGIN.sub("", plain).strip() or plain).split("\n"):
        is_rest = begun and _CONTINUATION.fullmatch(line) and not line.startswith(prefixes)
        is_long, is_full = len(line) >= _LONGEST_WORD, width >= _NARROWEST
        # A full line goes on, and one that ends with no whole key, or within a quote.
        if is_rest and ((is_full and is_long) or _is_open(lines[-1], begun, line, shape)):
            lines[-1] += line
        elif is_rest and (is_full or is_long):
            return None
        else:
            lines.append(line)
        last = _WORD_ENDS.split(lines[-1])[-1]
        begun, width = last if last.startswith(prefixes) else "", len(line)
    return "\n".join(lines)


def _is_open(before: str, begun: str, line: str, shape: str) -> bool:
    """Return True if the key that a line ends with is whole, or its quote closed, only in the next line."""
    quote = before.removesuffix(begun)[-1:]
    whole = re.fullmatch(shape, _without_ends(begun + line)) and not re.fullmatch(shape, begun)
    return bool(whole) or (quote in ('"', "'", "`") and line.endswith(quote))


def _without_ends(text: str, closing: str = "") -> str:
    if text.endswith("..."):  # a placeholder's
        return text
    return text.lstrip(_QUOTED).rstrip(f"{_QUOTED},;.{closing}")


def _find(text: str, known: Iterable[str]) -> list[Pasted]:
    """Return what may be a key: what is named as one, then words that begin as keys do; else the only value."""
    named, others = list[Pasted](), list[Pasted]()

    def take(match: re.Match[str]) -> str:
        is_key, pasted = _read(match) or (False, None)
        if pasted is not None:
            (named if is_key else others).append(pasted)
        return " " if is_key else match[0]

    rest = _PAIR.sub(take, text)
    begin = "|".join(map(re.escape, known))
    words = re.finditer(rf"(?<![^{_NOT_IN_KEY}&=:])(?:{begin})[^{_NOT_IN_KEY}&]*", rest)
    named += (Pasted(_without_ends(word[0], ":")) for word in words if _is_long(word[0]))
    if not named and _AROUND_VALUE.fullmatch(_PAIR.sub(" ", text)):
        named = [one for one in others if _KEY.fullmatch(one.text) and _is_long(one.text)]
    return named


def _is_long(word: str) -> bool:
    return len(word) >= SHORTEST_REAL_KEY and any(map(str.isdigit, word))


def _read(match: re.Match[str]) -> tuple[bool, Pasted] | None:
    """Return if a value is named as a key, and the value with its name; None if both may be parts of one key."""
    name, sign = (match["name"] or match["word"] or match["scheme"]).lstrip("-"), match["sign"]
    if match["quoted"]:
        value = re.sub(r"\s*\n\s*", "", match["quoted"].strip())
    else:
        value = _without_ends(match["bare"], ")}]\\")
        if match.string[: match.start()].endswith(("?", "&")):
            value = unquote(re.split("[&#]", value)[0])
    is_key = bool(_NAMES_KEY.fullmatch(name))
    if sign and not match["quoted"] and not match["space"]:
        is_pair = _NAMES_API_KEY.fullmatch(name) if sign == ":" else is_key or name.isupper()
        if not is_pair:
            return None
    is_key = is_key and _KEY.fullmatch(value) is not None and (bool(sign) or _is_long(value))
    return is_key, Pasted(value, name.rpartition(".")[2])


def _choose(found: list[Pasted], spec: ProviderSpec, f: Field, known: Iterable[str]) -> Pasted:
    """Return the only key, or else the only one whose name or beginning is this provider's."""
    real = dict[str, Pasted]()
    for one in found:
        if len(one.text) >= 8 and not is_placeholder(one.text):
            real.setdefault(one.text, one)
    keys = list(real.values()) or found[:1]
    own = f.env or spec.env
    names = set(map(_letters, (*own, f.name, f"{spec.id}_{f.name}")))
    by_name = [key for key in keys if _letters(key.name) in names]
    by_prefix = [key for key in keys if _beginning(key.text, known) in spec.prefixes]
    for group in (keys, by_name, by_prefix):
        if len(group) == 1:
            return group[0]
    said = f"There are several keys in this text. Copy the one for {spec.name} alone and paste it."
    raise MalformedApiKeyError(said, provider=spec.id)


def _letters(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


# whose key it is


class KeyWarning(TypedDict):
    """What the look of a typed key tells: it seems to be another provider's. Nobody was asked."""

    code: Literal["looks_like"]
    provider: str


def beginnings(specs: Iterable[ProviderSpec] = ()) -> dict[str, dict[str, str]]:
    """Return whose secrets begin so: names by id, by public beginning. Where that tells nothing, there are none.

    :param specs: providers beside those that ship with the package.
    """
    found: dict[str, dict[str, str]] = {}
    for spec in _by_id(specs).values():
        for prefix in (*spec.prefixes, *spec.refused_prefixes, *spec.other_kinds):
            found.setdefault(prefix, {})[spec.id] = spec.name
    return found | {prefix: {} for prefix in _SHARED_PREFIXES}


def looks_like(
    api_key: str, spec: ProviderSpec, specs: Iterable[ProviderSpec] = (), name: str = ""
) -> ProviderSpec | None:
    """Return the other provider whose key this clearly is, if any: by its beginning, its shape or its name.

    :param specs: providers beside those that ship with the package.
    :param name: the variable that the key was pasted with.
    """
    known = _by_id((*specs, spec))
    prefixes = beginnings(known.values())
    by_prefix = prefixes.get(_beginning(api_key, prefixes), {})
    by_shape = [s.id for s in known.values() if s.shape and re.fullmatch(s.shape, api_key)]
    by_name = [s.id for s in known.values() if name.upper() in _variables(s)]
    for owners in (by_prefix, by_shape, by_name):
        if spec.id in owners:
            return None
        if len(owners) == 1:
            return known[next(iter(owners))]
    return None


def owner_of(text: str, specs: Iterable[ProviderSpec]) -> ProviderSpec | None:
    """Return whose key this is by its beginning alone, if that tells."""
    known = _by_id(specs)
    prefixes = beginnings(known.values())
    owners = prefixes.get(_beginning(text, prefixes), {}) if _is_long(text) else ()
    return known[next(iter(owners))] if len(owners) == 1 else None


def _variables(spec: ProviderSpec) -> set[str]:
    return {*spec.env, *(name for f in spec.fields for name in f.env)}


def warnings_about(
    fields: Fields, spec: ProviderSpec, specs: Iterable[ProviderSpec]
) -> list[KeyWarning]:
    """Return what the look of a credential as it was typed tells.

    :raises MalformedApiKeyError: see :func:`unwrap`.
    """
    for f in spec.fields:
        if f.kind == "secret" and f.name in fields:
            pasted = unwrap(fields[f.name].reveal().strip(), spec, f)
            if other := looks_like(pasted.text, spec, specs, pasted.name):
                return [{"code": "looks_like", "provider": other.id}]
    return []


def refuse_admin_key(spec: ProviderSpec, fields: Fields) -> Validation | None:
    """Return the verdict on an admin key, of this provider or of another; None for any other key.

    Its beginning tells, so nothing is called.
    """
    api_key = fields["api_key"].reveal() if "api_key" in fields else ""
    if any(prefix in one.refused_prefixes for one, prefix in _refusing(api_key, spec)):
        return Validation(spec.id, Verdict.ADMIN_KEY_REFUSED, _ADMIN_KEY, utcnow())
    return None


def refuse_other_kinds(api_key: str, spec: ProviderSpec) -> None:
    """Refuse a secret that is no API key, such as a session's token.

    :raises MalformedApiKeyError: naming the kind, and the kind that is wanted.
    """
    for one, prefix in _refusing(api_key, spec):
        if kind := one.other_kinds.get(prefix):
            there = f" at {spec.get_key_url}" if spec.get_key_url else ""
            said = f"This is {kind}, which does not work here. Create an API key for {spec.name}{there}."
            raise MalformedApiKeyError(said, provider=spec.id)


def _refusing(api_key: str, spec: ProviderSpec) -> Iterator[tuple[ProviderSpec, str]]:
    """Yield who may refuse a key, with the beginning of the key."""
    known = {spec.id: spec} if _takes_any_word(spec) else _by_id([spec])
    prefix = _beginning(api_key, beginnings([spec]))
    if prefix not in spec.prefixes:
        yield from ((one, prefix) for one in known.values())


def _takes_any_word(spec: ProviderSpec) -> bool:
    """Return True for a server of one's own."""
    return spec.personal_base_url or spec.standalone


def _by_id(specs: Iterable[ProviderSpec]) -> Mapping[str, ProviderSpec]:
    return {spec.id: spec for spec in (*Catalog.shipped, *specs)}


def _beginning(api_key: str, prefixes: Iterable[str]) -> str:
    return max((p for p in prefixes if api_key.startswith(p)), key=len, default="")
