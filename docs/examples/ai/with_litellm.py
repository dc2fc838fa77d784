import litellm
from flask import Blueprint, request

from flask_byok import get_provider_with_api_key

views = Blueprint("litellm", __name__)


# begin
@views.post("/ask/<name>")
def ask(name):
    provider = get_provider_with_api_key(name)  # of OpenAI's format; "openai/" says so to LiteLLM
    answer = litellm.completion(
        model="openai/gpt-4o-mini",
        messages=[{"role": "user", "content": request.get_json()["question"]}],
        client=provider.client,
        api_key=provider.api_key,
        api_base=provider.credential.base_url,
        max_retries=0,
    )
    return {"answer": answer.choices[0].message.content}


# end
