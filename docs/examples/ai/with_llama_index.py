from typing import Any

from flask import Blueprint, request
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.prompts import PromptTemplate
from pydantic import PrivateAttr

from flask_byok import get_provider_with_api_key

views = Blueprint("llama_index", __name__)


# begin
class PersonsLLM(CustomLLM):
    """A model of LlamaIndex on a person's key. It asks no SDK, so it serves every provider."""

    _provider: Any = PrivateAttr()

    def __init__(self, provider):
        super().__init__()
        self._provider = provider

    @property
    def metadata(self):
        return LLMMetadata(model_name=self._provider.name)

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **params):
        *_, whole = self.stream_complete(prompt, formatted, **params)
        return whole

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **params):
        text = ""
        for piece in self._provider.stream_chat([{"role": "user", "content": prompt}], **params):
            text += piece
            yield CompletionResponse(text=text, delta=piece)


@views.post("/ask/<name>")
def ask(name):
    llm = PersonsLLM(get_provider_with_api_key(name))  # pass it on, do not set Settings.llm
    question = request.get_json()["question"]
    return {"answer": llm.predict(PromptTemplate("{question}"), question=question)}


# end
