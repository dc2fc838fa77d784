"""Those who serve the models of others, as data. Sources: see :mod:`.rows_chat`."""

from __future__ import annotations

from ..model.credential import Verdict
from .rules import NO_CREDIT, TOO_MANY_CALLS, TOO_MANY_IN_CALLS, UNKNOWN_KEY, USUAL, of
from .spec import CheckSpec, ProviderSpec, Rule

# Of servers made with Hugging Face's text-generation-inference.
_TGI_TOO_LONG = of("context_too_long", (400, 422), "`max_new_tokens` must be")

GROQ = ProviderSpec(
    id="groq",
    name="Groq",
    base_url="https://api.groq.com/openai/v1",
    env=("GROQ_API_KEY",),
    prefixes=("gsk_",),
    get_key_url="https://console.groq.com/keys",
    default_model="openai/gpt-oss-20b",
    docs="https://console.groq.com/docs/errors",
    limit_name="max_completion_tokens",
    check=CheckSpec(
        rules=(
            *of(
                Verdict.DISABLED,
                (400,),
                "organization_restricted",
                source="songquanpeng/one-api#1764",
            ),
            *of("no_credit", (400,), "blocked_api_access"),
            *of(Verdict.VALID_RESTRICTED, (403,), "model_permission_blocked"),
            Rule((498,), Verdict.UNREACHABLE, kind="provider_overloaded"),
            UNKNOWN_KEY,
            TOO_MANY_CALLS,
        )
    ),
)

OPENROUTER = ProviderSpec(
    id="openrouter",
    name="OpenRouter",
    base_url="https://openrouter.ai/api/v1",
    env=("OPENROUTER_API_KEY",),
    prefixes=("sk-or-v1-",),
    get_key_url="https://openrouter.ai/settings/keys",
    default_model="openrouter/auto",
    docs="https://openrouter.ai/docs/api/reference/errors-and-debugging",
    check=CheckSpec(
        # Its /models is public and answers 200 to any string, so it lists models but checks no key.
        path="/key",
        rules=(
            Rule((200,), Verdict.ADMIN_KEY_REFUSED, path="data.is_management_key"),
            Rule((200,), Verdict.ADMIN_KEY_REFUSED, path="data.is_provisioning_key"),
            Rule((200,), Verdict.VALID_NO_CREDIT, path="data.limit_remaining", equals=0),
            *of(Verdict.DISABLED, (401,), "disabled"),
            *of("no_credit", (403,), "limit exceeded"),
            *of("content_filtered", (403,), "requires moderation", "request blocked"),
            *of("model_unknown", (400,), "is not a valid model id"),
            *USUAL,
        ),
    ),
)

TOGETHER = ProviderSpec(
    id="together",
    name="Together AI",
    base_url="https://api.together.xyz/v1",
    env=("TOGETHER_API_KEY",),
    aliases=("togetherai", "together_ai"),
    get_key_url="https://api.together.ai/settings/api-keys",
    default_model="zai-org/GLM-5.3-Flash",
    docs="https://docs.together.ai/docs/error-codes",
    check=CheckSpec(
        good="[]",
        rules=(
            # Documented: 403 is a prompt that is too long for the model.
            Rule((403,), kind="context_too_long", place="call"),
            *_TGI_TOO_LONG,
            *of("model_unknown", (400,), "model_not_available"),
            *USUAL,
        ),
    ),
)

HUGGINGFACE = ProviderSpec(
    id="huggingface",
    name="Hugging Face",
    base_url="https://router.huggingface.co/v1",
    env=("HF_TOKEN",),
    aliases=("hugging_face",),
    prefixes=("hf_",),
    get_key_url="https://huggingface.co/settings/tokens",
    default_model="deepseek-ai/DeepSeek-V3.2",
    docs="https://huggingface.co/docs/inference-providers",
    check=CheckSpec(
        path="https://huggingface.co/api/whoami-v2",
        good="name",
        rules=(
            *of(
                Verdict.VALID_RESTRICTED,
                (403,),
                "not have sufficient permissions",
                source="huggingface/agents-course#558",
            ),
            *_TGI_TOO_LONG,
            *of("model_unknown", (400,), "model_not_supported"),
            UNKNOWN_KEY,
            NO_CREDIT,
            TOO_MANY_IN_CALLS,
        ),
    ),
)

CEREBRAS = ProviderSpec(
    id="cerebras",
    name="Cerebras",
    base_url="https://api.cerebras.ai/v1",
    env=("CEREBRAS_API_KEY",),
    prefixes=("csk-",),
    get_key_url="https://cloud.cerebras.ai",
    default_model="gpt-oss-120b",
    docs="https://inference-docs.cerebras.ai/support/error",
    limit_name="max_completion_tokens",
    check=CheckSpec(rules=USUAL),
)

