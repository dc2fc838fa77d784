"""The operator's own keys, in the app's config, environment variables and secret files.

They are read at each use, so a rotated key serves at once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

from ..catalog.paste import clean_field, looks_like, owner_of, refuse_admin_key
from ..catalog.spec import Catalog, Field, ProviderSpec
from ..errors import ByokError, EndpointNotAllowedError, UnreadableCredentialError
from ..http import endpoint_for
from ..model.credential import Credential, Secret, is_placeholder
from ..model.owner import Caller, Tier
from ..settings import Settings
from .lookup import Candidate, Found

#: Longest secret file that is read, in bytes.
MAX_SECRET_FILE = 64 * 1024

_PLACEHOLDER = "{} holds a placeholder, or a reference to a key: it counts as unset. Replace it by a key, or remove it."


class OperatorKey(NamedTuple):
    """A key of the operator, and the variable, entry of the config or file that held it, which only admins may see."""

    fields: Mapping[str, Secret]
    name: str


@dataclass(eq=False, repr=False)
class OperatorKeys:
    """Reads the operator's keys, by the names of variables that the catalog gives.

    Docker and Kubernetes mount secrets as files: one in ``BYOK_SECRETS_DIR`` has the variable's name in lower case. A
    variable with ``_FILE`` at its end names a file in another place, which comes first.

    :param config: the host's, whose entries of these names come before the environment.
    """

    settings: Settings
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    config: Mapping[str, Any] = field(default_factory=dict)
    tiers = (Tier.SECRET, Tier.ENV)

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return the operator's keys; they are the same for every caller."""
        places = product(self.tiers, specs)
        return {(tier, spec.id): self._candidates(tier, spec) for tier, spec in places}

    def _candidates(self, tier: Tier, spec: ProviderSpec) -> Iterator[Candidate]:
        try:
            key = self.key(tier, spec)
            if key is None:
                return
            endpoint = endpoint_for(spec, self.settings.base_urls, fields=key.fields)
        except (UnreadableCredentialError, EndpointNotAllowedError):
            yield Candidate(tier, "unreadable")
            return
        credential = Credential(
            provider=spec.id,
            source=tier,
            owner="system",
            fields=key.fields,
            base_url=endpoint.base_url,
            trust=endpoint.trust,
        )
        yield Candidate(tier, "active", credential, operator_name=key.name)

    def key(self, tier: Tier, spec: ProviderSpec) -> OperatorKey | None:
        """Return the key that a tier has for a provider: the first there is under the provider's variables.

        :raises UnreadableCredentialError: a variable or file cannot be read, or holds no possible key; or a
            ``_FILE`` variable names no file.
        """
        keys = (self.read(tier, spec, variable) for variable in main_variables(spec))
        return next((key for key in keys if key is not None), None)

    def read(self, tier: Tier, spec: ProviderSpec, variable: str) -> OperatorKey | None:
        """Return the key whose main field is under a variable; None if that is blank or a placeholder, or a part lacks.

        :raises UnreadableCredentialError: see ``key``.
        """
        main = spec.main_field
        try:
            value = self._value(tier, spec, main, variable)
            if value is None:
                return None
            fields = {main.name: value[0], **self._others(tier, spec)}
        except (ByokError, OSError, ValueError):
            text = "The operator's API key for this provider cannot be used."
            raise UnreadableCredentialError(text, provider=spec.id, tier=tier) from None
        return None if _lacking(spec, fields) else OperatorKey(fields, value[1])

    def faults(self, specs: Iterable[ProviderSpec]) -> Iterator[str]:
        """Yield a sentence with advice for each place that holds something other than a key."""
        tiers = [tier for tier in self.tiers if tier in self.settings.precedence]
        for tier, spec in product(tiers, specs):
            for variable in main_variables(spec):
                name = f"The secret file of {variable}"
                try:
                    for name, text in self._values(tier, variable):
                        if text.strip() and _stands_for_a_key(spec.main_field, text):
                            yield _PLACEHOLDER.format(name)
                    value = self._value(tier, spec, spec.main_field, variable)
                    others = self._others(tier, spec) if value else {}
                except (ByokError, UnicodeError):
                    yield f"{name} holds no possible API key: copy the key alone, on one line, into it."
                except (OSError, ValueError):
                    yield f"{name} cannot be read: mend its path ({variable}_FILE), its rights or its content."
                else:
                    lacking = _lacking(spec, others) - {spec.main_field.name} if value else ()
                    is_elsewhere = spec.id in self.settings.base_urls or spec.personal_base_url
                    if value and not is_elsewhere and not spec.standalone:
                        yield from _suspicions(spec, *value)
                    for part in lacking:
                        yield f"{name} counts as unset, as {' and '.join(spec.variables[part])} is not set."

    def misnamed(self, specs: Collection[ProviderSpec]) -> Iterator[str]:
        """Yield a sentence for each variable that holds a provider's key and that nothing reads."""
        read = {
            name for spec in (*Catalog.shipped, *specs) for name in chain(*spec.variables.values())
        }
        for name in sorted(self.environ.keys() - read):
            spec = None if name.endswith("_FILE") else owner_of(self.environ[name].strip(), specs)
            own = main_variables(spec) if spec in specs and spec else ()
            if spec and own and self.environ.keys().isdisjoint(own):
                yield f"{name} in the environment looks like a key for {spec.name}, and is not read: {own[0]} is."

    def _value(
        self, tier: Tier, spec: ProviderSpec, part: Field, variable: str
    ) -> tuple[Secret, str] | None:
        """Return a field's value under a variable, with the name of its place; None if there is none."""
        for name, text in self._values(tier, variable):
            if part.kind == "json" and text.strip() and not text.lstrip().startswith("{"):
                text = _read_secret(Path(text.strip())) or ""  # the variable names a file
            if not text.strip() or _stands_for_a_key(part, text):
                continue
            if (value := clean_field(spec, part, Secret(text))) is not None:
                return value, name
        return None

    def _others(self, tier: Tier, spec: ProviderSpec) -> dict[str, Secret]:
        """Return the values of the other fields, from this tier first."""
        found: dict[str, Secret] = {}
        for part in spec.fields:
            if part is spec.main_field or part.name == "base_url":
                continue
            tiers = sorted(self.tiers, key=lambda each: each is not tier)
            places = product(tiers, spec.variables[part.name])
            values = (self._value(each, spec, part, variable) for each, variable in places)
            if value := next(filter(None, values), None):
                found[part.name] = value[0]
            elif part.default:
                found[part.name] = Secret(part.default).show()
        return found

    def _values(self, tier: Tier, variable: str) -> Iterator[tuple[str, str]]:
        """Yield the values that a tier has under a variable's name, each with the name of its place."""
        if tier is Tier.ENV:
            if isinstance(entry := self.config.get(variable), str):
                yield f"app.config[{variable!r}]", entry
            yield variable, self.environ.get(variable, "")
            return
        if named := self.environ.get(f"{variable}_FILE", "").strip():
            text = _read_secret(Path(named))
            if text is None:
                raise FileNotFoundError
            yield f"{variable}_FILE", text
        path = self.settings.secrets_dir / variable.lower()
        yield str(path), _read_secret(path) or ""


