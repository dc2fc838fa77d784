"""Those who make models and serve them, as data.

Each row comes from the vendor's documents (``docs``), compared with public verifiers of leaked keys; a rule from
elsewhere names its ``source``. A row says only what the wire's table in :mod:`.verdicts` does not. What each of them
answers is in ``flask_byok/testing/answers``.
"""

from __future__ import annotations

from ..model.credential import Verdict
from .auth import Auth
from .rules import NO_CREDIT, TOO_MANY_CALLS, UNKNOWN_KEY, USUAL, of, with_region
from .spec import CheckSpec, ProviderSpec, Rule

OPENAI = ProviderSpec(
    id="openai",
    name="OpenAI",
    base_url="https://api.openai.com/v1",
    env=("OPENAI_API_KEY",),
    prefixes=("sk-", "sk-proj-", "sk-svcacct-"),
    refused_prefixes=("sk-admin-",),
    other_kinds={"sess-": "a session key of OpenAI's website"},
    # "OpenAI" in base64 is in the middle of each; gitleaks and detect-secrets find them by it.
    shape=r"sk-[\w-]*T3BlbkFJ[\w-]+",
    get_key_url="https://platform.openai.com/api-keys",
    default_model="gpt-6-luna",
    docs="https://developers.openai.com/api/docs/guides/error-codes",
    limit_name="max_completion_tokens",
    check=CheckSpec(
        rules=(
            # A restricted key is answered 401 or 403: that is not a bad key.
            *of(Verdict.VALID_RESTRICTED, (401, 403), "missing scopes"),
            *of(
                *(Verdict.VALID_RESTRICTED, (401,), "mismatched_"),
                reason="The key belongs to another organization or project at {name} than the one that was named.",
            ),
            *of(
                *(Verdict.VALID_RESTRICTED, (401,), "incorrect_hostname"),
                reason="The key belongs to a project that {name} serves at another regional address.",
            ),
            *of(
                *(Verdict.VALID_RESTRICTED, (401,), "ip_not_authorized"),
                reason="The key may be used only from the IP addresses that its project at {name} lists.",
            ),
            *of(Verdict.INVALID, (401,), "invalid_api_key", "incorrect api key"),
            *of(Verdict.DISABLED, (401,), "account_deactivated"),
            *of("provider_overloaded", (429,), "slow_down"),
            *of("content_filtered", (400,), "invalid_prompt"),
            TOO_MANY_CALLS,
        )
    ),
)

ANTHROPIC = ProviderSpec(
    id="anthropic",
    name="Anthropic",
    base_url="https://api.anthropic.com",
    adapter="anthropic",
    env=("ANTHROPIC_API_KEY",),
    prefixes=("sk-ant-", "sk-ant-api03-"),
    refused_prefixes=("sk-ant-admin01-",),
    other_kinds={"sk-ant-oat": "an OAuth token of a Claude subscription"},
    get_key_url="https://console.anthropic.com/settings/keys",
    default_model="claude-haiku-5-5",
    auth=Auth("x-api-key", "{api_key}"),
    headers={"anthropic-version": "2023-06-01"},
    docs="https://platform.claude.com/docs/en/api/errors",
    check=CheckSpec(
        path="/v1/models?limit=1000",
        models_path="/v1/models?limit=1000",
        rules=(
            *of("not_permitted", (401,), "cors requests are not allowed"),
            *of(Verdict.VALID_NO_CREDIT, (400,), "credit balance", "api usage limits"),
            *of(
                Verdict.DISABLED,
                (400, 403),
                "this organization has been disabled",
                "your organization has been disabled",
                source="anthropics/claude-code#19028",
            ),
            *of(Verdict.VALID_RESTRICTED, (403,), "permission_error"),
            UNKNOWN_KEY,
            TOO_MANY_CALLS,
        ),
    ),
)

_SERVICE_OFF = "The key is good, but may not use this API: enable it, or lift the restriction."
GOOGLE = ProviderSpec(
    id="google",
    name="Google Gemini",
    base_url="https://generativelanguage.googleapis.com",
    adapter="google",
    env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    aliases=("gemini", "google_gemini"),
    prefixes=("AIza", "AQ."),
    get_key_url="https://aistudio.google.com/apikey",
    default_model="gemini-3.8-flash",
    auth=Auth("x-goog-api-key", "{api_key}"),
    docs="https://ai.google.dev/gemini-api/docs/generate-content/api-errors",
    check=CheckSpec(
        path="/v1beta/models?pageSize=1",
        models_path="/v1beta/models?pageSize=1000",
        good="models",
        rules=(
            # A bad key is answered 400, not 401. The names are those of google.api.ErrorReason.
            *of(Verdict.INVALID, (400,), "api_key_invalid"),
            *of(Verdict.DISABLED, (403,), "your api key was reported as leaked"),
            *of(Verdict.DISABLED, (403,), "consumer_suspended"),
            *of(
                *(Verdict.VALID_RESTRICTED, (403,), "service_disabled", "_blocked"),
                reason=_SERVICE_OFF,
            ),
            *of(Verdict.VALID_NO_CREDIT, (429,), "credits are depleted"),
            NO_CREDIT,
            TOO_MANY_CALLS,
        ),
    ),
)

