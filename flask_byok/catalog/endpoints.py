"""Named endpoints: servers of people's own, each with a name. ``custom/my-vllm`` is the one called "My vLLM".

Its id is that of the provider, a slash and the slug of its name. ``custom/*`` stands for all that a person has.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InvalidFieldError, KeyExistsError
from ..model.credential import Fields

if TYPE_CHECKING:
    from .spec import ProviderSpec

#: How many named endpoints an owner may have.
MOST_ENDPOINTS = 20

_SLUG = re.compile(r"(?=.{1,40}\Z)[a-z0-9]+(-[a-z0-9]+)*")
_SHOWN = {"name": "name", "model": "default_model"}
# Letters that Unicode does not take apart into a Latin one and a mark.
_LETTERS = str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ł": "l", "þ": "th", "ı": "i"}
)
# The paths of calls that follow a base URL in documentation and examples. "models" is one only after a version:
# Azure's base URLs end in /models.
_CALL = re.compile(
    r"(/(chat/)?completions|(?<=/v\d)/(models|responses|embeddings|messages|images|audio)(/.*)?)/*\Z"
)


def slug_of(name: str) -> str:
    """Return a name in lower-case Latin letters, digits and hyphens.

    :raises InvalidFieldError: it has letters of another script, or too many or no letters and digits.
    """
    apart = unicodedata.normalize("NFKD", name).casefold().translate(_LETTERS)
    text = "".join(char for char in apart if not unicodedata.combining(char))
    slug = "-".join(re.findall("[a-z0-9]+", text))
    if not _SLUG.fullmatch(slug) or any(c.isalnum() and not c.isascii() for c in text):
        raise InvalidFieldError("Give the endpoint a name of up to 40 Latin letters and digits.")
    return slug


def base_of(url: str) -> str:
    """Return the base URL in what a person pasted: without a call's path, a query or a fragment, and with a scheme."""
    url = re.split("[?#]", url.strip(), maxsplit=1)[0]
    if url and "://" not in url:
        url = f"https://{url}"
    return _CALL.sub("", url).rstrip("/")


def takes_names(spec: ProviderSpec) -> bool:
    """Return True if people may have several endpoints of this provider, each with a name."""
    named = any(field.name == "name" for field in spec.fields)
    return named and spec.personal_base_url and not is_named(spec.id)


def is_named(provider: str) -> bool:
    """Return True if a provider's id is that of a named endpoint."""
    return "/" in provider


def endpoint(spec: ProviderSpec, slug: str) -> ProviderSpec:
    """Return the spec of a provider's endpoint. The operator has no key for it."""
    fields = (
        replace(f, env=(), default=slug if f.name == "name" else f.default) for f in spec.fields
    )
    return replace(
        spec, id=f"{spec.id}/{slug}", name=slug, fields=tuple(fields), env=(), aliases=()
    )


def find_endpoint(parent: ProviderSpec | None, slug: str) -> ProviderSpec | None:
    """Return the spec of the endpoint with a slug; None if the provider has none, or this is no slug."""
    if parent is None or not takes_names(parent):
        return None
    return endpoint(parent, slug) if _SLUG.fullmatch(slug) else None


def expand(specs: Iterable[ProviderSpec], ids: Collection[str]) -> Iterator[ProviderSpec]:
    """Yield the specs, in place of a pattern (``custom/*``) those of the endpoints among these ids."""
    for spec in specs:
        start, is_pattern, _ = spec.id.partition("*")
        if not is_pattern:
            yield spec
            continue
        parent = replace(spec, id=start[:-1])
        for slug in sorted({id.removeprefix(start) for id in ids if id.startswith(start)}):
            if _SLUG.fullmatch(slug):
                yield endpoint(parent, slug)


def matching(ids: Iterable[str], wanted: Iterable[str]) -> Iterator[str]:
    """Yield those of the ids that are wanted, by themselves or by a pattern."""
    names = set(wanted)
    return (id for id in ids if id in names or re.sub("/.*", "/*", id) in names)


def refuse_if_full(taken: Iterable[str], provider: str) -> None:
    """Refuse a named endpoint of an owner who has as many others as allowed.

    :param taken: ids of the providers that the owner has keys for.
    :raises KeyExistsError: naming the limit.
    """
    others = {id for id in taken if is_named(id)} - {provider}
    if is_named(provider) and len(others) >= MOST_ENDPOINTS:
        text = f"There are {MOST_ENDPOINTS} named endpoints already. Remove one first."
        raise KeyExistsError(text, provider=provider)


def shown(spec: ProviderSpec) -> Mapping[str, str]:
    """Return the fields that people read, by the attribute of the spec that each replaces."""
    return _SHOWN if is_named(spec.id) or takes_names(spec) else {}


def told(spec: ProviderSpec, fields: Fields) -> ProviderSpec:
    """Return the spec with the name and the default model that are among the fields."""
    texts = shown(spec).items()
    given: dict[str, Any] = {to: fields[name].reveal() for name, to in texts if name in fields}
    return replace(spec, **given) if given else spec
