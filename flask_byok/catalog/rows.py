"""The providers as data. Sources: each vendor's API reference, checked against public key verifiers."""

from __future__ import annotations

from . import rows_chat as makers
from . import rows_cloud as clouds
from . import rows_hosts as hosts
from . import rows_speech as speech
from .spec import Catalog, ProviderSpec

#: The whole catalog, in the order in which it is shown.
PROVIDERS: tuple[ProviderSpec, ...] = (
    *(makers.OPENAI, makers.ANTHROPIC, makers.GOOGLE, hosts.GROQ, makers.XAI, hosts.OPENROUTER),
    *(makers.MISTRAL, makers.COHERE, makers.DEEPSEEK, makers.PERPLEXITY, makers.MOONSHOT),
    *(makers.ZAI, makers.ALIBABA, makers.MINIMAX, hosts.TOGETHER, hosts.HUGGINGFACE),
    *(hosts.CEREBRAS, hosts.FIREWORKS, hosts.NVIDIA, hosts.NEBIUS, hosts.DEEPINFRA),
    *(hosts.VERCEL, hosts.OVHCLOUD),
    *(*clouds.CLOUDS, *speech.SPEECH, *clouds.OWN),
)
Catalog.shipped = PROVIDERS