XAI = ProviderSpec(
    id="xai",
    name="xAI",
    base_url="https://api.x.ai/v1",
    env=("XAI_API_KEY",),
    aliases=("grok",),
    prefixes=("xai-",),
    refused_prefixes=("xai-token-",),
    get_key_url="https://console.x.ai",
    default_model="grok-4.3",
    docs="https://docs.x.ai/developers/debugging",
    check=CheckSpec(
        path="/api-key",
        good="api_key_blocked|redacted_api_key",
        rules=(
            Rule((200,), Verdict.DISABLED, path="api_key_blocked"),
            Rule((200,), Verdict.DISABLED, path="api_key_disabled"),
            Rule((200,), Verdict.DISABLED, path="team_blocked"),
            # A bad key is answered 400 as well as 401; in a chat a 400 has other causes too.
            *of(Verdict.INVALID, (400,), "incorrect api key"),
            # Used up, or none bought yet.
            *of("no_credit", (403, 429), "credits", source="continuedev/continue#12670"),
            *of(
                "content_filtered",
                (403,),
                "content violates usage guidelines",
                source="UKGovernmentBEIS/inspect_ai#2267",
            ),
            *of("context_too_long", (400,), "maximum prompt length", source="cline/cline#3120"),
            UNKNOWN_KEY,
            TOO_MANY_CALLS,
        ),
    ),
)

_NOT_FOR_CODESTRAL = (
    "{name} rejected this key. Check that you copied all of it. "
    "A key of Codestral's own page works for Codestral's address only: create a general one at {name}."
)
MISTRAL = ProviderSpec(
    id="mistral",
    name="Mistral",
    base_url="https://api.mistral.ai/v1",
    env=("MISTRAL_API_KEY",),
    get_key_url="https://console.mistral.ai/api-keys",
    default_model="mistral-small-latest",
    docs="https://docs.mistral.ai/resources/error-glossary",
    asks_usage=False,
    check=CheckSpec(
        rules=(
            *of(
                "no_credit",
                (403,),
                "inactive subscription",
                source="https://portkey.ai/error-library/subscription-error-10572",
            ),
            *of("model_unknown", (400,), "invalid_model"),
            Rule((401,), Verdict.INVALID, _NOT_FOR_CODESTRAL, source="continuedev/continue#1396"),
            NO_CREDIT,
            TOO_MANY_CALLS,
        )
    ),
)

COHERE = ProviderSpec(
    id="cohere",
    name="Cohere",
    base_url="https://api.cohere.ai/compatibility/v1",
    env=("COHERE_API_KEY", "CO_API_KEY"),
    get_key_url="https://dashboard.cohere.com/api-keys",
    default_model="command-r7b-12-2024",
    docs="https://docs.cohere.com/reference/errors",
    # It refuses a request with ``stream_options``.
    asks_usage=False,
    check=CheckSpec(
        path="https://api.cohere.com/v1/check-api-key",
        method="POST",
        good="valid",
        models_path=None,
        rules=(
            Rule((200,), Verdict.INVALID, path="valid", equals=False),
            *of("context_too_long", (400,), "too many tokens"),
            *USUAL,
        ),
    ),
)

DEEPSEEK = ProviderSpec(
    id="deepseek",
    name="DeepSeek",
    base_url="https://api.deepseek.com",
    env=("DEEPSEEK_API_KEY",),
    prefixes=("sk-",),
    get_key_url="https://platform.deepseek.com/api_keys",
    default_model="deepseek-flash",
    docs="https://api-docs.deepseek.com/quick_start/error_codes",
    check=CheckSpec(
        path="/user/balance",
        good="is_available",
        rules=(
            Rule((200,), Verdict.VALID_NO_CREDIT, path="is_available", equals=False),
            *of("model_unknown", (400,), "model not exist", source="langbot-app/LangBot#1643"),
            *of("content_filtered", (400,), "content exists risk", source="666ghj/BettaFish#108"),
            *USUAL,
        ),
    ),
)

PERPLEXITY = ProviderSpec(
    id="perplexity",
    name="Perplexity",
    base_url="https://api.perplexity.ai",
    # Its chat completions ended on 2026-09-27; the Agent API has OpenAI's format of responses.
    # Source: docs.perplexity.ai/docs/agent-api/migrate-from-sonar/overview
    adapter="http",
    env=("PERPLEXITY_API_KEY",),
    prefixes=("pplx-",),
    get_key_url="https://www.perplexity.ai/account/api",
    docs="https://docs.perplexity.ai/docs/sdk/error-handling",
    check=CheckSpec(
        path="/async/chat/completions",
        good="requests",
        models_path=None,
        rules=(
            *of("model_unknown", (400,), "invalid_model", source="BerriAI/litellm#908"),
            UNKNOWN_KEY,
            TOO_MANY_CALLS,
        ),
    ),
)

