"""The providers as data. Sources: each vendor's API reference, checked against public key verifiers."""

from __future__ import annotations

from ..model.credential import Verdict
from . import rows_chat as makers
from . import rows_cloud as clouds
from . import rows_hosts as hosts
from . import rows_speech as speech
from .rules import UNKNOWN_KEY
from .spec import Catalog, CheckSpec, Field, ProviderSpec, Rule

CUSTOM = ProviderSpec(
    id="custom",
    name="Custom (OpenAI-compatible)",
    fields=(
        Field("name", "Name", secret=False, required=False, placeholder="My vLLM"),
        Field("base_url", "Base URL", secret=False, placeholder="https://…/v1"),
        Field(required=False),
        Field("model", "Model", secret=False, required=False),
    ),
    standalone=True,
    check=CheckSpec(
        rules=(
            # Many are proxies of OpenAI and pass its answers on.
            Rule((401, 403), Verdict.VALID_RESTRICTED, contains="missing scopes"),
            UNKNOWN_KEY,
            Rule((404,), reason="This server lists no models to check a key by.", place="check"),
        )
    ),
)

#: The whole catalog, in the order in which it is shown.
PROVIDERS: tuple[ProviderSpec, ...] = (
    *(makers.OPENAI, makers.ANTHROPIC, makers.GOOGLE, hosts.GROQ, makers.XAI, hosts.OPENROUTER),
    *(makers.MISTRAL, makers.COHERE, makers.DEEPSEEK, makers.PERPLEXITY, makers.MOONSHOT),
    *(makers.ZAI, makers.ALIBABA, makers.MINIMAX, hosts.TOGETHER, hosts.HUGGINGFACE),
    *(hosts.CEREBRAS, hosts.FIREWORKS, hosts.NVIDIA, hosts.NEBIUS, hosts.DEEPINFRA),
    *(hosts.VERCEL, hosts.OVHCLOUD),
    *(*clouds.CLOUDS, *speech.SPEECH, clouds.LOCAL, CUSTOM),
)
Catalog.shipped = PROVIDERS
