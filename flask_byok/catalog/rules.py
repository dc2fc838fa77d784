"""What many rows share: rules that most documents have alike, those of each wire, and short ways to write others."""

from __future__ import annotations

from collections.abc import Mapping

from ..model.credential import Verdict
from .spec import Adapter, Field, Rule

#: A key that is not theirs.
UNKNOWN_KEY = Rule((401,), Verdict.INVALID)
#: No money in the account.
NO_CREDIT = Rule((402,), Verdict.VALID_NO_CREDIT)
#: Too many calls with this key or account.
TOO_MANY_CALLS = Rule((429,), Verdict.VALID_RATE_LIMITED)
#: The same where a check may meet a limit of this server's address instead.
TOO_MANY_IN_CALLS = Rule((429,), Verdict.VALID_RATE_LIMITED, place="call")
USUAL = (UNKNOWN_KEY, NO_CREDIT, TOO_MANY_CALLS)

# What the kind of a call's error says of the key; any other says nothing.
_VERDICTS = {
    "no_credit": Verdict.VALID_NO_CREDIT,
    "provider_overloaded": Verdict.UNREACHABLE,
}


def of(
    means: Verdict | str, status: tuple[int, ...], *words: str, source: str = "", reason: str = ""
) -> tuple[Rule, ...]:
    """Make a rule of each of the words.

    :param means: a verdict on the key, or the code of a call's error.
    :param source: the address of a page, or a thread as GitHub writes it: ``owner/name#1``.
    """
    if isinstance(means, Verdict):
        verdict, kind = means, ""
    else:
        verdict, kind = _VERDICTS.get(means, Verdict.UNCHECKED), means
    return tuple(
        Rule(status, verdict, reason, contains=each, kind=kind, source=source) for each in words
    )


def with_region(choices: Mapping[str, str], placeholder: str = "") -> tuple[Field, ...]:
    """Make the fields of a provider that has platforms of their own keys, by region. The first one is the default."""
    default = next(iter(choices))
    region = Field(
        "region", "Region", kind="choice", choices=choices, default=default, required=False
    )
    return (Field(placeholder=placeholder), region)


# What the servers of one wire answer alike. Sources: OpenAI's, Anthropic's and Gemini's lists of error codes at
# platform.openai.com/docs/guides/error-codes, platform.claude.com/docs/en/api/errors and
# ai.google.dev/gemini-api/docs/troubleshooting.
WIRES: dict[Adapter, tuple[Rule, ...]] = {
    "openai": (
        *of(
            "context_too_long", (400, 413, 422), "context_length_exceeded", "maximum context length"
        ),
        *of("model_unknown", (400, 403, 404), "model_not_found", "model_decommissioned"),
        *of("content_filtered", (400, 403, 422), "content_filter", "content_policy"),
        *of("region_blocked", (403,), "unsupported_country_region_territory"),
        *of("no_credit", (402, 403, 429), "insufficient_quota", "billing_not_active"),
        *of("no_credit", (400, 402, 403, 429), "billing_hard_limit_reached"),
    ),
    "anthropic": (
        *of("context_too_long", (400, 413), "prompt is too long"),
        *of("context_too_long", (413,), "request_too_large"),
        *of("model_unknown", (404,), "not_found_error"),
        *of("no_credit", (402,), "billing_error"),
        *of("provider_overloaded", (500, 503, 529), "overloaded_error"),
        *of("content_filtered", (400,), "content filtering policy"),
    ),
    "google": (
        *of("region_blocked", (400,), "user location is not supported"),
        *of("context_too_long", (400,), "exceeds the maximum number of tokens"),
        *of("no_credit", (400, 403, 429), "billing_disabled"),
    ),
    "http": (),
}