MOONSHOT = ProviderSpec(
    id="moonshot",
    name="Moonshot AI (Kimi)",
    base_url="https://{region}/v1",
    fields=with_region({"international": "api.moonshot.ai", "china": "api.moonshot.cn"}, "sk-…"),
    env=("MOONSHOT_API_KEY",),
    aliases=("kimi", "moonshotai"),
    prefixes=("sk-",),
    get_key_url="https://platform.kimi.ai/console/api-keys",
    default_model="kimi-k2.6",
    docs="https://platform.kimi.ai/docs/api/errors",
    limit_name="max_completion_tokens",
    check=CheckSpec(
        rules=(
            *of("no_credit", (403, 429), "exceeded_current_quota_error"),
            *of("provider_overloaded", (429,), "engine_overloaded_error"),
            *of("context_too_long", (400,), "token length too long", "exceeded model token limit"),
            UNKNOWN_KEY,
            TOO_MANY_CALLS,
        )
    ),
)


def _zai(code: int, verdict: Verdict = Verdict.UNCHECKED, kind: str = "") -> Rule:
    """Make a rule of one of Z.AI's numbers, which stand beside various statuses."""
    status = (400, 401, 403, 429, 500)
    return Rule(status, verdict, kind=kind, path="error.code", equals=str(code))


ZAI = ProviderSpec(
    id="zai",
    name="Z.AI (GLM)",
    base_url="https://{region}/api/paas/v4",
    fields=with_region({"international": "api.z.ai", "china": "open.bigmodel.cn"}),
    env=("ZAI_API_KEY", "ZHIPU_API_KEY"),
    aliases=("zhipu", "zhipuai", "glm"),
    get_key_url="https://z.ai/manage-apikey/apikey-list",
    default_model="glm-5.3-flash",
    docs="https://docs.z.ai/api-reference/api-code",
    check=CheckSpec(
        rules=(
            *(_zai(code, Verdict.DISABLED) for code in (1112, 1121)),
            *(_zai(code, Verdict.VALID_NO_CREDIT) for code in (1113, 1309)),
            *(_zai(code, Verdict.VALID_RESTRICTED) for code in (1220, 1311)),
            _zai(1211, kind="model_unknown"),
            _zai(1261, kind="context_too_long"),
            _zai(1301, kind="content_filtered"),
            _zai(1312, Verdict.UNREACHABLE, "provider_overloaded"),
            UNKNOWN_KEY,
            TOO_MANY_CALLS,
        )
    ),
)

_DASHSCOPE = {
    "singapore": "dashscope-intl.aliyuncs.com",
    "virginia": "dashscope-us.aliyuncs.com",
    "beijing": "dashscope.aliyuncs.com",
}
ALIBABA = ProviderSpec(
    id="alibaba",
    name="Alibaba Cloud (Qwen)",
    base_url="https://{region}/compatible-mode/v1",
    fields=with_region(_DASHSCOPE, "sk-…"),
    env=("DASHSCOPE_API_KEY", "ALIBABA_API_KEY"),
    aliases=("dashscope", "qwen"),
    prefixes=("sk-",),
    get_key_url="https://modelstudio.console.alibabacloud.com/?tab=dashboard#/api-key",
    default_model="qwen3.8-flash",
    docs="https://help.aliyun.com/en/model-studio/error-code",
    check=CheckSpec(
        path="https://{region}/api/v1/deployments?page_size=1",
        good="output",
        models_path=None,
        rules=(
            *of("no_credit", (400, 403), "arrearage", "freetieronly"),
            # Here these words are about tokens a minute.
            *of(Verdict.VALID_RATE_LIMITED, (429,), "insufficient_quota"),
            *of(Verdict.VALID_RESTRICTED, (403,), "access_denied", "accessdenied"),
            *of("content_filtered", (400,), "data_inspection_failed"),
            *of("context_too_long", (400,), "range of input length"),
            UNKNOWN_KEY,
            TOO_MANY_CALLS,
        ),
    ),
)

_MINIMAX = {"international": "api.minimax.io", "china": "api.minimaxi.com"}
MINIMAX = ProviderSpec(
    id="minimax",
    name="MiniMax",
    base_url="https://{region}/anthropic",
    adapter="anthropic",
    fields=with_region(_MINIMAX, "sk-api-…"),
    env=("MINIMAX_API_KEY",),
    prefixes=("sk-api-",),
    get_key_url="https://platform.minimax.io/user-center/basic-information/interface-key",
    default_model="MiniMax-M3",
    auth=Auth("x-api-key", "{api_key}"),
    headers={"anthropic-version": "2023-06-01"},
    docs="https://platform.minimax.io/docs/api-reference/errorcode",
    check=CheckSpec(
        path="/v1/models?limit=100",
        models_path="/v1/models?limit=100",
        rules=(
            *of("no_credit", (429, 500), "insufficient balance", source="MiniMax-AI/MiniMax-M2#62"),
            *of(
                "context_too_long",
                (400,),
                "context window exceeds limit",
                source="agentscope-ai/QwenPaw#1273",
            ),
            *of("model_unknown", (400,), "unknown model", source="jlcodes99/cockpit-tools#1431"),
            *of("content_filtered", (400, 422), "new_sensitive"),
            *USUAL,
        ),
    ),
)
