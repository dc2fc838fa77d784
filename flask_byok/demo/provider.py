"""The demo's own provider, described as a host describes any provider beside the catalog."""

from __future__ import annotations

from flask_byok import CheckSpec, Field, ProviderSpec, Rule, Verdict

# A key is called bad only where the provider's documents say so: each answer that tells something has a rule, the
# first that fits decides.
_RULES = (
    Rule((401, 403), Verdict.VALID_RESTRICTED, "Its permissions are narrow.", "missing scopes"),
    Rule((401,), Verdict.DISABLED, "The provider has disabled this key.", "account_deactivated"),
    Rule((401,), Verdict.INVALID, "The provider rejected this key.", "invalid_api_key"),
    Rule((429,), Verdict.VALID_NO_CREDIT, "The account has no credit.", "insufficient_quota"),
    Rule((429,), Verdict.VALID_RATE_LIMITED, "The account is over its rate limit right now."),
)

# Without a base URL: the server's port differs from run to run, and BYOK_BASE_URLS names it.
DEMO = ProviderSpec(
    id="demo",
    name="Demo provider",
    fields=(Field(placeholder="demo-…"),),
    prefixes=("demo-",),
    get_key_url="/keys-to-try",
    default_model="demo-small",
    check=CheckSpec(rules=_RULES),
)
