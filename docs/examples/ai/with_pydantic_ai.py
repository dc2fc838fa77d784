from flask import Blueprint, request
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider

from flask_byok import get_provider_with_api_key

views = Blueprint("pydantic_ai", __name__)

# begin
agent = Agent(instructions="Answer in one sentence.")  # without a model, so it holds no key


@agent.tool_plain
def length_of(word: str) -> int:
    """Count the letters of a word."""
    return len(word)


def model_of(provider):
    if provider.name == "anthropic":
        client = AnthropicProvider(anthropic_client=provider.async_client)
        return AnthropicModel("claude-haiku-4-5", provider=client)
    if provider.name == "google":
        return GoogleModel("gemini-2.5-flash", provider=GoogleProvider(client=provider.client))
    client = OpenAIProvider(openai_client=provider.async_client)
    return OpenAIChatModel("gpt-4o-mini", provider=client)


@views.post("/ask/<name>")
async def ask(name):
    provider = get_provider_with_api_key(name)
    result = await agent.run(request.get_json()["question"], model=model_of(provider))
    return {"answer": result.output, "source": provider.source}


# end