def _suspicions(spec: ProviderSpec, key: Secret, name: str) -> Iterator[str]:
    """Yield what the look of a key tells that is none of this provider's, or one for admins."""
    if refuse_admin_key(spec, {"api_key": key}):
        yield f"{name} holds an admin key, which is refused. Replace it by an ordinary API key for {spec.name}."
    elif other := looks_like(key.reveal(), spec):
        yield f"{name} holds what looks like a key for {other.name}. Replace it by one for {spec.name}."


def main_variables(spec: ProviderSpec) -> tuple[str, ...]:
    """Return the variables that may hold the main field of a provider's key."""
    return spec.variables[spec.main_field.name]


def _lacking(spec: ProviderSpec, fields: Mapping[str, Secret]) -> set[str]:
    """Return the fields that the provider requires and that are not there."""
    return {part.name for part in spec.fields if part.required and part.name not in fields}


def _stands_for_a_key(part: Field, text: str) -> bool:
    return part.secret and part.kind != "json" and is_placeholder(text)


def _read_secret(path: Path) -> str | None:
    """Return the text of a file, or None if there is no file."""
    try:
        # O_NONBLOCK: a pipe of that name must not hang the app.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = file.read(MAX_SECRET_FILE + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    if len(content) > MAX_SECRET_FILE:
        raise ValueError("too long for a secret")
    return content.decode()
