"""Whose key this looks like: a hint for people who pasted it into the wrong field."""

from __future__ import annotations

from ..catalog import PROVIDERS, ProviderSpec

# The beginning of OpenAI's old keys is that of DeepSeek's and of many compatible servers' too.
_SHARED_PREFIXES = frozenset({"sk-"})


def looks_like(api_key: str, spec: ProviderSpec) -> ProviderSpec | None:
    """Return the other provider whose key this clearly is by its beginning, if there is one."""
    owners = {prefix: other for other in PROVIDERS for prefix in other.prefixes}
    owners.update(dict.fromkeys(spec.prefixes, spec))
    prefix = max((p for p in owners if api_key.startswith(p)), key=len, default="")
    if not prefix or prefix in _SHARED_PREFIXES or owners[prefix] is spec:
        return None
    return owners[prefix]
