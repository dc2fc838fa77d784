from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner, function_tool
from flask import Blueprint, request

from flask_byok import get_provider_with_api_key

views = Blueprint("openai_agents", __name__)


# begin
@function_tool
def length_of(word: str) -> int:
    """Count the letters of a word."""
    return len(word)


agent = Agent(name="Assistant", instructions="Answer in one sentence.", tools=[length_of])


@views.post("/ask/<name>")
async def ask(name):
    provider = get_provider_with_api_key(name)
    model = OpenAIChatCompletionsModel("gpt-4o-mini", openai_client=provider.async_client)
    # Traces would go to OpenAI with the key in your environment.
    config = RunConfig(model=model, tracing_disabled=True)
    result = await Runner.run(agent, request.get_json()["question"], run_config=config)
    return {"answer": result.final_output}


# end