FIREWORKS = ProviderSpec(
    id="fireworks",
    name="Fireworks AI",
    base_url="https://api.fireworks.ai/inference/v1",
    env=("FIREWORKS_API_KEY",),
    aliases=("fireworks_ai",),
    prefixes=("fw_", "fpk_"),
    get_key_url="https://app.fireworks.ai/settings/users/api-keys",
    default_model="accounts/fireworks/models/gpt-oss-20b",
    docs="https://docs.fireworks.ai/guides/inference-error-codes",
    check=CheckSpec(
        # Its /models fails for some accounts with 500.
        path="https://api.fireworks.ai/v1/accounts",
        good="accounts",
        rules=(
            *of(Verdict.VALID_RESTRICTED, (403,), "fire pass", source="typeclaw/typeclaw#388"),
            *of("no_credit", (412,), "suspended", source="amd/gaia#3766"),
            *USUAL,
        ),
    ),
)

NVIDIA = ProviderSpec(
    id="nvidia",
    name="NVIDIA",
    base_url="https://integrate.api.nvidia.com/v1",
    env=("NVIDIA_API_KEY",),
    aliases=("nvidia_nim",),
    prefixes=("nvapi-",),
    get_key_url="https://build.nvidia.com/settings/api-keys",
    default_model="openai/gpt-oss-20b",
    docs="https://docs.api.nvidia.com/nim/reference/llm-apis",
    check=CheckSpec(
        # Its /models is public. Good keys met 403 too, and 401 is not documented: neither tells a bad key.
        path="https://api.nvcf.nvidia.com/v2/nvcf/functions",
        good="functions",
        rules=(NO_CREDIT, Rule((410,), kind="model_unknown"), TOO_MANY_IN_CALLS),
    ),
)

NEBIUS = ProviderSpec(
    id="nebius",
    name="Nebius Token Factory",
    base_url="https://api.tokenfactory.nebius.com/v1",
    env=("NEBIUS_API_KEY",),
    get_key_url="https://tokenfactory.nebius.com/?modals=create-api-key",
    default_model="openai/gpt-oss-120b",
    docs="https://docs.tokenfactory.nebius.com/api-reference/inference/create-chat-completion",
    check=CheckSpec(
        rules=(
            *of(Verdict.INVALID, (401,), "couldn't authenticate"),
            NO_CREDIT,
            TOO_MANY_CALLS,
        )
    ),
)

DEEPINFRA = ProviderSpec(
    id="deepinfra",
    name="DeepInfra",
    base_url="https://api.deepinfra.com/v1/openai",
    env=("DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN"),
    get_key_url="https://deepinfra.com/dash/api_keys",
    default_model="openai/gpt-oss-20b",
    docs="https://api.deepinfra.com/openapi.json",
    check=CheckSpec(
        # Its /models is public. What a bad key is answered is not documented.
        path="https://api.deepinfra.com/v1/me",
        good="uid",
        rules=(NO_CREDIT, TOO_MANY_IN_CALLS),
    ),
)

VERCEL = ProviderSpec(
    id="vercel",
    name="Vercel AI Gateway",
    base_url="https://ai-gateway.vercel.sh/v1",
    env=("AI_GATEWAY_API_KEY", "VERCEL_AI_GATEWAY_API_KEY"),
    aliases=("ai_gateway", "vercel_ai_gateway"),
    prefixes=("vck_",),
    get_key_url="https://vercel.com/d?to=%2F%5Bteam%5D%2F%7E%2Fai-gateway%2Fapi-keys",
    default_model="openai/gpt-oss-20b",
    docs="https://vercel.com/docs/ai-gateway/sdks-and-apis/rest-api",
    check=CheckSpec(
        # Its /models is public.
        path="/credits",
        good="balance",
        rules=(
            *of(
                "no_credit",
                (403, 500),
                "valid credit card on file",
                source="arlanrakh/talk-to-girlfriend-ai#6",
            ),
            *USUAL,
        ),
    ),
)

OVHCLOUD = ProviderSpec(
    id="ovhcloud",
    name="OVHcloud AI Endpoints",
    base_url="https://oai.endpoints.kepler.ai.cloud.ovh.net/v1",
    env=("OVHCLOUD_API_KEY", "OVH_AI_ENDPOINTS_ACCESS_TOKEN"),
    aliases=("ovh",),
    get_key_url="https://www.ovhcloud.com/en/public-cloud/ai-endpoints/",
    default_model="Mistral-Small-3.2-24B-Instruct-2506",
    docs="https://help.ovhcloud.com/csm/en-public-cloud-ai-endpoints-getting-started",
    check=CheckSpec(
        rules=(
            Rule(
                (200,),
                reason="{name} lists its models to everyone, so the key was not checked. The first call will show.",
                path="object",
                equals="list",
            ),
            *of(Verdict.INVALID, (403,), "authentication failed"),
            TOO_MANY_IN_CALLS,
        )
    ),
)
