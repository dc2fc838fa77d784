from typing import Any, TypedDict

from flask import Blueprint, request
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime

from flask_byok import get_chat_model_with_api_key

views = Blueprint("langgraph", __name__)
MODELS = {
    "openai": "gpt-4o-mini",
    "anthropic": "claude-haiku-4-5",
    "google": "gemini-2.5-flash",
}


# begin
class Context(TypedDict):
    model: Any  # in the context of a run, not in the state, which checkpoints store


def answer(state: MessagesState, runtime: Runtime[Context]):
    return {"messages": [runtime.context["model"].invoke(state["messages"])]}


builder = StateGraph(MessagesState, context_schema=Context)
builder.add_node("first", answer)
builder.add_edge(START, "first")
graph = builder.compile()  # once, for everybody: it holds no key


@views.post("/ask/<name>")
def ask(name):
    model = get_chat_model_with_api_key(name, MODELS[name])
    question = {"messages": [("user", request.get_json()["question"])]}
    done = graph.invoke(question, context={"model": model})
    return {"answer": done["messages"][-1].content}


# end
