"""What a provider's row must be, so that a mistake in it shows when it is registered, and not to a person."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from enum import EnumType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from ..errors import ERRORS_OF_CALLS, ConfigurationError, RejectedCredentialError
from .auth import Auth, SigV4, names_in

if TYPE_CHECKING:
    from .spec import ProviderSpec

# No user name, no white space, and no backslash, which some parsers read as a slash.
_WHOLE = re.compile(r"https://[^/?#@\\\s]+([/?][^\\\s]*)?")
_BASE_URL = re.compile(r"https://[^/?#@\\\s]+(/[^?#\\\s]*)?|")
_BELOW = re.compile(r"/(?!/)[^\\\s]*")
_PATH = "write a path that begins with one slash (/models), or a whole https:// URL."
_KINDS = {*ERRORS_OF_CALLS, RejectedCredentialError.code, ""}


def checked(spec: ProviderSpec) -> ProviderSpec:
    """Return a row that can be used: its lists as tuples, the words of verdicts as verdicts.

    :raises ConfigurationError: it cannot. The message names the provider and what to write.
    """
    try:
        spec = msgspec.convert(_plain(spec), type(spec))
        fault = next(_faults(spec), "")
    except msgspec.ValidationError as error:
        fault = _told(str(error), spec)
    if fault:
        raise ConfigurationError(f"Provider {spec.id!r}: {fault}", provider=spec.id)
    return spec


def _plain(part: Any) -> Any:
    """Return a row as msgspec converts it into one: its own classes as mappings."""
    if isinstance(part, tuple | list):
        return list(map(_plain, part))
    if not dataclasses.is_dataclass(part):
        return part
    values = {each.name: getattr(part, each.name) for each in dataclasses.fields(part)}
    return {name: v if name == "auth" else _plain(v) for name, v in values.items()}


def _told(error: str, spec: ProviderSpec) -> str:
    """Say what to write in place of a value of another type."""
    fault, _, place = error.partition(" - at `$.")
    place = place.rstrip("`")
    if "`array`" in fault:
        return f'{place} is a tuple: write ("…",), with the comma, or (401,) for a status.'
    if fault.startswith("Invalid enum"):
        return f"{place} is one of {', '.join(_words(type(spec), place))}."
    return f"{place}: {fault}." if place else f"{fault}."


def _words(hint: Any, place: str) -> Iterable[str]:
    """Return the words that may stand at a place of a row, such as ``check.rules[0].verdict``."""
    for name in re.findall("[a-z_]+", place):
        cls = get_args(hint)[0] if get_origin(hint) is tuple else hint
        hint = get_type_hints(cls)[name]
    return (
        list(hint) if isinstance(hint, EnumType) else get_args(get_args(hint)[0]) or get_args(hint)
    )


def _faults(spec: ProviderSpec) -> Iterator[str]:
    """Yield what is wrong with a row whose parts have their types."""
    names = [each.name for each in spec.fields]
    if len(names) > len(set(names)) or not names:
        yield f"give it one field or several, each with a name of its own: {', '.join(names)}."
    if not _BASE_URL.fullmatch(spec.base_url):
        yield "base_url: write it like https://api.example.com/v1, without ? and #."
    for path in _paths(spec):
        if not _BELOW.fullmatch(path) and not _WHOLE.fullmatch(path):
            yield f"check.path and check.models_path: {_PATH}"
    yield from _faults_of_templates(spec, set(names))
    for name, pattern in [("shape", spec.shape), *((f.name, f.pattern) for f in spec.fields)]:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"the regular expression of {name} is malformed: {error}."
    for rule in spec.check.rules:
        if rule.kind not in _KINDS:
            yield f"a rule's kind is one of {', '.join(filter(None, sorted(_KINDS)))}, not {rule.kind!r}."


def _faults_of_templates(spec: ProviderSpec, names: set[str]) -> Iterator[str]:
    urls = (spec.base_url, *_paths(spec))
    auth = spec.auth
    # The usual header is also that of rows which only keep fields for their host, and never make a call.
    way = auth.template if isinstance(auth, Auth) and auth != Auth() else ""
    way = auth.region if isinstance(auth, SigV4) else way
    try:
        used, in_urls = set(names_in("".join((*urls, way)))), set(names_in("".join(urls)))
    except ValueError:
        yield "braces come in pairs, each with the name of a field: {api_key}."
        return
    if unknown := used - names:
        yield f"no field is called {unknown.pop()!r}; there are {', '.join(sorted(names))}."
    if secret := {each.name for each in spec.fields if each.secret} & in_urls:
        yield f"the field {secret.pop()!r} is secret, and is in no URL."
    pinned = {each.name for each in spec.fields if each.pattern or each.choices}
    if loose := set(names_in("".join(urlsplit(url).netloc for url in urls))) - pinned:
        yield f"the host in its base URL needs a pattern or choices for the field {loose.pop()!r}."


def _paths(spec: ProviderSpec) -> list[str]:
    return [p for p in (spec.check.path, spec.check.models_path) if p is not None]
